"""Launchers of the NADE family: outputs of the conditionals, then their likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from dgm_fast.kernels.bernoulli import bernoulli_log_prob_bwd, bernoulli_log_prob_fwd
from dgm_fast.kernels.categorical import categorical_log_prob_bwd, categorical_log_prob_fwd
from dgm_fast.kernels.nade_mixture import mixture_log_prob_bwd, mixture_log_prob_fwd
from dgm_fast.kernels.nade_outputs import OutputGradients, Recurrence
from dgm_fast.kernels.nade_sampling import (
    nade_categorical_sample_fwd,
    nade_sample_fwd,
    rnade_sample_fwd,
)
from torch import Tensor

__all__ = [
    "nade_categorical_log_prob_bwd",
    "nade_categorical_log_prob_fwd",
    "nade_categorical_sample_fwd",
    "nade_log_prob_bwd",
    "nade_log_prob_fwd",
    "nade_sample_fwd",
    "rnade_log_prob_bwd",
    "rnade_log_prob_fwd",
    "rnade_sample_fwd",
]


def nade_log_prob_fwd(
    x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    logits = Recurrence(x, W, c, [(V, b)]).forward().squeeze(-1)
    return bernoulli_log_prob_fwd(logits, x, 1), logits


def nade_log_prob_bwd(
    grad: Tensor,
    log_prob: Tensor,
    logits: Tensor,
    x: Tensor,
    W: Tensor,
    c: Tensor,
    V: Tensor,
    b: Tensor,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    grad_logits = bernoulli_log_prob_bwd(grad, logits, x, 1, [True, False])[0]
    recurrence = Recurrence(_used(x, grad), W, c, [(V, b)])
    gradients = recurrence.backward(grad_logits.unsqueeze(-1), mask[0])
    return tuple(_wanted(gradients, W, c, [(V, b)], mask))


def nade_categorical_log_prob_fwd(
    x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    logits = Recurrence(x, W, c, [(V, b)]).forward()
    return categorical_log_prob_fwd(logits, x, 2, 1), logits


def nade_categorical_log_prob_bwd(
    grad: Tensor,
    log_prob: Tensor,
    logits: Tensor,
    x: Tensor,
    W: Tensor,
    c: Tensor,
    V: Tensor,
    b: Tensor,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    grad_logits = categorical_log_prob_bwd(grad, logits, x, 2, 1, [True])
    gradients = Recurrence(x, W, c, [(V, b)]).backward(grad_logits, mask[0])
    return tuple(_wanted(gradients, W, c, [(V, b)], mask))


def rnade_log_prob_fwd(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    V_logits: Tensor | None,
    b_logits: Tensor | None,
    V_means: Tensor,
    b_means: Tensor,
    V_log_scales: Tensor,
    b_log_scales: Tensor,
    activation_scale: Tensor | None,
    mixture: int,
) -> tuple[Tensor, Tensor]:
    layers = _layers(V_logits, b_logits, V_means, b_means, V_log_scales, b_log_scales)
    recurrence = Recurrence(x, W, c, layers, activation_scale, real=True)
    outputs = recurrence.forward()
    return mixture_log_prob_fwd(outputs, recurrence.x, V_logits is not None, mixture), outputs


def rnade_log_prob_bwd(
    grad: Tensor,
    log_prob: Tensor,
    outputs: Tensor,
    x: Tensor,
    W: Tensor,
    c: Tensor,
    V_logits: Tensor | None,
    b_logits: Tensor | None,
    V_means: Tensor,
    b_means: Tensor,
    V_log_scales: Tensor,
    b_log_scales: Tensor,
    activation_scale: Tensor | None,
    mixture: int,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    layers = _layers(V_logits, b_logits, V_means, b_means, V_log_scales, b_log_scales)
    recurrence = Recurrence(_used(x, grad), W, c, layers, activation_scale, real=True)
    grad_outputs, grad_x = mixture_log_prob_bwd(
        grad, outputs, recurrence.x, V_logits is not None, mixture, mask[0]
    )
    gradients = recurrence.backward(grad_outputs, mask[1], mask[0], mask[9])
    empty = grad.new_empty(0)
    heads = mask[3:9] if V_logits is not None else mask[5:9]
    rest = _wanted(gradients, W, c, layers, [*mask[1:3], *heads])
    if V_logits is None:
        rest[2:2] = [empty, empty]
    if grad_x is not None and gradients.x is not None:
        grad_x = grad_x.add_(gradients.x).to(x.dtype)
    scale = activation_scale
    return (
        empty if grad_x is None else grad_x,
        *rest,
        empty if gradients.scale is None or scale is None else gradients.scale.to(scale.dtype),
    )


def _used(x: Tensor, grad: Tensor) -> Tensor:
    """Data with zeros in samples without weight, which need none."""
    return torch.where((grad != 0).unsqueeze(-1), x, 0)


def _layers(
    V_logits: Tensor | None, b_logits: Tensor | None, *others: Tensor
) -> list[tuple[Tensor, Tensor]]:
    layers = [(others[0], others[1]), (others[2], others[3])]
    if V_logits is not None and b_logits is not None:
        layers.insert(0, (V_logits, b_logits))
    return layers


def _wanted(
    gradients: OutputGradients,
    W: Tensor,
    c: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    mask: Sequence[bool],
) -> list[Tensor]:
    """Gradients of W, c and each layer's weight and bias, in their shapes and dtypes."""
    empty = gradients.c.new_empty(0)
    out = [empty] * len(mask)
    if gradients.W is not None:
        out[0] = gradients.W.permute(2, 0, 1).reshape(W.shape).to(W.dtype).contiguous()
    if mask[1]:
        out[1] = gradients.c.to(c.dtype)
    widths = [b.numel() // b.shape[0] for _, b in layers]
    by_layer = zip(gradients.V.split(widths, 1), gradients.b.split(widths, 1), strict=True)
    for i, ((V, b), (grad_V, grad_b)) in enumerate(zip(layers, by_layer, strict=True)):
        if mask[2 + 2 * i]:
            out[2 + 2 * i] = grad_V.reshape(V.shape).to(V.dtype).contiguous()
        if mask[3 + 2 * i]:
            out[3 + 2 * i] = grad_b.reshape(b.shape).to(b.dtype).contiguous()
    return out
