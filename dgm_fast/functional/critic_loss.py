"""The loss of a critic and its gradient penalty, together."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_fast.functional import _critic_chain as chain
from dgm_fast.functional import _penalty_methods as methods
from dgm_fast.functional._penalty_methods import Critic, Penalty
from dgm_fast.functional.adversarial import KINDS, discriminator_loss
from dgm_fast.reference.adversarial import DISCRIMINATOR_TERMS

PENALTIES = ("gp", "r1", "r2", None)


def critic_loss(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    kind: str = "wasserstein",
    penalty: str | None = "gp",
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
    r"""Discriminator's loss plus gradient penalty in one call, which shares work between the two.

    With the method "explicit" (:func:`gradient_penalty`; chosen where the critic allows it) the whole step
    is one op: one forward of real and generated samples, whose first layer gives that of the mixtures too;
    one signal back; one tangent forward; and one product per layer for the weight gradients of loss and
    penalty together. R1 and R2 share the signal with the loss; they need one output per sample. The
    gradients are formed with the value, so that backward hands them out, once.

    Args:
        critic: any callable: critic(x), or critic(x, labels) with ``labels``.
        real: data [B, ...], floating point. Detached.
        fake: generated data in the shape of ``real``. Detached: this is the critic's step.
        kind: of loss, as for :func:`discriminator_loss`.
        penalty: "gp" (:func:`gradient_penalty`), "r1" (:func:`r1_penalty`), "r2" (:func:`r2_penalty`) or
            None.
        weight: factor of the penalty, as there: lambda for "gp", gamma (with a half) for "r1" and "r2".
        center: of "gp".
        one_sided: of "gp".
        eps: of "gp", one number per sample; None draws them.
        labels: passed on to the critic, for real and generated data alike.
        method: as for :func:`gradient_penalty`.
        generator: source of ``eps``.
        allow_batch_norm: as for :func:`gradient_penalty`.
        scaler: as there.

    Returns:
        A scalar, float32 (float64 for float64). Differentiable in the critic's parameters.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes or devices do not match, an option is unknown, or the critic has batch
            normalisation.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    if penalty not in PENALTIES:
        raise ValueError(f"penalty must be one of {PENALTIES}, got {penalty!r}")
    methods.check_pair(real, fake)
    if penalty is not None:
        methods.check_batch_norm(critic, allow_batch_norm)
    real, fake = real.detach(), fake.detach()
    if penalty == "gp":
        eps = methods.interpolation_weights(real, eps, generator)
        options = Penalty(weight, center, one_sided, labels, scaler)
    else:
        eps = None
        options = Penalty(0.5 * weight, 0.0, False, labels, scaler)
    chosen = _choose(critic, real, fake, labels, penalty, method)
    if chosen == "explicit":
        terms = DISCRIMINATOR_TERMS[kind]
        return methods.explicit(critic, real, fake, eps, terms, penalty, options)
    if chosen == "exact" and penalty in ("r1", "r2"):
        return _shared_forward(critic, real, fake, kind, penalty, options)
    with methods.lean_derivatives():
        real_logits = methods.call_critic(critic, real, labels)
        fake_logits = methods.call_critic(critic, fake, labels)
    loss = discriminator_loss(real_logits, fake_logits, kind)
    if penalty is None:
        return loss
    if penalty == "gp":
        assert eps is not None
        at = methods.interpolated(real, fake, eps)
    else:
        at = real if penalty == "r1" else fake
    return loss + methods.penalty_at(critic, at, options, chosen)


def _choose(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    labels: Tensor | None,
    penalty: str | None,
    method: str,
) -> str:
    """The method, with what the explicit step of loss and penalty together needs besides."""
    chosen, _ = methods.choose(critic, real, labels, method)
    if chosen != "explicit":
        return chosen
    obstacle = None
    if real.dtype != fake.dtype:
        obstacle = f"real is {real.dtype}, fake {fake.dtype}"
    elif penalty in ("r1", "r2") and chain.outputs_per_sample(critic, real) != 1:
        obstacle = "R1 and R2 share the loss's signal only where a sample has one output"
    if obstacle is None:
        return chosen
    if method == "explicit":
        raise ValueError(f"method 'explicit' cannot take this critic: {obstacle}")
    return "compiled" if torch.compiler.is_compiling() else "exact"


def _shared_forward(
    critic: Critic, real: Tensor, fake: Tensor, kind: str, penalty: str, options: Penalty
) -> Tensor:
    """R1 or R2 by double backward through the outputs that the loss uses."""
    at, other = (real, fake) if penalty == "r1" else (fake, real)
    gradient, logits = methods.exact_gradient(critic, at, options)
    with methods.lean_derivatives():
        rest = methods.call_critic(critic, other, options.labels)
    outs = (logits, rest) if penalty == "r1" else (rest, logits)
    return discriminator_loss(*outs, kind) + options.of(gradient)
