"""Gradient penalties and critic losses against plain autograd in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import critics
from helpers.critics import CRITICS, make, samples
from torch import Tensor, nn

from dgm_fast import functional as F

PENALTIES = ("gp", "r1", "r2")


def call(critic: Any, x: Tensor, labels: Tensor | None) -> Tensor:
    return critic(x) if labels is None else critic(x, labels)


def plain_penalty(
    critic: Any, inputs: dict[str, Tensor], penalty: str | None, **options: Any
) -> Tensor:
    """Penalty by the book, standard double backward."""
    if penalty is None:
        return inputs["real"].new_zeros(())
    real, fake = inputs["real"], inputs["fake"]
    eps = inputs["eps"].reshape(-1, *(1,) * (real.ndim - 1))
    x = {"gp": eps * real + (1 - eps) * fake, "r1": real, "r2": fake}[penalty]
    x = x.detach().requires_grad_()
    out = call(critic, x, inputs.get("labels"))
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    norms = grad.flatten(1).norm(2, dim=1)
    weight = options.get("weight", 10.0)
    if penalty != "gp":
        return 0.5 * weight * (norms**2).mean()
    excess = norms - options.get("center", 1.0)
    return weight * (excess.relu() if options.get("one_sided") else excess).square().mean()


def plain_loss(critic: Any, inputs: dict[str, Tensor], kind: str, penalty: str | None) -> Tensor:
    labels = inputs.get("labels")
    outs = [call(critic, inputs[name], labels) for name in ("real", "fake")]
    return F.discriminator_loss(*outs, kind) + plain_penalty(critic, inputs, penalty)


def gradients(critic: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*critic.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, grads, strict=True))


def assert_matches(
    value: Tensor,
    grads: dict[str, Tensor],
    want: Tensor,
    want_grads: dict[str, Tensor],
    limit: float,
) -> None:
    """Value and every parameter's gradient, each by its own norm."""
    assert abs(value.double() - want) <= limit * max(1.0, abs(want.item()))
    scale = max(g.norm().item() for g in want_grads.values())
    for name, wanted in want_grads.items():
        error = (grads[name].double() - wanted).norm().item()
        # A gradient that is zero but for roundings has no relative error: 1/B - 1/B of a last bias.
        allowed = limit * max(wanted.norm().item(), 1e-2 * scale) + torch.finfo(value.dtype).eps
        assert error <= allowed, f"{name}: {error:.2e}, allowed {allowed:.2e}"


LIMITS = {torch.float32: 3e-6, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("name", CRITICS)
def test_exact_penalty(name: str, penalty: str, dtype: torch.dtype) -> None:
    inputs = samples(name, dtype)
    critic, double = make(name, dtype), make(name, torch.float64)
    want = plain_penalty(double, samples(name, torch.float64), penalty)
    options: dict[str, Any] = {"method": "exact", "labels": inputs.get("labels")}
    if penalty == "gp":
        value = F.gradient_penalty(
            critic, inputs["real"], inputs["fake"], eps=inputs["eps"], **options
        )
    elif penalty == "r1":
        value = F.r1_penalty(critic, inputs["real"], **options)
    else:
        value = F.r2_penalty(critic, inputs["fake"], **options)
    assert_matches(value, gradients(critic, value), want, gradients(double, want), LIMITS[dtype])


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("center", [0.0, 0.5, 1.0])
def test_center_and_side(center: float, one_sided: bool) -> None:
    inputs = samples("mlp", torch.float64)
    critic = make("mlp", torch.float64)
    options = {"center": center, "one_sided": one_sided, "weight": 3.0}
    want = plain_penalty(critic, inputs, "gp", **options)
    value = F.gradient_penalty(
        critic, inputs["real"], inputs["fake"], eps=inputs["eps"].reshape(-1, 1), **options
    )
    assert_matches(value, gradients(critic, value), want, gradients(critic, want), 1e-12)


@pytest.mark.parametrize("penalty", [*PENALTIES, None])
@pytest.mark.parametrize("kind", ["wasserstein", "non_saturating", "hinge", "least_squares"])
@pytest.mark.parametrize("name", ["mlp", "conv", "conditional"])
def test_critic_loss(name: str, kind: str, penalty: str | None) -> None:
    inputs = samples(name)
    critic, double = make(name), make(name, torch.float64)
    want = plain_loss(double, samples(name, torch.float64), kind, penalty)
    value = F.critic_loss(critic, **inputs, kind=kind, penalty=penalty)
    assert_matches(value, gradients(critic, value), want, gradients(double, want), 3e-6)


def test_zero_gradient_critics() -> None:
    """A dead critic has norm 0: no NaN, and the subgradient 0."""
    inputs = samples("mlp")
    critic = make("mlp")
    with torch.no_grad():
        critic[-1].weight.zero_()
    for penalty, want in (("gp", 10.0), ("r1", 0.0)):
        value = F.critic_loss(critic, **inputs, penalty=penalty)
        outputs = critic(inputs["fake"]).mean() - critic(inputs["real"]).mean()
        assert value.item() == pytest.approx(want + outputs.item())
        for grad in gradients(critic, value).values():
            assert grad.isfinite().all()

    def constant(x: Tensor) -> Tensor:
        return (0.0 * x).sum(1)

    assert F.gradient_penalty(constant, inputs["real"], inputs["fake"]).item() == 10.0


def test_samples_have_norms_of_their_own() -> None:
    """One norm per sample over all dimensions, one eps per sample: peers' most common mistakes."""
    scale = torch.tensor([1.0, 3.0, 0.5]).reshape(3, 1, 1, 1)

    def critic(x: Tensor) -> Tensor:
        return (x * scale).flatten(1).sum(1)

    real, fake = torch.randn(2, 3, 2, 4, 4)
    norms = scale.flatten() * math.sqrt(32)
    value = F.gradient_penalty(critic, real, fake, weight=1.0)
    torch.testing.assert_close(value, (norms - 1).square().mean())

    def quadratic(x: Tensor) -> Tensor:
        return 0.5 * x.flatten(1).square().sum(1)

    eps = torch.tensor([0.0, 0.25, 1.0])
    mixed = eps.reshape(3, 1, 1, 1) * real + (1 - eps.reshape(3, 1, 1, 1)) * fake
    value = F.gradient_penalty(quadratic, real, fake, weight=1.0, center=0.0, eps=eps)
    torch.testing.assert_close(value, mixed.flatten(1).square().sum(1).mean())


def test_dragan_and_approximate_r1() -> None:
    critic = critics.make("silu", torch.float64)
    real = samples("silu", torch.float64, batch=512)["real"]
    noise, eps = torch.rand_like(real), torch.rand(512, dtype=torch.float64)
    value = F.dragan_penalty(critic, real, noise=noise, eps=eps)
    inputs = {"real": real, "fake": real + 0.5 * real.std() * noise, "eps": eps}
    torch.testing.assert_close(value, plain_penalty(critic, inputs, "gp"))
    # E |D(x) - D(x + sigma n)|^2 = sigma^2 E |grad|^2 + o(sigma^2)
    many = real.repeat(100, 1)
    sigma = 1e-3
    generator = torch.Generator().manual_seed(0)
    ours = F.approximate_r1_penalty(critic, many, weight=1.0, sigma=sigma, generator=generator)
    exact = F.r1_penalty(critic, real, weight=2.0)
    assert ours.item() / sigma**2 == pytest.approx(exact.item(), rel=0.03)


def test_inputs_are_detached_and_no_grad_is_respected() -> None:
    inputs = samples("mlp")
    critic = make("mlp")
    fake = inputs["fake"].requires_grad_()
    F.gradient_penalty(critic, inputs["real"], fake).backward()
    assert fake.grad is None
    assert all(p.grad is not None for n, p in critic.named_parameters() if n.endswith("weight"))
    with torch.no_grad():
        value = F.gradient_penalty(critic, inputs["real"], fake)
    assert not value.requires_grad


def test_batch_norm_is_refused_with_a_reason() -> None:
    critic = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    inputs = samples("mlp")
    for call_ in (F.gradient_penalty, F.critic_loss):
        with pytest.raises(ValueError, match="batch normalisation"):
            call_(critic, **inputs)
        assert call_(critic, **inputs, allow_batch_norm=True).isfinite()
        assert call_(critic.eval(), **inputs).isfinite()
        critic.train()
    with pytest.raises(ValueError, match="batch normalisation"):
        F.r1_penalty(critic, inputs["real"])


def test_bad_arguments() -> None:
    inputs = samples("mlp")
    real, fake = inputs["real"], inputs["fake"]
    critic = make("mlp")
    with pytest.raises(ValueError, match="fake has shape"):
        F.gradient_penalty(critic, real, fake[:2])
    with pytest.raises(ValueError, match="eps must hold one number per sample"):
        F.gradient_penalty(critic, real, fake, eps=torch.rand(6, 12))
    with pytest.raises(ValueError, match="method must be one of"):
        F.gradient_penalty(critic, real, fake, method="fast")
    with pytest.raises(TypeError, match="real must be floating point"):
        F.r1_penalty(critic, real.long())
    with pytest.raises(ValueError, match="one output"):
        F.r1_penalty(lambda x: x.sum(), real)
    with pytest.raises(ValueError, match="kind must be one of"):
        F.critic_loss(critic, real, fake, kind="gan")
    with pytest.raises(ValueError, match="penalty must be one of"):
        F.critic_loss(critic, real, fake, penalty="wgan-gp")
    with pytest.raises(ValueError, match="sigma must be positive"):
        F.approximate_r1_penalty(critic, real, sigma=0.0)
