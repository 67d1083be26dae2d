"""Helpers shared by the reference formulas."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2PI = 1.8378770664093453


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor is float64, else float32: the dtype sums are accumulated in."""
    if any(t is not None and t.dtype == torch.float64 for t in tensors):
        return torch.float64
    return torch.float32


def sum_event(t: Tensor, event_ndim: int) -> Tensor:
    """Sum over the last ``event_ndim`` dimensions (none when 0)."""
    return t.sum(dim=tuple(range(-event_ndim, 0))) if event_ndim else t


def log_sum_exp(t: Tensor, dim: int, *, mean: bool = False) -> Tensor:
    """log sum exp(t), or log mean exp(t), with the right limits.

    Rows of -inf give -inf and zero gradient, a +inf entry gives +inf and a one-hot gradient;
    ``torch.logsumexp`` differentiates both to NaN.
    """
    highest = t.detach().amax(dim, keepdim=True)
    finite = highest.isfinite() | highest.isnan()
    shifted = torch.where(finite, t - torch.where(finite, highest, 0.0), 0.0).exp()
    total = shifted.mean(dim, keepdim=True) if mean else shifted.sum(dim, keepdim=True)
    regular = total.log() + highest
    at_inf = t == math.inf
    count = at_inf.sum(dim, keepdim=True).clamp(min=1)
    hot = torch.where(at_inf, t, 0.0).sum(dim, keepdim=True) / count
    limit = torch.where(highest == math.inf, hot, highest)
    return torch.where(finite, regular, limit).squeeze(dim)


def log_weights(logits: Tensor, dim: int) -> Tensor:
    """Log-softmax of mixture logits with the right limits, all of zero gradient.

    Rows of -inf stay -inf; entries of +inf share the whole weight.
    """
    highest = logits.detach().amax(dim, keepdim=True)
    hot = torch.where(logits == math.inf, 0.0, -math.inf).to(logits.dtype)
    logits = torch.where(highest == math.inf, hot, logits)
    empty = highest == -math.inf
    weights = torch.log_softmax(torch.where(empty, 0.0, logits), dim)
    return torch.where(empty, -math.inf, weights)


def draw_class(logits: Tensor, noise: Tensor) -> Tensor:
    """The first class [...] whose cumulative probability passes the uniform noise [...]."""
    cdf = torch.softmax(logits, -1).cumsum(-1)
    # Scaled by the rounded total, so that the last class is never drawn for its rounding error.
    drawn = (cdf <= noise.unsqueeze(-1) * cdf[..., -1:]).sum(-1)
    return drawn.clamp(max=logits.shape[-1] - 1)
