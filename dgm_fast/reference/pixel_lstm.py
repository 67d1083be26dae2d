"""Reference operations of PixelRNN: LSTMs along the rows and the diagonals of an image."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast.reference._common import compute_dtype


class _Step(NamedTuple):
    """Activated gates i, f, g, o, the cell and the state of a step, [B, h, P] each."""

    gates: tuple[Tensor, Tensor, Tensor, Tensor]
    cell: Tensor
    hidden: Tensor


def _step(gates: Tensor, cell: Tensor) -> _Step:
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cell = f * cell + i * g
    return _Step((i, f, g, o), cell, o * cell.tanh())


def _row_steps(gates: Tensor, weight: Tensor) -> list[_Step]:
    hidden = cell = gates.new_zeros((gates.shape[0], weight.shape[1], gates.shape[3]))
    steps = []
    for row in gates.unbind(2):
        steps.append(_step(row + F.conv1d(hidden, weight, padding="same"), cell))
        hidden, cell = steps[-1].hidden, steps[-1].cell
    return steps


def _diagonal_steps(gates: Tensor, weight: Tensor) -> list[_Step]:
    """Positions are rows; those whose pixel of the diagonal is outside of the image hold zeros."""
    batch, _, height, width = gates.shape
    rows = torch.arange(height, device=gates.device)
    hidden = cell = gates.new_zeros((batch, weight.shape[1], height))
    steps = []
    for step in range(height + width - 1):
        columns = step - rows  # [H]
        inside = (columns >= 0) & (columns < width)
        # The map skewed by one pixel a row: a diagonal is a column of it.
        diagonal = gates[:, :, rows, columns.clamp(0, width - 1)]  # [B, 4h, H]
        after = _step(diagonal + F.conv1d(F.pad(hidden, (1, 0)), weight), cell)
        hidden = torch.where(inside, after.hidden, 0.0)
        cell = torch.where(inside, after.cell, 0.0)
        steps.append(_Step(after.gates, cell, hidden))
    return steps


def _unskewed(columns: list[Tensor], width: int) -> Tensor:
    """[B, C, H, W] from columns [B, C, H] of the skewed map."""
    rows = torch.arange(columns[0].shape[2], device=columns[0].device)[:, None]
    steps = rows + torch.arange(width, device=rows.device)
    return torch.stack(columns, 3)[:, :, rows, steps]


def _computed(gates: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(gates, weight)
    return gates.to(dtype), weight.to(dtype)


def _result_dtype(gates: Tensor, weight: Tensor) -> torch.dtype:
    return torch.promote_types(gates.dtype, weight.dtype)


def row_lstm(gates: Tensor, weight: Tensor) -> Tensor:
    """One row of gates [B, 4h, H, W] after the other; weight [4h, h, k] convolves the states before."""
    steps = _row_steps(*_computed(gates, weight))
    return torch.stack([s.hidden for s in steps], 2).to(_result_dtype(gates, weight))


def diagonal_lstm(gates: Tensor, weight: Tensor) -> Tensor:
    """One diagonal i + j of gates [B, 4h, H, W] after the other.

    weight [4h, h, 2] multiplies the states above (0) and to the left (1); the cell comes from the left.
    """
    steps = _diagonal_steps(*_computed(gates, weight))
    out = _unskewed([s.hidden for s in steps], gates.shape[3])
    return out.to(_result_dtype(gates, weight))


def lstm_states(gates: Tensor, weight: Tensor, *, diagonal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The result with activated gates [B, H, W, 4h] and cells [B, H, W, h], as a backward keeps them."""
    computed = _computed(gates, weight)
    steps = _diagonal_steps(*computed) if diagonal else _row_steps(*computed)
    parts = (
        [s.hidden for s in steps],
        [torch.cat(s.gates, 1) for s in steps],
        [s.cell for s in steps],
    )
    hidden, activated, cells = (
        _unskewed(part, gates.shape[3]) if diagonal else torch.stack(part, 2) for part in parts
    )
    out = hidden.to(_result_dtype(gates, weight))
    return out, activated.permute(0, 2, 3, 1), cells.permute(0, 2, 3, 1)
