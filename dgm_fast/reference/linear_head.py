"""Reference likelihoods of decoders that end in a linear layer, in nats per sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast.reference._common import compute_dtype
from dgm_fast.reference.likelihood import bernoulli_log_prob, categorical_log_prob


def linear_bernoulli_log_prob(h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Bernoulli log-probability of x under logits weight h + bias."""
    return bernoulli_log_prob(_linear(h, weight, bias), x)


def linear_categorical_log_prob(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    *,
    num_classes: int,
    packing: str = "variable",
) -> Tensor:
    """Categorical log-probability of x under logits weight h + bias.

    ``packing`` names the order of the rows of ``weight``: "variable" has class c of entry d in row
    d C + c, "class" in row c D + d; "pixel" has one row a class, applied at each of the last
    dimensions of h [B, H, S].
    """
    if packing == "pixel":
        logits = _linear(h.movedim(1, -1), weight, bias).movedim(-1, 1)  # [B, C, S]
        return categorical_log_prob(logits, x, class_dim=1)
    logits = _linear(h, weight, bias)
    if packing == "class":
        return categorical_log_prob(logits.unflatten(-1, (num_classes, -1)), x, class_dim=-2)
    logits = logits.unflatten(-1, (-1, num_classes))  # [..., D, C]
    return categorical_log_prob(logits, x, class_dim=-1, event_ndim=1)


def _linear(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype: torch.dtype = compute_dtype(h, weight, bias)
    # Under autocast F.linear would round the logits; operands have been cast by the caller.
    with torch.autocast(h.device.type, enabled=False):
        return F.linear(h.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
