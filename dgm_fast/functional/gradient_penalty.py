"""Gradient penalties of critics: value and every parameter's gradient exact."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_fast.functional import _penalty_methods as methods
from dgm_fast.functional._penalty_methods import Critic, Penalty


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
    scaler: torch.amp.GradScaler | None = None,
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
        method: how the gradient is computed.

            * "exact": double backward, in which (not in-place) leaky ReLUs have no second derivative.
            * "explicit": critics that are chains of ``Linear``, ``Conv2d``, ``LeakyReLU``, ``ReLU`` and
              ``Flatten``: the closed form of the penalty's gradient, all in one op. Differentiable once.
            * "compiled": one function compiled by ``torch.compile``, or inlined into the compiled function
              that calls this one. The critic must be a module without a Python ``autograd.Function``.
            * "finite_difference": the exact value, with a gradient by central differences. Needs first
              derivatives only: critics with fused attention, recurrent layers, sharding. Exact to about
              1e-4 for smooth critics; with ReLUs it is another objective: it also sees their kinks
              move.
            * "auto": "explicit" where it can, else "compiled" for compiled critics, else "exact";
              :func:`explain_gradient_penalty` says which and why.
        generator: source of ``eps``.
        allow_batch_norm: take a critic with batch normalisation in training mode, whose samples' gradients
            are mixed.
        scaler: scales the inner gradient of a critic under float16 autocast, where it would vanish.

    Returns:
        A scalar, float32 (float64 for float64). Differentiable in the critic's parameters.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes or devices do not match, an option is unknown, or the critic has batch
            normalisation.

    Sources: Gulrajani et al., "Improved Training of Wasserstein GANs" (2017), eq. 3; Petzka et al. (2018),
    eq. 8, for ``one_sided``.
    """
    methods.check_pair(real, fake)
    methods.check_batch_norm(critic, allow_batch_norm)
    eps = methods.interpolation_weights(real, eps, generator)
    x_hat = methods.interpolated(real, fake, eps)
    penalty = Penalty(weight, center, one_sided, labels, scaler)
    return methods.penalty_at(critic, x_hat, penalty, method)


def r1_penalty(
    critic: Critic,
    real: Tensor,
    *,
    weight: float = 10.0,
    labels: Tensor | None = None,
    method: str = "auto",
    allow_batch_norm: bool = False,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    r"""Zero-centred gradient penalty at real data, :math:`\tfrac\gamma2 E \|\nabla_x D(x)\|^2`.

    Args:
        critic: as for :func:`gradient_penalty`.
        real: data [B, ...], floating point. Detached.
        weight: the factor gamma.
        labels: passed on to the critic.
        method: as for :func:`gradient_penalty`.
        allow_batch_norm: as there.
        scaler: as there.

    Returns:
        A scalar, float32 (float64 for float64). Differentiable in the critic's parameters.

    Raises:
        TypeError, ValueError: as :func:`gradient_penalty`.

    Source: Mescheder et al., "Which Training Methods for GANs do actually Converge?" (2018), eq. 9.
    """
    methods.check_samples("real", real)
    methods.check_batch_norm(critic, allow_batch_norm)
    penalty = Penalty(0.5 * weight, 0.0, False, labels, scaler)
    return methods.penalty_at(critic, real.detach(), penalty, method)


def r2_penalty(
    critic: Critic,
    fake: Tensor,
    *,
    weight: float = 10.0,
    labels: Tensor | None = None,
    method: str = "auto",
    allow_batch_norm: bool = False,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    r"""Zero-centred gradient penalty at generated data, :math:`\tfrac\gamma2 E \|\nabla_x D(G(z))\|^2`.

    Arguments, result and errors are those of :func:`r1_penalty`. Source: Mescheder et al. (2018), eq. 10.
    """
    methods.check_samples("fake", fake)
    methods.check_batch_norm(critic, allow_batch_norm)
    penalty = Penalty(0.5 * weight, 0.0, False, labels, scaler)
    return methods.penalty_at(critic, fake.detach(), penalty, method)


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
    methods.check_samples("real", real)
    real = real.detach()
    if noise is None:
        noise = torch.rand(real.shape, dtype=real.dtype, device=real.device, generator=generator)
    else:
        methods.check_pair(real, noise, "noise")
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
    methods.check_samples("real", real)
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma!r}")
    real = real.detach()
    if noise is None:
        noise = torch.randn(real.shape, dtype=real.dtype, device=real.device, generator=generator)
    else:
        methods.check_pair(real, noise, "noise")
    count = real.shape[0]
    both = torch.cat([real, real + sigma * noise])
    out = methods.call_critic(critic, both, None if labels is None else torch.cat([labels, labels]))
    difference = (out[:count].float() if out.dtype.itemsize < 4 else out[:count]) - out[count:]
    return weight * difference.reshape(count, -1).square().sum(1).mean()


def explain_gradient_penalty(
    critic: Critic, real: Tensor, *, labels: Tensor | None = None, method: str = "auto"
) -> tuple[str, str]:
    """(method, reason) that a penalty of this critic uses on inputs like ``real``.

    Raises:
        ValueError: if the method asked for cannot serve the critic; the message says why.
    """
    methods.check_samples("real", real)
    return methods.choose(critic, real, labels, method)
