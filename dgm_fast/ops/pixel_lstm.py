"""Registration of the LSTMs over images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dgm_fast import reference
from dgm_fast.ops._registry import OpSpec, register, registered
from dgm_fast.reference._common import compute_dtype


def _channels_innermost(like: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    batch, _, height, width = like.shape
    return like.new_empty((batch, height, width, channels), dtype=dtype)


def _fake(gates: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states; activated gates and cells, which backward takes, [B, H, W, ...]."""
    h = weight.shape[1]
    dtype = compute_dtype(gates)
    out = _channels_innermost(gates, h, gates.dtype).permute(0, 3, 1, 2)
    return (
        out,
        _channels_innermost(gates, 4 * h, dtype),
        _channels_innermost(gates, h, dtype),
    )


def _backward_fake(
    grad: Tensor,
    out: Tensor,
    activated: Tensor,
    cells: Tensor,
    gates: Tensor,
    weight: Tensor,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    none = gates.new_empty(0)
    grad_gates = _channels_innermost(gates, gates.shape[1], gates.dtype).permute(0, 3, 1, 2)
    return (
        grad_gates if mask[0] else none,
        weight.new_empty(weight.shape) if mask[1] else weight.new_empty(0),
    )


def _example(taps: int) -> Callable[[torch.device, torch.dtype], tuple[Any, ...]]:
    def example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        gates = torch.randn(2, 12, 5, 4, device=device, dtype=dtype)
        return gates, torch.randn(12, 3, taps, device=device, dtype=dtype)

    return example


for _name, _diagonal, _taps in (("row_lstm", False, 3), ("diagonal_lstm", True, 2)):
    _formula = functools.partial(reference.lstm_states, diagonal=_diagonal)
    register(OpSpec(_name, "pixel_lstm", _formula, _fake, _example(_taps), _backward_fake))

row_lstm = registered("row_lstm")
diagonal_lstm = registered("diagonal_lstm")
