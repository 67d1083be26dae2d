"""Gradient penalties of critics: value and every parameter's gradient exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast import reference
from dgm_fast.functional._checks import check_floating

Critic = Callable[..., Tensor]
METHODS = ("auto", "exact")


def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    weight: float = 10.0,
    center: float = 1.0,
    one_sided: bool = False,
    eps: Tensor | None = None,
    labels: Tensor | None = None,
    method: str = "auto",
    generator: torch.Generator | None = None,
    allow_batch_norm: bool = False,
) -> Tensor:
    r"""Penalty on the gradient of a critic between real and generated data (WGAN-GP).

    .. math:: \lambda\, E_{\hat x} (\|\nabla_{\hat x} D(\hat x)\|_2 - c)^2, \quad
        \hat x = \epsilon x + (1 - \epsilon) G(z), \quad \epsilon \sim U(0, 1)

    The norm is taken per sample over all its dimensions, and there is one :math:`\epsilon` per sample.

    Args:
        critic: any callable: critic(x), or critic(x, labels) with ``labels``. Its outputs of one sample (a
            number or a map) are summed.
        real: data [B, ...], floating point. Detached.
        fake: generated data in the shape of ``real``. Detached.
        weight: the factor lambda.
        center: the norm c that is not penalised.
        one_sided: count norms above c only (WGAN-LP).
        eps: the interpolation weights, [B] or [B, 1, ...]; None draws them.
        labels: passed on to the critic.
        method: how the gradient is computed; see :func:`explain_gradient_penalty`.
        generator: source of ``eps``.
        allow_batch_norm: take a critic with batch normalisation in training mode, whose samples' gradients
            are mixed.

    Returns:
        A scalar, float32 (float64 for float64). Differentiable in the critic's parameters.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes or devices do not match, an option is unknown, or the critic has batch
            normalisation.

    Sources: Gulrajani et al., "Improved Training of Wasserstein GANs" (2017), eq. 3; Petzka et al. (2018),
    eq. 8, for ``one_sided``.
    """
    check_method(method)
    check_pair(real, fake)
    check_batch_norm(critic, allow_batch_norm)
    eps = interpolation_weights(real, eps, generator)
    x_hat = reference.interpolate(real.detach(), fake.detach(), eps)
    return _penalty_at(critic, x_hat, weight, center, one_sided, labels)


def r1_penalty(
    critic: Critic,
    real: Tensor,
    *,
    weight: float = 10.0,
    labels: Tensor | None = None,
    method: str = "auto",
    allow_batch_norm: bool = False,
) -> Tensor:
    r"""Zero-centred gradient penalty at real data, :math:`\tfrac\gamma2 E \|\nabla_x D(x)\|^2`.

    Args:
        critic: as for :func:`gradient_penalty`.
        real: data [B, ...], floating point. Detached.
        weight: the factor gamma.
        labels: passed on to the critic.
        method: as for :func:`gradient_penalty`.
        allow_batch_norm: as there.

    Returns:
        A scalar, float32 (float64 for float64). Differentiable in the critic's parameters.

    Raises:
        TypeError, ValueError: as :func:`gradient_penalty`.

    Source: Mescheder et al., "Which Training Methods for GANs do actually Converge?" (2018), eq. 9.
    """
    check_method(method)
    check_samples("real", real)
    check_batch_norm(critic, allow_batch_norm)
    return _penalty_at(critic, real.detach(), 0.5 * weight, 0.0, False, labels)


def r2_penalty(
    critic: Critic,
    fake: Tensor,
    *,
    weight: float = 10.0,
    labels: Tensor | None = None,
    method: str = "auto",
    allow_batch_norm: bool = False,
) -> Tensor:
    r"""Zero-centred gradient penalty at generated data, :math:`\tfrac\gamma2 E \|\nabla_x D(G(z))\|^2`.

    Arguments, result and errors are those of :func:`r1_penalty`. Source: Mescheder et al. (2018), eq. 10.
    """
    check_method(method)
    check_samples("fake", fake)
    check_batch_norm(critic, allow_batch_norm)
    return _penalty_at(critic, fake.detach(), 0.5 * weight, 0.0, False, labels)


def dragan_penalty(
    critic: Critic,
    real: Tensor,
    *,
    weight: float = 10.0,
    center: float = 1.0,
    noise: Tensor | None = None,
    eps: Tensor | None = None,
    labels: Tensor | None = None,
    method: str = "auto",
    generator: torch.Generator | None = None,
    allow_batch_norm: bool = False,
) -> Tensor:
    r"""Gradient penalty around real data (DRAGAN), at
    :math:`\hat x = x + (1 - \epsilon)\,\tfrac12 \sigma\,u` with the standard deviation :math:`\sigma` of
    the batch and :math:`u \sim U(0, 1)` per element.

    Args:
        critic: as for :func:`gradient_penalty`.
        real: data [B, ...], floating point. Detached.
        weight: the factor lambda.
        center: the norm that is not penalised.
        noise: the numbers u, in the shape of ``real``; None draws them.
        eps: one number per sample, [B] or [B, 1, ...]; None draws them.
        labels: passed on to the critic.
        method: as for :func:`gradient_penalty`.
        generator: source of ``noise`` and ``eps``.
        allow_batch_norm: as there.

    Returns:
        A scalar, float32 (float64 for float64). Differentiable in the critic's parameters.

    Raises:
        TypeError, ValueError: as :func:`gradient_penalty`.

    Source: Kodali et al., "On Convergence and Stability of GANs" (2017), eq. 5 and algorithm 1.
    """
    check_samples("real", real)
    real = real.detach()
    if noise is None:
        noise = torch.rand(real.shape, dtype=real.dtype, device=real.device, generator=generator)
    else:
        check_pair(real, noise, "noise")
    perturbed = real + 0.5 * real.std() * noise
    return gradient_penalty(
        critic,
        real,
        perturbed,
        weight=weight,
        center=center,
        eps=eps,
        labels=labels,
        method=method,
        generator=generator,
        allow_batch_norm=allow_batch_norm,
    )


def approximate_r1_penalty(
    critic: Critic,
    real: Tensor,
    *,
    weight: float = 100.0,
    sigma: float = 0.01,
    noise: Tensor | None = None,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Approximate R1, :math:`\lambda E |D(x) - D(x + \sigma n)|^2` with normal n.

    For a critic that is smooth at the scale sigma it is R1 with weight :math:`2 \lambda \sigma^2`, along
    one random direction a sample. It needs first derivatives only: critics with fused attention,
    checkpointing, sharding or compiled code can be penalised.

    Args:
        critic: as for :func:`gradient_penalty`; squares of a map of outputs are summed per sample.
        real: data [B, ...], floating point. Detached. R2: pass generated data.
        weight: the factor lambda.
        sigma: standard deviation of the perturbation, above 0.
        noise: the normals n, in the shape of ``real``; None draws them.
        labels: passed on to the critic.
        generator: source of ``noise``.

    Returns:
        A scalar, float32 (float64 for float64). Differentiable in the critic's parameters.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes or devices do not match or sigma is not positive.

    Source: Lin et al., "Diffusion Adversarial Post-Training for One-Step Video Generation" (2025), eq. 4.
    """
    check_samples("real", real)
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma!r}")
    real = real.detach()
    if noise is None:
        noise = torch.randn(real.shape, dtype=real.dtype, device=real.device, generator=generator)
    else:
        check_pair(real, noise, "noise")
    count = real.shape[0]
    both = torch.cat([real, real + sigma * noise])
    out = call_critic(critic, both, None if labels is None else torch.cat([labels, labels]))
    difference = (out[:count].float() if out.dtype.itemsize < 4 else out[:count]) - out[count:]
    return weight * difference.flatten(1).square().sum(1).mean()


def call_critic(critic: Critic, x: Tensor, labels: Tensor | None) -> Tensor:
    out = critic(x) if labels is None else critic(x, labels)
    if not isinstance(out, Tensor):
        raise TypeError(f"critic must return a tensor, got {type(out).__name__}")
    if out.ndim == 0 or out.shape[0] != x.shape[0]:
        raise ValueError(
            f"critic must return one output (or map) per sample, [{x.shape[0]}, ...], "
            f"got shape {tuple(out.shape)}"
        )
    return out


def _penalty_at(
    critic: Critic,
    x: Tensor,
    weight: float,
    center: float,
    one_sided: bool,
    labels: Tensor | None,
) -> Tensor:
    """The penalty by double backward. ``x`` is a tensor of our own."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = call_critic(critic, x, labels)
        # Samples do not mix: the gradient of the sum holds each sample's own.
        (grad,) = torch.autograd.grad(out.sum(), x, create_graph=differentiable)
    return reference.norm_penalty(grad, weight, center, one_sided)[0]


def interpolation_weights(
    real: Tensor, eps: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """One weight per sample, [B], in the dtype sums are formed in."""
    count = real.shape[0]
    if eps is None:
        dtype = torch.float64 if real.dtype == torch.float64 else torch.float32
        return torch.rand(count, dtype=dtype, device=real.device, generator=generator)
    check_floating(real=real, eps=eps)
    if generator is not None:
        raise ValueError("eps and generator exclude each other")
    if eps.shape not in ((count,), (count, *(1,) * (real.ndim - 1))):
        raise ValueError(
            f"eps must hold one number per sample, [{count}] or [{count}, 1, ...], "
            f"got shape {tuple(eps.shape)}"
        )
    return eps.detach().reshape(count)


def check_method(method: str, allowed: tuple[str, ...] = METHODS) -> None:
    if method not in allowed:
        raise ValueError(f"method must be one of {allowed}, got {method!r}")


def check_samples(name: str, value: Any) -> None:
    check_floating(**{name: value})
    if value.ndim == 0 or value.numel() == 0:
        raise ValueError(f"{name} must hold samples, [B, ...], got shape {tuple(value.shape)}")


def check_pair(real: Tensor, fake: Tensor, name: str = "fake") -> None:
    check_samples("real", real)
    check_floating(real=real, **{name: fake})
    if fake.shape != real.shape:
        raise ValueError(
            f"{name} has shape {tuple(fake.shape)}, but real has shape {tuple(real.shape)}"
        )


def check_batch_norm(critic: Critic, allowed: bool) -> None:
    """Batch normalisation couples samples: the gradient of the summed outputs is no sample's own."""
    if allowed or not isinstance(critic, nn.Module):
        return
    for name, module in critic.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"critic has batch normalisation ({name or type(module).__name__}), which makes every "
                "output depend on the whole batch: its gradient penalty is not that of the samples. Use "
                "LayerNorm or InstanceNorm, or pass allow_batch_norm=True"
            )
