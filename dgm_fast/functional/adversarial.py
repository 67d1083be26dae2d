"""Losses of generative adversarial networks and variational bounds of f-divergences."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dgm_fast import ops, reference
from dgm_fast.functional._checks import check_floating
from dgm_fast.reference import adversarial as formulas
from dgm_fast.reference.f_divergence import discrete_f_divergence, gaussian_f_divergence

KINDS = tuple(formulas.DISCRIMINATOR_TERMS)
DIVERGENCES = formulas.DIVERGENCES
FORMS = ("theoretical", "practical")

TensorOrPair = Tensor | tuple[Tensor, Tensor]


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, kind: str) -> Tensor:
    r"""Loss of a discriminator (critic) D, the mean over real plus the mean over fake outputs.

    ==================================  ===================================================
    minimax, non_saturating, kl         :math:`E\,s(-D(x)) + E\,s(D(G(z)))`, s = softplus
    wasserstein                         :math:`-E\,D(x) + E\,D(G(z))`
    hinge                               :math:`E\,[1 - D(x)]_+ + E\,[1 + D(G(z))]_+`
    least_squares                       :math:`\tfrac12 E (D(x) - 1)^2 + \tfrac12 E\,D(G(z))^2`
    ==================================  ===================================================

    Args:
        real_logits: outputs for real data, any shape (patch maps too), floating point. Logits: the sigmoid
            is in the loss. For a projection discriminator, its finished logits.
        fake_logits: outputs for generated data, any shape.
        kind: one of the rows above.

    Returns:
        A scalar, float32 (float64 if an argument is float64). Differentiable in both arguments.

    Raises:
        TypeError: if an argument is not a floating-point tensor.
        ValueError: if a tensor is empty, devices differ, or the kind is unknown.

    Sources: Goodfellow et al. (2014), eq. 1 and section 3; Arjovsky et al. (2017), eq. 2; Lim and Ye
    (2017); Mao et al. (2017), eq. 2.
    """
    _check_choice("kind", kind, KINDS)
    _check_outputs(real_logits=real_logits, fake_logits=fake_logits)
    real_term, fake_term = formulas.DISCRIMINATOR_TERMS[kind]
    return _loss(fake_logits, real_logits, fake_term, real_term)


def generator_loss(fake_logits: Tensor, kind: str) -> Tensor:
    r"""Loss of a generator G against the outputs of the discriminator (critic) D.

    ===========================  ===============================================================
    minimax                      :math:`-E\,s(D(G(z)))`, s = softplus: E log(1 - sigmoid D)
    non_saturating               :math:`E\,s(-D(G(z)))`
    kl                           the sum of the two, :math:`-E\,D(G(z))`
    wasserstein, hinge           :math:`-E\,D(G(z))`
    least_squares                :math:`\tfrac12 E (D(G(z)) - 1)^2`
    ===========================  ===============================================================

    With the optimal discriminator, D = log(p_data / p_model), the kind "kl" is KL(p_model || p_data).

    Args:
        fake_logits: outputs for generated data, any shape, floating point.
        kind: one of the rows above.

    Returns:
        A scalar, float32 (float64 for float64). Differentiable.

    Raises:
        TypeError: if ``fake_logits`` is not a floating-point tensor.
        ValueError: if it is empty or the kind is unknown.

    Sources: as :func:`discriminator_loss`; for "kl", Sonderby et al. (2017), section 2.
    """
    _check_choice("kind", kind, KINDS)
    _check_outputs(fake_logits=fake_logits)
    return _loss(fake_logits, None, formulas.GENERATOR_TERMS[kind], None)


def f_divergence_loss(
    real_out: Tensor, fake_out: Tensor, divergence: str, *, alpha: float = 2.0, pi: float = 0.5
) -> Tensor:
    r"""Discriminator's loss of f-GAN, the negative of the variational bound of D_f(P_data || P_model).

    .. math:: -E_{x \sim P} g_f(V(x)) + E_{x \sim Q} f^*(g_f(V(x)))

    with the output activation g_f and the conjugate f* of a row of Nowozin's tables; both are composed into
    one stable term. At the optimal V the loss is minus the divergence.

    Args:
        real_out: outputs V for real data, any shape, floating point; large means real.
        fake_out: outputs V for generated data, any shape.
        divergence: "total_variation", "kl", "reverse_kl", "pearson", "neyman", "squared_hellinger",
            "jeffrey", "jensen_shannon", "weighted_jensen_shannon", "gan" or "alpha".
        alpha: order of "alpha", not 0 or 1 (these limits are "reverse_kl" and "kl").
        pi: weight of "weighted_jensen_shannon", between 0 and 1.

    Returns:
        A scalar in nats, float32 (float64 if an argument is float64). Differentiable in both arguments.
        Exponentials continue along their tangent beyond e^64, so that it is finite at outputs of +-1e4.

    Raises:
        TypeError: if an argument is not a floating-point tensor.
        ValueError: if a tensor is empty, devices differ, or an option is out of range.

    Source: Nowozin, Cseke and Tomioka, "f-GAN" (2016), eq. 7, tables 2, 5 and 6. "jensen_shannon"
    is twice the average of two divergences to the mixture, as there.
    """
    _check_divergence(divergence, alpha, pi)
    _check_outputs(real_out=real_out, fake_out=fake_out)
    real_term, fake_term = formulas.f_divergence_terms(divergence)
    return _loss(fake_out, real_out, fake_term, real_term, alpha, pi)


def f_divergence_generator_loss(
    fake_out: Tensor,
    divergence: str,
    *,
    form: str = "theoretical",
    alpha: float = 2.0,
    pi: float = 0.5,
) -> Tensor:
    r"""Generator's loss of f-GAN.

    "theoretical" minimises the bound itself, :math:`-E f^*(g_f(V(G(z))))`; "practical" has the
    stronger gradient of :math:`-E\,g_f(V(G(z)))` while the discriminator is sure.

    Args:
        fake_out: outputs V for generated data, any shape, floating point.
        divergence: a row of :func:`f_divergence_loss`.
        form: "theoretical" or "practical".
        alpha: as there.
        pi: as there.

    Returns:
        A scalar, float32 (float64 for float64). Differentiable.

    Raises:
        TypeError: if ``fake_out`` is not a floating-point tensor.
        ValueError: if it is empty or an option is out of range.

    Source: Nowozin et al. (2016), eq. 7 and section 3.2.
    """
    _check_divergence(divergence, alpha, pi)
    _check_choice("form", form, FORMS)
    _check_outputs(fake_out=fake_out)
    term = formulas.f_divergence_generator_term(divergence, form)
    return _loss(fake_out, None, term, None, alpha, pi)


def f_divergence(
    p: TensorOrPair, q: TensorOrPair, divergence: str, *, alpha: float = 2.0, pi: float = 0.5
) -> Tensor:
    r"""D_f(P || Q) = E_q f(p / q) between known distributions, in nats.

    Args:
        p: probabilities [..., K] that sum to 1, or a diagonal Gaussian (mean, log_var), each [..., D].
        q: of the same kind and shape.
        divergence: a row of :func:`f_divergence_loss`.
        alpha: as there.
        pi: as there.

    Returns:
        [...], in the dtype of the arguments; inf where the divergence is. Between Gaussians, the total
        variation, the Jensen-Shannon divergences and "gan" are integrated numerically and need D = 1.

    Raises:
        TypeError: if an argument is of the wrong type, or only one is a pair.
        ValueError: if shapes differ or an option is out of range.

    Source: Nowozin et al. (2016), eq. 2 and table 1. The generator f defines the divergence where
    the published integral differs from it by a factor.
    """
    _check_divergence(divergence, alpha, pi)
    if isinstance(p, Tensor) != isinstance(q, Tensor):
        raise TypeError(
            "p and q must both be tensors of probabilities or both pairs (mean, log_var), got "
            f"{type(p).__name__} and {type(q).__name__}"
        )
    if isinstance(p, Tensor) and isinstance(q, Tensor):
        check_floating(p=p, q=q)
        _check_same_shape(p=p, q=q)
        return discrete_f_divergence(p, q, divergence, alpha=alpha, pi=pi)
    (mean_p, log_var_p), (mean_q, log_var_q) = p, q
    named = {"p[0]": mean_p, "p[1]": log_var_p, "q[0]": mean_q, "q[1]": log_var_q}
    check_floating(**named)
    _check_same_shape(**named)
    return gaussian_f_divergence(
        (mean_p, log_var_p), (mean_q, log_var_q), divergence, alpha=alpha, pi=pi
    )


def _loss(
    fake: Tensor,
    real: Tensor | None,
    fake_term: formulas.Term,
    real_term: formulas.Term | None,
    alpha: float = 2.0,
    pi: float = 0.5,
) -> Tensor:
    kernels = [ops.use_kernel(t, "adversarial") for t in (fake, real) if t is not None]
    if not all(kernels):
        return reference.adversarial_loss(fake, real, fake_term, real_term, alpha, pi)
    code = 0 if real_term is None else ops.term_code(real_term)
    return ops.adversarial_loss(fake, real, ops.term_code(fake_term), code, alpha, pi)[0]


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def _check_divergence(divergence: str, alpha: float, pi: float) -> None:
    _check_choice("divergence", divergence, DIVERGENCES)
    if not math.isfinite(alpha) or alpha in (0, 1):
        raise ValueError(
            f'alpha must be finite and neither 0 ("reverse_kl") nor 1 ("kl"), got {alpha!r}'
        )
    if not 0 < pi < 1:
        raise ValueError(f"pi must be between 0 and 1, got {pi!r}")


def _check_outputs(**outputs: Tensor) -> None:
    check_floating(**outputs)
    for name, value in outputs.items():
        if value.numel() == 0:
            raise ValueError(
                f"{name} must have at least one element, got shape {tuple(value.shape)}"
            )


def _check_same_shape(**tensors: Tensor) -> None:
    first, shape = next((name, t.shape) for name, t in tensors.items())
    for name, t in tensors.items():
        if t.shape != shape or not torch.is_tensor(t):
            raise ValueError(
                f"{name} has shape {tuple(t.shape)}, but {first} has shape {tuple(shape)}"
            )
