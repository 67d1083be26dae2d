"""Layouts whose memory kernels read as it lies. No Triton here: shape inference asks too."""

import torch
from torch import Tensor


def entries_dense(t: Tensor) -> bool:
    """All entries in one piece of memory, each once, in any order."""
    return t.is_contiguous() or bool(torch.ops.aten.is_non_overlapping_and_dense.default(t))


def samples_dense(t: Tensor) -> bool:
    """Each sample in one piece of memory, whatever the order of its entries."""
    if t.is_contiguous():
        return True
    return entries_dense(t) and (t.shape[0] <= 1 or t.stride(0) * t.shape[0] == t.numel())


def channels_dense(t: Tensor) -> bool:
    """Contiguous, or with channels (dimension 1) last."""
    if t.is_contiguous():
        return True
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return t.ndim in formats and t.is_contiguous(memory_format=formats[t.ndim])


def in_layout_of(t: Tensor, like: Tensor) -> Tensor:
    """``t`` in the strides of ``like``, which is dense."""
    if t.stride() == like.stride():
        return t
    return torch.empty_like(like, dtype=t.dtype).copy_(t)
