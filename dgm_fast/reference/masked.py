"""Reference formulas of masked linear layers and of the fully visible sigmoid belief network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast.reference._common import compute_dtype
from dgm_fast.reference.likelihood import bernoulli_log_prob


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    in_degrees: Tensor | None = None,
    out_degrees: Tensor | None = None,
    *,
    strict: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """x (mask * weight)^T + bias, in the dtype of x; the mask given, or that of the degrees."""
    if mask is None:
        assert in_degrees is not None and out_degrees is not None
        mask = degree_mask(in_degrees, out_degrees, strict=strict)
    dtype = compute_dtype(x, weight, bias)
    # Chosen, not multiplied: a masked weight may be infinite or NaN.
    weight = torch.where(mask, weight.to(dtype), 0.0)
    # Under autocast F.linear would cast the weight; operands have been cast by the caller.
    with torch.autocast(x.device.type, enabled=False):
        out = F.linear(x.to(dtype), weight, None if bias is None else bias.to(dtype))
    return out.to(x.dtype)


def degree_mask(in_degrees: Tensor, out_degrees: Tensor, *, strict: bool = False) -> Tensor:
    """[out, in]: whether an output of degree m hears an input of degree d: d <= m, or d < m."""
    out_degrees = out_degrees.unsqueeze(-1)
    return in_degrees < out_degrees if strict else in_degrees <= out_degrees


def fvsbn_log_prob(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """sum_d log Bernoulli(x_d; logit sum_{k < d} weight_{d, k} x_k + bias_d)."""
    return bernoulli_log_prob(fvsbn_logits(x, weight, bias), x)


def fvsbn_logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The logits [B, D] of all conditionals."""
    dtype = compute_dtype(weight, bias)
    order = torch.arange(weight.shape[0], device=weight.device)
    return masked_linear(x.to(dtype), weight.to(dtype), bias.to(dtype), order, order, strict=True)
