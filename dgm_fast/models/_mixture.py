"""Draws and densities shared by the models with mixture components."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Numbers that one chunk of an evaluation without gradients may form: 16 MiB in float32.
_CHUNK_ELEMENTS = 1 << 22


def compute_dtype(like: Tensor) -> torch.dtype:
    """float64 for float64, else float32: component probabilities are no matter of 8 bits."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def draw_component(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Component indices by inverting the cumulative weights.

    Args:
        log_weights: of any normalisation, [K] for all draws or [n, K].
        uniforms: in [0, 1), [n].

    Returns:
        int64 [n]. Components of weight 0 are never drawn.
    """
    cdf = torch.softmax(log_weights, -1).cumsum(-1)
    total = cdf[..., -1:]
    level = uniforms.to(cdf.dtype).unsqueeze(-1) * total  # [n, 1]
    if cdf.ndim == 1:
        level = level.squeeze(-1)
    index = torch.searchsorted(cdf, level, right=True)
    # A level that rounds up to the total would lie past the last component that has weight.
    index = torch.minimum(index, torch.searchsorted(cdf, total.contiguous()))
    return index if cdf.ndim == 1 else index.squeeze(-1)


def in_chunks(call: Callable[[Tensor], Tensor], rows: Tensor, per_row: int) -> Tensor:
    """``call`` on chunks of the rows, each of which forms ``per_row`` numbers a row."""
    size = max(1, _CHUNK_ELEMENTS // max(1, per_row))
    if len(rows) <= size:
        return call(rows)
    return torch.cat([call(chunk) for chunk in rows.split(size)])
