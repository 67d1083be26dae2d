"""The loss of a critic and its gradient penalty, together."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_fast.functional import gradient_penalty as penalties
from dgm_fast.functional.adversarial import KINDS, discriminator_loss
from dgm_fast.functional.gradient_penalty import Critic

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
) -> Tensor:
    r"""Discriminator's loss plus gradient penalty in one call, which shares work between the two.

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
    penalties.check_method(method)
    penalties.check_pair(real, fake)
    real, fake = real.detach(), fake.detach()
    real_logits = penalties.call_critic(critic, real, labels)
    fake_logits = penalties.call_critic(critic, fake, labels)
    loss = discriminator_loss(real_logits, fake_logits, kind)
    if penalty == "gp":
        loss = loss + penalties.gradient_penalty(
            critic,
            real,
            fake,
            weight=weight,
            center=center,
            one_sided=one_sided,
            eps=eps,
            labels=labels,
            method=method,
            generator=generator,
            allow_batch_norm=allow_batch_norm,
        )
    elif penalty is not None:
        at = real if penalty == "r1" else fake
        loss = loss + penalties.r1_penalty(
            critic,
            at,
            weight=weight,
            labels=labels,
            method=method,
            allow_batch_norm=allow_batch_norm,
        )
    return loss
