"""Helpers shared by the reference formulas."""

from __future__ import annotations

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
