"""Shape inference helpers of the fake functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgm_fast.reference._common import compute_dtype


def per_sample(
    shape: Sequence[int], event_ndim: int, *tensors: Tensor | None, like: Tensor
) -> Tensor:
    """An output of one number per sample: ``shape`` without its event, float32 or float64."""
    return like.new_empty(list(shape[: len(shape) - event_ndim]), dtype=compute_dtype(*tensors))


def broadcast_shape(*tensors: Tensor | None) -> torch.Size:
    return torch.broadcast_shapes(*(t.shape for t in tensors if t is not None))
