"""LSTMs along the rows and the diagonals of an image: a program takes all steps of an image.

Of a Row LSTM steps are rows and positions columns, of a Diagonal LSTM steps are diagonals i + j and
positions rows i. States go through memory: what a step's threads store the next step's load after a
barrier. Where the state-to-state weight is too large for every program to read it at every step, a step is
a launch of its own, divided among programs by positions and units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._gemm import add_product, multiply_add, precision, scaled, unscaled
from dgm_fast.kernels._layout import accumulator, index_type, launch
from dgm_fast.kernels._math import tanh
from dgm_fast.kernels.nade_outputs import sigmoid
from torch import Tensor

__all__ = ["diagonal_lstm_bwd", "diagonal_lstm_fwd", "row_lstm_bwd", "row_lstm_fwd"]

# Entries of a weight that the programs of all images read again at every step, at most (an estimate: a
# megabyte of float32 is a few microseconds from the second-level cache, as long as a launch).
_RESIDENT = 2**18
# A tile of positions and units, at most.
_POSITIONS, _UNITS = 64, 32


@triton.jit
def step_positions(step, height, width, DIAGONAL: tl.constexpr):
    """First position of a step, and the end."""
    first = tl.maximum(step - width + 1, 0) if DIAGONAL else 0
    last = tl.minimum(step + 1, height) if DIAGONAL else width
    return first, last


@triton.jit
def pixel_of(step, o_p, DIAGONAL: tl.constexpr):
    """Row and column of positions [BP] at a step."""
    o_y = o_p if DIAGONAL else o_p * 0 + step
    o_x = step - o_p if DIAGONAL else o_p
    return o_y, o_x


@triton.jit
def tap_offset(TAP: tl.constexpr, TAPS: tl.constexpr, DIAGONAL: tl.constexpr):
    """Rows and columns from a pixel back to the one whose state it takes at a tap."""
    up: tl.constexpr = 1 - TAP if DIAGONAL else 1
    left: tl.constexpr = TAP if DIAGONAL else TAPS // 2 - TAP
    return up, left


@triton.jit
def row_of_pixels(p, o_y, o_x, width, size, IDX: tl.constexpr):
    """Pointers [BP, 1] to the ``size`` numbers of each pixel."""
    return p + ((o_y * width + o_x).to(IDX) * size)[:, None]


@triton.jit(do_not_specialize=["begin", "end"])
def lstm_kernel(
    p_x,
    p_w,
    p_out,
    p_gates,
    p_cells,
    begin,
    end,
    height,
    width,
    hidden,
    s_xb,
    s_xc,
    s_xy,
    s_xx,
    DIAGONAL: tl.constexpr,
    TAPS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BP: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
):
    """Steps begin ... end - 1 of an image: states, activated gates and cells, channels innermost.

    The weight is [TAPS, hidden, 4 hidden]. Programs of an image share its positions and units, of one step
    then.
    """
    image = tl.program_id(0).to(IDX)
    first_pixel = image * height * width * hidden
    p_x += image * s_xb
    p_out += first_pixel
    p_gates += first_pixel * 4
    p_cells += first_pixel
    # What a step loads the step before has stored: loads must not run ahead.
    for step in tl.range(begin, end, num_stages=1):
        first, last = step_positions(step, height, width, DIAGONAL)
        for start in range(first + tl.program_id(1) * BP, last, tl.num_programs(1) * BP):
            o_p = start + tl.arange(0, BP)
            mask_p = o_p < last
            o_y, o_x = pixel_of(step, o_p, DIAGONAL)
            p_pixel = p_x + (o_y.to(IDX) * s_xy + o_x.to(IDX) * s_xx)[:, None]
            for unit in range(tl.program_id(2) * BU, hidden, tl.num_programs(2) * BU):
                o_u = unit + tl.arange(0, BU)
                mask_u = o_u < hidden
                mask = mask_p[:, None] & mask_u[None, :]
                p_units = p_pixel + (o_u.to(IDX) * s_xc)[None, :]
                s_gate = tl.full([1, 1], hidden, IDX) * s_xc
                b_i = tl.load(p_units, mask, other=0.0).to(ACC)
                b_f = tl.load(p_units + s_gate, mask, other=0.0).to(ACC)
                b_g = tl.load(p_units + 2 * s_gate, mask, other=0.0).to(ACC)
                b_o = tl.load(p_units + 3 * s_gate, mask, other=0.0).to(ACC)
                for tap in tl.static_range(TAPS):
                    up, left = tap_offset(tap, TAPS, DIAGONAL)
                    o_ty, o_tx = o_y - up, o_x - left
                    known = mask_p & (o_ty >= 0) & (o_tx >= 0) & (o_tx < width)
                    p_state = row_of_pixels(p_out, o_ty, o_tx, width, hidden, IDX)
                    for k in range(0, hidden, BK):
                        o_k = k + tl.arange(0, BK)
                        mask_k = o_k < hidden
                        b_s = tl.load(
                            p_state + o_k[None, :], known[:, None] & mask_k[None, :], other=0.0
                        )
                        p_k = p_w + (tap * hidden + o_k)[:, None] * (4 * hidden) + o_u[None, :]
                        mask_w = mask_k[:, None] & mask_u[None, :]
                        b_w = tl.load(p_k, mask_w, other=0.0)
                        b_i = multiply_add(b_s, b_w, b_i, PRECISION, ACC)
                        b_w = tl.load(p_k + hidden, mask_w, other=0.0)
                        b_f = multiply_add(b_s, b_w, b_f, PRECISION, ACC)
                        b_w = tl.load(p_k + 2 * hidden, mask_w, other=0.0)
                        b_g = multiply_add(b_s, b_w, b_g, PRECISION, ACC)
                        b_w = tl.load(p_k + 3 * hidden, mask_w, other=0.0)
                        b_o = multiply_add(b_s, b_w, b_o, PRECISION, ACC)
                # The cell comes from above, on diagonals from the left.
                o_cy = o_y if DIAGONAL else o_y - 1
                o_cx = o_x - 1 if DIAGONAL else o_x
                known = mask & ((o_cy >= 0) & (o_cx >= 0))[:, None]
                p_before = row_of_pixels(p_cells, o_cy, o_cx, width, hidden, IDX)
                b_c = tl.load(p_before + o_u[None, :], known, other=0.0)
                b_i, _ = sigmoid(b_i)
                b_f, _ = sigmoid(b_f)
                b_g = tanh(b_g)
                b_o, _ = sigmoid(b_o)
                b_c = b_f * b_c + b_i * b_g
                p_to = row_of_pixels(p_gates, o_y, o_x, width, 4 * hidden, IDX) + o_u[None, :]
                tl.store(p_to, b_i, mask)
                tl.store(p_to + hidden, b_f, mask)
                tl.store(p_to + 2 * hidden, b_g, mask)
                tl.store(p_to + 3 * hidden, b_o, mask)
                p_to = row_of_pixels(p_cells, o_y, o_x, width, hidden, IDX) + o_u[None, :]
                tl.store(p_to, b_c, mask)
                p_to = row_of_pixels(p_out, o_y, o_x, width, hidden, IDX) + o_u[None, :]
                tl.store(p_to, b_o * tanh(b_c), mask)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["begin", "end"])
def lstm_gradient_kernel(
    p_g,
    p_w,
    p_gates,
    p_cells,
    p_carry,
    p_to,
    begin,
    end,
    height,
    width,
    hidden,
    s_gb,
    s_gc,
    s_gy,
    s_gx,
    DIAGONAL: tl.constexpr,
    TAPS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BP: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
):
    """Gradients of the gates, steps from the last one back; begin and end count them so.

    The weight is [TAPS, 4 hidden, hidden]. The carry [images, positions, hidden] holds the gradient of a
    position's cell by the step after it.
    """
    image = tl.program_id(0).to(IDX)
    first_pixel = image * height * width * hidden
    positions = height if DIAGONAL else width
    steps = height + width - 1 if DIAGONAL else height
    p_g += image * s_gb
    p_gates += first_pixel * 4
    p_cells += first_pixel
    p_carry += image * positions * hidden
    p_to += first_pixel * 4
    for back in tl.range(begin, end, num_stages=1):
        step = steps - 1 - back
        first, last = step_positions(step, height, width, DIAGONAL)
        for start in range(first + tl.program_id(1) * BP, last, tl.num_programs(1) * BP):
            o_p = start + tl.arange(0, BP)
            mask_p = o_p < last
            o_y, o_x = pixel_of(step, o_p, DIAGONAL)
            p_pixel = p_g + (o_y.to(IDX) * s_gy + o_x.to(IDX) * s_gx)[:, None]
            for unit in range(tl.program_id(2) * BU, hidden, tl.num_programs(2) * BU):
                o_u = unit + tl.arange(0, BU)
                mask_u = o_u < hidden
                mask = mask_p[:, None] & mask_u[None, :]
                b_h = tl.load(p_pixel + (o_u.to(IDX) * s_gc)[None, :], mask, other=0.0).to(ACC)
                # From the pixels that took this one's state.
                for tap in tl.static_range(TAPS):
                    up, left = tap_offset(tap, TAPS, DIAGONAL)
                    o_ty, o_tx = o_y + up, o_x + left
                    known = mask_p & (o_ty < height) & (o_tx >= 0) & (o_tx < width)
                    p_later = row_of_pixels(p_to, o_ty, o_tx, width, 4 * hidden, IDX)
                    for k in range(0, 4 * hidden, BK):
                        o_k = k + tl.arange(0, BK)
                        mask_k = o_k < 4 * hidden
                        b_z = tl.load(
                            p_later + o_k[None, :], known[:, None] & mask_k[None, :], other=0.0
                        )
                        p_k = p_w + (tap * 4 * hidden + o_k)[:, None] * hidden + o_u[None, :]
                        b_w = tl.load(p_k, mask_k[:, None] & mask_u[None, :], other=0.0)
                        b_h = multiply_add(b_z, b_w, b_h, PRECISION, ACC)
                p_own = row_of_pixels(p_gates, o_y, o_x, width, 4 * hidden, IDX) + o_u[None, :]
                b_i = tl.load(p_own, mask, other=0.0)
                b_f = tl.load(p_own + hidden, mask, other=0.0)
                b_g = tl.load(p_own + 2 * hidden, mask, other=0.0)
                b_o = tl.load(p_own + 3 * hidden, mask, other=0.0)
                p_own = row_of_pixels(p_cells, o_y, o_x, width, hidden, IDX) + o_u[None, :]
                b_t = tanh(tl.load(p_own, mask, other=0.0))
                o_cy = o_y if DIAGONAL else o_y - 1
                o_cx = o_x - 1 if DIAGONAL else o_x
                known = mask & ((o_cy >= 0) & (o_cx >= 0))[:, None]
                p_before = row_of_pixels(p_cells, o_cy, o_cx, width, hidden, IDX)
                b_before = tl.load(p_before + o_u[None, :], known, other=0.0)
                p_own = p_carry + o_p[:, None] * hidden + o_u[None, :]
                b_c = tl.load(p_own, mask, other=0.0) + b_h * b_o * (1.0 - b_t * b_t)
                tl.store(p_own, b_c * b_f, mask)
                p_own = row_of_pixels(p_to, o_y, o_x, width, 4 * hidden, IDX) + o_u[None, :]
                tl.store(p_own, b_c * b_g * b_i * (1.0 - b_i), mask)
                tl.store(p_own + hidden, b_c * b_before * b_f * (1.0 - b_f), mask)
                tl.store(p_own + 2 * hidden, b_c * b_i * (1.0 - b_g * b_g), mask)
                tl.store(p_own + 3 * hidden, b_h * b_t * b_o * (1.0 - b_o), mask)
        tl.debug_barrier()


class _Scan(NamedTuple):
    """The loop over the steps of images."""

    diagonal: bool
    batch: int
    height: int
    width: int
    hidden: int
    taps: int

    @property
    def steps(self) -> int:
        return self.height + self.width - 1 if self.diagonal else self.height

    def run(self, kernel: Any, image: Tensor, weight: Tensor, *rest: Tensor) -> None:
        """A kernel through all steps; ``image`` [B, C, H, W] is read as it lies in memory."""
        positions = min(self.height, self.width) if self.diagonal else self.width
        rows = max(16, min(_POSITIONS, triton.next_power_of_2(positions)))
        tensor_cores = weight.element_size() == 2 or precision(weight) == "tf32"
        units = max(16, min(_UNITS, triton.next_power_of_2(self.hidden)))
        reach = sum((n - 1) * s for n, s in zip(image.shape, image.stride(), strict=True))
        numbers = self.batch * self.height * self.width * 4 * self.hidden
        meta = {
            "DIAGONAL": self.diagonal,
            "TAPS": self.taps,
            "PRECISION": precision(weight),
            "ACC": tl.float64 if accumulator(weight) == torch.float64 else tl.float32,
            "IDX": index_type(numbers, reach),
            "BP": rows,
            "BU": units,
            "BK": 32 if tensor_cores else 16,
            "num_warps": rows // 8 if rows > 32 else 4,
            "num_stages": 2 if tensor_cores else 1,
            # A program waits for itself: registers in place of others beside it.
            "maxnreg": 255,
        }
        shares, together = (1, 1), self.steps
        if weight.numel() > _RESIDENT:
            shares, together = (triton.cdiv(positions, rows), triton.cdiv(self.hidden, units)), 1
        tensors = image, weight, *rest
        sizes = self.height, self.width, self.hidden, *image.stride()
        for begin in range(0, self.steps, together):
            steps = begin, begin + together
            launch(kernel, (self.batch, *shares), *tensors, *steps, *sizes, **meta)


def _scan(diagonal: bool, gates: Tensor, weight: Tensor) -> _Scan:
    batch, _, height, width = gates.shape
    return _Scan(diagonal, batch, height, width, *weight.shape[1:])


def _forward(diagonal: bool, gates: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scan = _scan(diagonal, gates, weight)
    shape = scan.batch, scan.height, scan.width
    dtype = accumulator(gates)
    out = gates.new_empty((*shape, scan.hidden))
    activated = gates.new_empty((*shape, 4 * scan.hidden), dtype=dtype)
    cells = gates.new_empty((*shape, scan.hidden), dtype=dtype)
    if gates.numel():
        taps = weight.permute(2, 1, 0).contiguous()
        scan.run(lstm_kernel, gates, taps, out, activated, cells)
    return out.permute(0, 3, 1, 2), activated, cells


def _taken_states(scan: _Scan, out: Tensor) -> Tensor:
    """What the step of each pixel took, [pixels, taps h], from states [B, H, W, h]."""
    reach = 1 if scan.diagonal else scan.taps // 2
    padded = torch.nn.functional.pad(out, (0, 0, reach, reach, 1, 0))
    starts = [(0, 1), (1, 0)] if scan.diagonal else [(0, tap) for tap in range(scan.taps)]
    parts = [padded[:, y : y + scan.height, x : x + scan.width] for y, x in starts]
    return torch.cat(parts, 3).flatten(0, 2)


def _backward(
    diagonal: bool,
    grad: Tensor,
    out: Tensor,
    activated: Tensor,
    cells: Tensor,
    gates: Tensor,
    weight: Tensor,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    scan = _scan(diagonal, gates, weight)
    empty = gates.new_empty(0)
    # Wide, as the factor of a small gradient may be more than float16 holds.
    grad, unscale = scaled(grad.float() if grad.dtype == torch.float16 else grad, gates.dtype)
    grad_gates = gates.new_empty((scan.batch, scan.height, scan.width, 4 * scan.hidden))
    if gates.numel():
        taps = weight.permute(2, 0, 1).contiguous()
        positions = scan.height if diagonal else scan.width
        carry = cells.new_zeros((scan.batch, positions, scan.hidden))
        scan.run(
            lstm_gradient_kernel,
            grad,
            taps,
            activated.contiguous(),
            cells.contiguous(),
            carry,
            grad_gates,
        )
    grad_weight = empty
    if mask[1]:
        states = _taken_states(scan, out.permute(0, 2, 3, 1))
        product = add_product(None, grad_gates.flatten(0, 2).t(), states)  # [4h, taps h]
        product = unscaled(product, unscale).to(weight.dtype)
        grad_weight = product.unflatten(1, (scan.taps, scan.hidden)).transpose(1, 2).contiguous()
    if not mask[0]:
        return empty, grad_weight
    return unscaled(grad_gates, unscale).to(gates.dtype).permute(0, 3, 1, 2), grad_weight


def row_lstm_fwd(gates: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(False, gates, weight)


def row_lstm_bwd(grad: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _backward(False, grad, *args)


def diagonal_lstm_fwd(gates: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(True, gates, weight)


def diagonal_lstm_bwd(grad: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _backward(True, grad, *args)
