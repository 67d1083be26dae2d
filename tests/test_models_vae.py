"""VAE, BetaVAE and IWAE: bounds and losses against formulas in torch.distributions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Normal, kl_divergence

import dgm_fast
from dgm_fast.models import IWAE, VAE, BetaVAE

B, D, L, K, C = 6, 12, 3, 4, 5

# name -> constructor options
OBSERVATIONS: dict[str, dict[str, Any]] = {
    "bernoulli": {},
    "gaussian": {"likelihood": "gaussian"},
    "gaussian_shared": {"likelihood": "gaussian", "decoder_variance": "shared"},
    "gaussian_full": {"likelihood": "gaussian", "decoder_variance": "full"},
    "categorical": {"likelihood": "categorical", "num_classes": C},
}


def make(model_class: type[VAE], observation: str = "bernoulli", **kwargs: Any) -> Any:
    torch.manual_seed(0)
    options = {"hidden_sizes": (8, 7), **OBSERVATIONS[observation], **kwargs}
    model = model_class(D, L, **options).double()
    if observation == "gaussian_shared":
        nn.init.constant_(model.observation.log_var, 0.3)
    return model


def make_data(observation: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if observation == "categorical":
        return torch.randint(C, (B, D), generator=generator)
    if observation == "bernoulli":
        return torch.randint(2, (B, D), generator=generator).double()
    return torch.randn(B, D, dtype=torch.float64, generator=generator)


def normals(*shape: int) -> Tensor:
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))
    )


def observed(model: VAE, z: Tensor) -> Distribution:
    """p(x | z) from the decoder network alone; the variables are the last dimension."""
    raw = model.decoder(z)
    if model.likelihood == "bernoulli":
        return Bernoulli(logits=raw)
    if model.likelihood == "categorical":
        return Categorical(logits=raw.unflatten(-1, (C, D)).transpose(-1, -2))
    if model.observation.variance == "full":
        mean, log_var = raw[..., :D], raw[..., D:]
        return Normal(mean, torch.exp(log_var / 2))
    if model.observation.variance == "shared":
        return Normal(raw, torch.exp(model.observation.log_var / 2))
    return Normal(raw, torch.ones_like(raw))


def posterior(model: VAE, x: Tensor) -> Normal:
    scale = C - 1 if model.likelihood == "categorical" else 1
    out = model.encoder(x.double() / scale)
    return Normal(out[:, :L], torch.exp(out[:, L:] / 2))


def log_weights(model: VAE, x: Tensor, noise: Tensor) -> Tensor:
    q = posterior(model, x)
    z = q.mean.unsqueeze(1) + q.stddev.unsqueeze(1) * noise
    log_q = Normal(q.mean.unsqueeze(1), q.stddev.unsqueeze(1)).log_prob(z).sum(-1)
    log_p = Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(-1)
    return observed(model, z).log_prob(x.unsqueeze(1)).sum(-1) + log_p - log_q


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_elbo_is_likelihood_minus_divergence(observation: str) -> None:
    model, x, noise = make(VAE, observation), make_data(observation), normals(B, L)
    q = posterior(model, x)
    divergence = kl_divergence(q, Normal(torch.zeros(B, L).double(), 1.0)).sum(-1)
    log_prob = observed(model, q.mean + q.stddev * noise).log_prob(x).sum(-1)
    torch.testing.assert_close(model.elbo(x, noise=noise), log_prob - divergence)
    torch.testing.assert_close(model.loss(x, noise=noise), -(log_prob - divergence).mean())
    beta = make(BetaVAE, observation, beta=2.5)
    torch.testing.assert_close(beta.loss(x, noise=noise), -(log_prob - 2.5 * divergence).mean())
    torch.testing.assert_close(beta.elbo(x, noise=noise), log_prob - divergence)


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_iwae_bound_is_log_mean_weight(observation: str) -> None:
    model, x, noise = (
        make(IWAE, observation, num_samples=K),
        make_data(observation),
        normals(B, K, L),
    )
    expected = torch.logsumexp(log_weights(model, x, noise), 1) - math.log(K)
    torch.testing.assert_close(model.iwae_bound(x, noise=noise), expected)
    torch.testing.assert_close(model.loss(x, noise=noise), -expected.mean())
    torch.testing.assert_close(make(VAE, observation).iwae_bound(x, K, noise=noise), expected)


def test_one_sample_is_the_monte_carlo_elbo() -> None:
    model, x, noise = make(IWAE, num_samples=1), make_data("bernoulli"), normals(B, 1, L)
    expected = log_weights(model, x, noise)[:, 0]
    torch.testing.assert_close(model.iwae_bound(x, noise=noise), expected)
    drawn = [torch.Generator().manual_seed(5) for _ in range(2)]
    once = model.iwae_bound(x, 1, generator=drawn[0])
    mean, log_var = model.encode(x)
    z = dgm_fast.functional.reparameterize(mean, log_var, generator=drawn[1])
    log_q = Normal(mean, torch.exp(log_var / 2)).log_prob(z).sum(-1)
    torch.testing.assert_close(once, model.log_likelihood(x, z) + model.log_prior(z) - log_q)


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_log_likelihood_per_sample(observation: str) -> None:
    model, x, z = make(VAE, observation), make_data(observation), normals(B, K, L)
    expected = observed(model, z).log_prob(x.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(model.log_likelihood(x, z), expected)
    torch.testing.assert_close(model.log_likelihood(x, z[:, 0]), expected[:, 0])


@pytest.mark.parametrize("chunk_size", [1, 7, 19, 20, 1000, None])
def test_log_prob_does_not_depend_on_chunks(chunk_size: int | None) -> None:
    model, x, noise = make(VAE), make_data("bernoulli"), normals(B, 20, L)
    expected = torch.logsumexp(log_weights(model, x, noise), 1) - math.log(20)
    value = model.log_prob(x, 20, chunk_size=chunk_size, noise=noise)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-13, atol=0)
    assert not value.requires_grad
    bits = model.bits_per_dim(x, 20, chunk_size=chunk_size, noise=noise)
    torch.testing.assert_close(bits, -value / (D * math.log(2)))


def test_log_prob_encodes_once_and_bounds_the_decoder_batch() -> None:
    model, x = make(VAE), make_data("bernoulli")
    encoded, decoded = [], []
    model.encoder.register_forward_hook(lambda _, args, out: encoded.append(len(args[0])))
    model.decoder.register_forward_hook(lambda _, args, out: decoded.append(len(args[0])))
    model.log_prob(x, 50, chunk_size=8)
    assert encoded == [B]
    assert decoded == [8 * B] * 6 + [2 * B]
    decoded.clear()
    wide = VAE(3000, 2, hidden_sizes=(4,))
    wide.decoder.register_forward_hook(lambda _, args, out: decoded.append(len(args[0])))
    wide.log_prob(torch.zeros(20, 3000), 200)
    assert len(decoded) > 1
    assert max(decoded) * 3000 <= 1 << 22


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("model_class", [VAE, BetaVAE, IWAE])
def test_gradients_agree_with_the_reference_backend(
    model_class: type[VAE], observation: str
) -> None:
    def gradients(backend: str) -> list[Tensor]:
        model, x = make(model_class, observation).float(), make_data(observation)
        with dgm_fast.backend(backend):
            model.loss(x, generator=torch.Generator().manual_seed(2)).backward()
        return [p.grad for p in model.parameters()]

    for name, ours, expected in zip(
        dict(make(model_class, observation).named_parameters()),
        gradients("auto"),
        gradients("reference"),
        strict=True,
    ):
        assert torch.isfinite(ours).all(), name
        assert ours.abs().sum() > 0, name
        torch.testing.assert_close(ours, expected, rtol=2e-5, atol=2e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize("model_class", [VAE, IWAE])
def test_binary_data_of_any_dtype(model_class: type[VAE], dtype: torch.dtype) -> None:
    model, x = make(model_class), make_data("bernoulli")
    values = [
        model.loss(data, generator=torch.Generator().manual_seed(3)) for data in (x, x.to(dtype))
    ]
    torch.testing.assert_close(values[1], values[0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float64])
def test_class_indices_of_any_dtype(dtype: torch.dtype) -> None:
    model, x = make(IWAE, "categorical"), make_data("categorical")
    noise = normals(B, 5, L)
    torch.testing.assert_close(
        model.loss(x.to(dtype), noise=noise), model.loss(x, noise=noise), rtol=0, atol=0
    )


def test_float64_data_leaves_a_float32_model_in_float32() -> None:
    for observation in OBSERVATIONS:
        model, x = make(VAE, observation).float(), make_data(observation)
        assert model.elbo(x).dtype == torch.float32, observation
        assert model.log_prob(x, 3).dtype == torch.float32, observation


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_reduced_precision_gives_float32_bounds(observation: str) -> None:
    model, x = make(IWAE, observation).float(), make_data(observation)
    exact = model.loss(x, generator=torch.Generator().manual_seed(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(x, generator=torch.Generator().manual_seed(4))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.1, atol=0.1)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    converted = make(IWAE, observation).bfloat16()
    assert math.isfinite(converted.loss(x).item())


def test_image_shapes_are_flattened() -> None:
    model, x, noise = make(VAE), make_data("bernoulli"), normals(B, L)
    image = x.reshape(B, 1, 3, 4)
    torch.testing.assert_close(model.elbo(image, noise=noise), model.elbo(x, noise=noise))
    assert model.reconstruct(image).shape == image.shape
    assert model.encode(image)[0].shape == (B, L)


def test_gradient_reaches_data() -> None:
    model, x = make(IWAE, "gaussian"), make_data("gaussian").requires_grad_()
    noise = normals(B, 5, L)
    (ours,) = torch.autograd.grad(model.iwae_bound(x, noise=noise).sum(), x)
    expected = torch.logsumexp(log_weights(model, x, noise), 1).sum()
    torch.testing.assert_close(ours, torch.autograd.grad(expected, x)[0])


@pytest.mark.parametrize(
    ("model_class", "observation", "options"),
    [
        (VAE, "bernoulli", {}),
        (BetaVAE, "gaussian_shared", {}),
        (IWAE, "categorical", {}),
        (IWAE, "gaussian_full", {"estimator": "stl"}),
        (IWAE, "bernoulli", {"estimator": "dreg"}),
    ],
)
def test_loss_compiles_in_one_graph(
    model_class: type[VAE], observation: str, options: dict[str, Any]
) -> None:
    model, x = make(model_class, observation, **options), make_data(observation)
    parameters = list(model.parameters())
    results = []
    for loss in (model.loss, torch.compile(model.loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(6)
        value = loss(x)
        results.append((value, *torch.autograd.grad(value, parameters)))
    for compiled, eager in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(compiled, eager)


def test_forward_is_the_loss() -> None:
    model, x, noise = make(IWAE), make_data("bernoulli"), normals(B, 5, L)
    torch.testing.assert_close(model(x, noise=noise), model.loss(x, noise=noise))


def test_generator_makes_bounds_reproducible() -> None:
    model, x = make(IWAE), make_data("bernoulli")
    for method in (
        model.elbo,
        model.iwae_bound,
        model.loss,
        lambda x, **kw: model.log_prob(x, 9, **kw),
    ):
        first, again, other = (
            method(x, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_state_dict_round_trip() -> None:
    model = make(IWAE, "gaussian_shared", context_dim=2)
    torch.manual_seed(99)
    other = IWAE(D, L, hidden_sizes=(8, 7), context_dim=2, **OBSERVATIONS["gaussian_shared"])
    other = other.double()
    x, context, noise = make_data("gaussian"), normals(B, 2), normals(B, 5, L)
    expected = model.loss(x, context=context, noise=noise)
    assert not torch.equal(other.loss(x, context=context, noise=noise), expected)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.loss(x, context=context, noise=noise), expected)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    x = (torch.rand(64, 1) < 0.5) ^ (torch.rand(64, D) < 0.05)
    model = IWAE(D, 2, hidden_sizes=(16,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = model.log_prob(x, 200).mean()
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step()
    assert before < -8
    assert model.log_prob(x, 200).mean() > -5
