"""Latent-variable models: sampling, reconstruction, interpolation, contexts, custom networks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dgm_fast.models import IWAE, VAE
from dgm_fast.nn import MLP

D, L, C = 12, 3, 5

OBSERVATIONS: dict[str, dict[str, Any]] = {
    "bernoulli": {},
    "gaussian": {"likelihood": "gaussian"},
    "gaussian_shared": {"likelihood": "gaussian", "decoder_variance": "shared"},
    "gaussian_full": {"likelihood": "gaussian", "decoder_variance": "full"},
    "categorical": {"likelihood": "categorical", "num_classes": C},
}


def make(observation: str = "bernoulli", **kwargs: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(D, L, **{"hidden_sizes": (8,), **OBSERVATIONS[observation], **kwargs}).double()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_samples_are_a_function_of_the_noise(observation: str) -> None:
    model = make(observation)
    first, again, other = (model.sample(7, generator=seeded(seed)) for seed in (1, 1, 2))
    assert first.shape == (7, D)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    draw = torch.randn if observation.startswith("gaussian") else torch.rand
    noise = (torch.randn(7, L).double(), draw(7, D).double())
    assert torch.equal(model.sample(7, noise=noise), model.sample(7, noise=noise))
    # Drawing the same noise outside gives the same samples.
    source = seeded(1)
    outside = (
        torch.randn(7, L, dtype=torch.float64, generator=source),
        draw(7, D, dtype=torch.float64, generator=source),
    )
    assert torch.equal(model.sample(7, noise=outside), first)
    dtype = torch.int64 if observation == "categorical" else torch.float64
    assert first.dtype == dtype and not first.requires_grad


def test_bernoulli_samples_follow_the_decoder() -> None:
    model, n = make(), 20_000
    out = model.decode(torch.zeros(1, L).double())
    assert isinstance(out, Tensor)
    noise = (torch.zeros(n, L).double(), torch.rand(n, D, generator=seeded(1)).double())
    x = model.sample(n, noise=noise)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(x.mean(0), torch.sigmoid(out[0]), rtol=0, atol=5 * 0.5 / n**0.5)


@pytest.mark.parametrize("observation", ["gaussian", "gaussian_shared", "gaussian_full"])
def test_gaussian_samples_scale_the_noise(observation: str) -> None:
    model = make(observation)
    if observation == "gaussian_shared":
        nn.init.constant_(model.observation.log_var, -0.8)
    z, eps = torch.randn(2, 9, max(D, L), dtype=torch.float64)
    z, eps = z[:, :L], eps[:, :D]
    out = model.decode(z)
    mean, log_var = out if isinstance(out, tuple) else (out, torch.zeros(()).double())
    torch.testing.assert_close(
        model.sample(9, noise=(z, eps)), mean + torch.exp(log_var / 2) * eps, check_layout=False
    )


def test_categorical_samples_invert_the_distribution_function() -> None:
    model = make("categorical")
    z, u = torch.randn(50, L).double(), torch.rand(50, D).double()
    u[0], u[1] = 0.0, 1 - 2**-53
    x = model.sample(50, noise=(z, u))
    out = model.decode(z)
    assert isinstance(out, Tensor)
    cdf = torch.softmax(out, -2).cumsum(-2).detach().numpy()  # [50, C, D]
    expected = [
        [np.searchsorted(cdf[i, :, d], u[i, d].item() * cdf[i, -1, d], "right") for d in range(D)]
        for i in range(50)
    ]
    assert x.tolist() == expected
    assert x[0].eq(0).all() and x[1].eq(C - 1).all()


def test_categorical_never_draws_impossible_classes() -> None:
    model = make("categorical").float()
    with torch.no_grad():
        model.decoder.output.weight.zero_()
        bias = model.decoder.output.bias.view(C, D)
        bias.zero_()[0] = -math.inf
        bias[C - 1] = -math.inf
    highest = torch.full((2, D), 1 - 2**-24)
    highest[0] = 0.0
    x = model.sample(2, noise=(torch.zeros(2, L), highest))
    assert x[0].eq(1).all() and x[1].eq(C - 2).all()


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_reconstruction_decodes_the_posterior_mean(observation: str) -> None:
    model, x = make(observation), torch.randint(2, (6, D))
    mean, log_var = model.encode(x)
    out = model.decode(mean)
    point = out[0] if isinstance(out, tuple) else out
    expected = {"bernoulli": torch.sigmoid, "categorical": lambda t: t.argmax(1)}.get(
        observation, lambda t: t
    )
    torch.testing.assert_close(model.reconstruct(x), expected(point))
    noise = torch.randn(6, L, dtype=torch.float64)
    out = model.decode(mean + torch.exp(log_var / 2) * noise)
    point = out[0] if isinstance(out, tuple) else out
    drawn = model.reconstruct(x, stochastic=True, noise=noise)
    torch.testing.assert_close(drawn, expected(point))
    assert model.reconstruct(x.view(6, 3, 4)).shape == (6, 3, 4)


@pytest.mark.parametrize("mode", ["linear", "spherical"])
def test_interpolation_ends_at_the_reconstructions(mode: str) -> None:
    model = make()
    x1, x2 = torch.randint(2, (2, 6, 3, 4), generator=seeded(3))
    path = model.interpolate(x1, x2, 5, mode)
    assert path.shape == (6, 5, 3, 4)
    torch.testing.assert_close(path[:, 0], model.reconstruct(x1))
    torch.testing.assert_close(path[:, -1], model.reconstruct(x2))
    same = model.interpolate(x1, x1, 3, mode)
    torch.testing.assert_close(same, model.reconstruct(x1).unsqueeze(1).expand_as(same))


class Codes(nn.Module):
    """Encoder whose posterior means are the first entries of x."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :2], torch.zeros_like(x[:, :2])


def test_interpolation_paths_in_latent_space() -> None:
    model = VAE(2, 2, encoder=Codes(), decoder=nn.Identity(), likelihood="gaussian").double()
    x1 = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]).double()
    x2 = torch.tensor([[0.0, 2.0], [-1.0, 0.0], [0.0, 4.0]]).double()
    linear = model.interpolate(x1, x2, 3)
    torch.testing.assert_close(linear[:, 1], (x1 + x2) / 2)
    curved = model.interpolate(x1, x2, 4, "spherical")
    angle = torch.arange(4).double() * math.pi / 6
    circle = 2 * torch.stack([torch.cos(angle), torch.sin(angle)], -1)
    torch.testing.assert_close(curved[0], circle)
    # No direction between opposite codes, nor from the origin: the straight line.
    torch.testing.assert_close(curved[1:], model.interpolate(x1, x2, 4)[1:])


def test_context_reaches_encoder_and_decoder() -> None:
    model = make(context_dim=2)
    x, z = torch.randint(2, (6, D)), torch.randn(6, 4, L, dtype=torch.float64)
    one, other = torch.randn(2, 6, 2, dtype=torch.float64)
    assert not torch.equal(model.encode(x, context=one)[0], model.encode(x, context=other)[0])
    decoded = model.decode(z, context=one)
    assert isinstance(decoded, Tensor)
    assert not torch.equal(decoded, model.decode(z, context=other))
    # Row b of the context belongs to row b of z, for every one of its samples.
    torch.testing.assert_close(model.decode(z[2:3], context=one[2:3]), decoded[2:3])
    torch.testing.assert_close(model.decode(z[:, 1], context=one), decoded[:, 1])


def test_every_method_takes_context() -> None:
    torch.manual_seed(1)
    model = IWAE(D, L, hidden_sizes=(8,), context_dim=2)
    x = torch.randint(2, (6, D))
    labels = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 0, 1, 0]), 2)
    calls = [
        lambda context: model.elbo(x, context=context, generator=seeded(1)),
        lambda context: model.iwae_bound(x, context=context, generator=seeded(1)),
        lambda context: model.loss(x, context=context, generator=seeded(1)),
        lambda context: model.log_prob(x, 20, context=context, generator=seeded(1)),
        lambda context: model.bits_per_dim(x, 20, context=context, generator=seeded(1)),
        lambda context: model.reconstruct(x, context=context),
        lambda context: model.interpolate(x, x.flip(0), 3, context=context),
        lambda context: model.log_likelihood(x, torch.ones(6, L), context=context),
        lambda context: model.sample(6, context=context.float() * 9, generator=seeded(1)),
    ]
    for call in calls:
        assert not torch.equal(call(labels), call(1 - labels))
        shared = call(labels[:1].expand(6, 2))
        torch.testing.assert_close(call(labels[0]), shared)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten()
        )
        self.mean, self.log_var = nn.Linear(32, L), nn.Linear(32, L)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.mean(h), self.log_var(h)


def decoder(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(L, 8),
        nn.BatchNorm1d(8),
        nn.Unflatten(1, (2, 2, 2)),
        nn.ConvTranspose2d(2, channels, 2, stride=2),  # [N, channels, 4, 4]
    )


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({}, 1),
        ({"likelihood": "gaussian", "decoder_variance": "full"}, 2),
        ({"likelihood": "categorical", "num_classes": 3}, 3),
    ],
)
def test_convolutional_networks(options: dict[str, Any], channels: int) -> None:
    torch.manual_seed(0)
    model = IWAE(16, L, encoder=Encoder(), decoder=decoder(channels), estimator="dreg", **options)
    x = torch.randint(2, (5, 1, 4, 4))
    model.loss(x).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.log_prob(x, 30).shape == (5,)
    assert model.sample(4).shape == (4, 16)
    out = model.eval().decode(torch.zeros(1, L))
    raw = model.decoder(torch.zeros(1, L))[0].flatten(1)  # [channels, 16]
    if channels == 2:
        torch.testing.assert_close(torch.cat(out), raw)
    else:
        torch.testing.assert_close(out[0], raw if channels == 3 else raw[0])


def test_decoder_may_return_a_pair() -> None:
    class Pair(nn.Module):
        def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
            return z.repeat(1, 4), z.repeat(1, 4) / 2

    model = VAE(D, L, decoder=Pair(), likelihood="gaussian", decoder_variance="full")
    z = torch.randn(2, 6, L)
    mean, log_var = model.decode(z)
    torch.testing.assert_close(mean, z.repeat(1, 1, 4))
    torch.testing.assert_close(log_var, mean / 2)


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_output_bias_starts_from_the_marginals(observation: str) -> None:
    model = make(observation)
    assert isinstance(model.decoder, MLP)
    if observation == "categorical":
        marginal = torch.softmax(torch.randn(C, 3, 4), 0)
    else:
        marginal = torch.rand(3, 4) * 0.8 + 0.1
    model.init_output_bias(marginal)
    nn.init.zeros_(model.decoder.output.weight)
    out = model.decode(torch.randn(2, L).double())
    if observation == "categorical":
        found = torch.softmax(out, 1)[0]
    elif observation == "bernoulli":
        found = torch.sigmoid(out)[0]
    else:
        found = (out[0] if isinstance(out, tuple) else out)[0]
    expected = marginal.flatten(-2).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    if observation == "gaussian_full":
        assert out[1].eq(0).all()
    if observation in ("bernoulli", "categorical"):  # frequencies of 0 and 1 stay finite
        model.init_output_bias(marginal.round())
        assert model.decoder.output.bias.isfinite().all()


def test_activation_and_hidden_sizes_of_the_default_networks() -> None:
    model = VAE(D, L, hidden_sizes=(9, 7), activation=nn.Tanh)
    kinds = [type(m) for m in model.encoder.hidden]
    assert kinds == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh]
    shapes = [tuple(p.shape) for p in model.parameters() if p.ndim == 2]
    assert shapes == [(9, D), (7, 9), (2 * L, 7), (7, L), (9, 7), (D, 9)]
