"""The adversarial models: losses, whose gradients they are, networks, sampling."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.functional.adversarial import DIVERGENCES, FORMS
from dgm_fast.models import FGAN, GAN, KLGAN, WGAN, WGANGP, ConditionalGAN, NonSaturatingGAN

N, D, CLASSES = 7, 5, 3
PLAIN = (GAN, NonSaturatingGAN, KLGAN, WGAN, WGANGP, FGAN)


def make(kind: type[GAN], **kwargs) -> GAN:
    torch.manual_seed(0)
    shape = {} if "image_shape" in kwargs else {"num_dims": D}
    if kind is ConditionalGAN:
        kwargs.setdefault("num_classes", CLASSES)
    return kind(**shape, latent_dim=4, hidden_sizes=(8, 8), channels=4, **kwargs)


def labels_for(model: GAN, n: int = N) -> Tensor | None:
    return None if model.num_classes is None else torch.arange(n) % CLASSES


def data(model: GAN, n: int = N) -> Tensor:
    return torch.rand(n, *model.event_shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("kind", [*PLAIN, ConditionalGAN])
def test_each_loss_reaches_its_own_network(kind: type[GAN]) -> None:
    model = make(kind)
    model.discriminator_loss(data(model), labels_for(model)).backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in model.discriminator.parameters()
    )
    assert any(p.grad.abs().sum() > 0 for p in model.discriminator.parameters())
    model.zero_grad()
    loss = model.generator_loss(N, labels_for(model))
    loss.backward()
    assert loss.ndim == 0 and loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.generator.parameters())
    assert any(p.grad.abs().sum() > 0 for p in model.generator.parameters())


@pytest.mark.parametrize("kind", [GAN, NonSaturatingGAN, KLGAN, WGAN])
def test_losses_are_those_of_the_logits(kind: type[GAN]) -> None:
    model, noise = make(kind), torch.randn(N, 4)
    x = data(model)
    with torch.no_grad():
        real, fake = (model.discriminator(t).flatten() for t in (x, model.generator(noise)))
    expected = {
        "minimax": (
            -(torch.sigmoid(real).log() + torch.sigmoid(-fake).log()).mean(),
            torch.sigmoid(-fake).log().mean(),
        ),
        "non_saturating": (
            -(torch.sigmoid(real).log() + torch.sigmoid(-fake).log()).mean(),
            -torch.sigmoid(fake).log().mean(),
        ),
        "kl": (-(torch.sigmoid(real).log() + torch.sigmoid(-fake).log()).mean(), -fake.mean()),
        "wasserstein": (fake.mean() - real.mean(), -fake.mean()),
    }[kind.loss_kind]
    torch.testing.assert_close(model.discriminator_loss(x, noise=noise), expected[0])
    torch.testing.assert_close(model.generator_loss(N, noise=noise), expected[1])


def test_wgan_gp_adds_the_penalty() -> None:
    model, noise = make(WGANGP, weight=3.0), torch.randn(N, 4)
    x = data(model)
    fake = model.generator(noise).detach()
    torch.manual_seed(5)
    total = model.discriminator_loss(x, noise=noise)
    torch.manual_seed(5)
    expected = functional.critic_loss(model.discriminator, x, fake, penalty="gp", weight=3.0)
    torch.testing.assert_close(total, expected)
    plain = model.discriminator(fake).mean() - model.discriminator(x).mean()
    assert total > plain


def test_wgan_clips_after_an_update_and_at_the_start() -> None:
    model = make(WGAN, clip=0.05)
    assert all(p.abs().max() <= 0.05 for p in model.discriminator.parameters())
    with torch.no_grad():
        for p in model.discriminator.parameters():
            p.fill_(1.0)
    model.after_discriminator_update()
    assert all((p == 0.05).all() for p in model.discriminator.parameters())


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("form", FORMS)
def test_every_divergence_trains(divergence: str, form: str) -> None:
    model = make(FGAN, divergence=divergence, form=form)
    losses = model.discriminator_loss(data(model)), model.generator_loss(N)
    assert all(loss.isfinite() for loss in losses)


@pytest.mark.parametrize(
    ("shape", "architecture"),
    [((8, 8), None), ((1, 9, 14), "dcgan"), ((3, 12, 8), None), ((3, 5, 4), "mlp"), ((5, 4), None)],
)
@pytest.mark.parametrize("kind", [WGANGP, ConditionalGAN])
def test_images_of_any_size(
    kind: type[GAN], shape: tuple[int, ...], architecture: str | None
) -> None:
    model = make(kind, image_shape=shape, architecture=architecture)
    event = shape if len(shape) == 3 else (1, *shape)
    model.discriminator_loss(data(model), labels_for(model)).backward()
    model.generator_loss(N, labels_for(model)).backward()
    # Rows of a data set come flat.
    assert model.discriminator_loss(data(model).flatten(1), labels_for(model)).isfinite()
    samples = model.sample(6)
    assert samples.shape == (6, *event)
    assert samples.abs().max() <= 1


def test_projection_discriminator_adds_the_inner_product() -> None:
    model = make(ConditionalGAN)
    network = model.discriminator
    x = data(model)
    h = network.features(x)
    values = torch.stack(
        [network(x, torch.full((N,), label)) for label in range(CLASSES)], 1
    )  # [N, C]
    expected = network.output(h) + h @ network.embedding.weight.T
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-4)


def test_range_of_the_data_is_that_of_the_samples() -> None:
    model = make(GAN, data_range=(0.0, 16.0))
    samples = model.sample(200)
    assert samples.min() >= 0 and samples.max() <= 16
    x = torch.arange(17).repeat(2, 1)[:, :D]
    torch.testing.assert_close(model.denormalize(model.normalize(x)), x.float())
    assert model.normalize(torch.full((1, D), 16, dtype=torch.uint8)).eq(1).all()
    free = make(GAN, data_range=None)
    torch.testing.assert_close(free.normalize(x), x.float())
    assert not any(isinstance(m, nn.Tanh) for m in free.generator.modules())


@pytest.mark.parametrize("kind", [GAN, ConditionalGAN])
def test_samples_follow_noise_labels_and_generator(kind: type[GAN]) -> None:
    model = make(kind)
    noise, labels = torch.randn(N, 4), labels_for(model)
    first = model.sample(N, noise=noise, labels=labels)
    torch.testing.assert_close(model.sample(N, noise=noise, labels=labels), first)
    seeded = [model.sample(3, generator=torch.Generator().manual_seed(2)) for _ in range(2)]
    torch.testing.assert_close(*seeded, rtol=0, atol=0)
    if labels is not None:
        assert not torch.equal(model.sample(N, noise=noise, labels=(labels + 1) % CLASSES), first)
    assert not first.requires_grad
    assert model.sample(0).shape == (0, D)


def test_the_average_follows_the_generator() -> None:
    model = make(GAN, average_decay=0.9)
    noise = torch.randn(N, 4)
    model.update_average()  # the first one copies
    old = copy.deepcopy(model.generator.state_dict())
    with torch.no_grad():
        for p in model.generator.parameters():
            p.add_(1.0)
    model.update_average()
    for name, value in model.average.module.state_dict().items():
        torch.testing.assert_close(value, old[name] + 0.1)
    averaged, raw = (model.sample(N, noise=noise, averaged=a) for a in (True, False))
    assert not torch.equal(averaged, raw)
    plain = make(GAN, average_decay=None)
    torch.testing.assert_close(
        plain.sample(N, noise=noise), plain.denormalize(plain.generator(noise)).detach()
    )


def test_state_dict_brings_back_samples() -> None:
    model = make(WGANGP, image_shape=(8, 8))
    model.generator_loss(N).backward()  # moves the batch statistics
    model.update_average()
    other = make(WGANGP, image_shape=(8, 8))
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(model.state_dict())
    noise = torch.randn(N, 4)
    torch.testing.assert_close(other.sample(N, noise=noise), model.sample(N, noise=noise))


def test_networks_of_ones_own() -> None:
    generator = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, D))
    critic = nn.Sequential(nn.Linear(D, 32), nn.SiLU(), nn.Linear(32, 1))
    model = WGANGP(generator, critic, num_dims=D, latent_dim=4, data_range=None)
    model.discriminator_loss(data(model)).backward()
    assert all(p.grad is not None for p in critic[:-1].parameters())
    assert model.generator is generator and model.discriminator is critic


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "one of image_shape and num_dims", lambda: GAN()),
        (
            ValueError,
            "one of image_shape and num_dims",
            lambda: GAN(image_shape=(8, 8), num_dims=3),
        ),
        (ValueError, "image_shape must be", lambda: GAN(image_shape=(1, 2, 3, 4))),
        (ValueError, "architecture", lambda: GAN(num_dims=3, architecture="dcgan")),
        (ValueError, "architecture", lambda: GAN(num_dims=3, architecture="resnet")),
        (ValueError, "data_range", lambda: GAN(num_dims=3, data_range=(1.0, 1.0))),
        (ValueError, "average_decay", lambda: GAN(num_dims=3, average_decay=1.0)),
        (ValueError, "clip", lambda: WGAN(num_dims=3, clip=0.0)),
        (ValueError, "divergence", lambda: FGAN(num_dims=3, divergence="huh")),
        (ValueError, "form", lambda: FGAN(num_dims=3, form="huh")),
        (ValueError, "kind", lambda: ConditionalGAN(num_dims=3, num_classes=2, loss_kind="huh")),
        (
            ValueError,
            "labels were given",
            lambda: make(GAN).sample(2, labels=torch.zeros(2).long()),
        ),
        (
            ValueError,
            "labels are missing",
            lambda: make(ConditionalGAN).discriminator_loss(torch.zeros(2, D)),
        ),
        (
            TypeError,
            "labels must be",
            lambda: make(ConditionalGAN).sample(2, labels=torch.zeros(2)),
        ),
        (
            ValueError,
            "labels must have",
            lambda: make(ConditionalGAN).sample(2, labels=torch.zeros(3).long()),
        ),
        (ValueError, "noise", lambda: make(GAN).sample(2, noise=torch.zeros(3, 4))),
        (ValueError, "x must have", lambda: make(GAN).discriminator_loss(torch.zeros(3, D + 1))),
    ],
)
def test_bad_arguments(error: type[Exception], match: str, call) -> None:
    with pytest.raises(error, match=match):
        call()


def test_two_narrow_gaussians() -> None:
    """Disjoint narrow Gaussians: the minimax generator has no gradient, the others have.

    The discriminator is sure (logits +-30), as an optimal one would be.
    """
    fake_logits = torch.full((N,), -30.0, requires_grad=True)
    slopes = {}
    for kind in ("minimax", "non_saturating", "kl", "wasserstein"):
        (gradient,) = torch.autograd.grad(functional.generator_loss(fake_logits, kind), fake_logits)
        slopes[kind] = gradient.abs().sum().item()
    assert slopes["minimax"] < 1e-12
    assert all(
        math.isclose(slopes[k], 1.0, rel_tol=1e-5) for k in ("non_saturating", "kl", "wasserstein")
    )
