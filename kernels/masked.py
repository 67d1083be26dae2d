"""Linear layers under a mask of degrees, whose zero blocks no product touches, and the FVSBN on them.

A tile of columns is a product over the units that any of its columns hears. Degrees in ascending order make
these one run, of which all but its end needs no mask; of others it goes from the first to the last, under
the mask. A mask that is given entry by entry is applied to a copy of the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._gemm import multiply_add, precision
from dgm_fast.kernels._layout import accumulator, launch
from dgm_fast.kernels.bernoulli import bernoulli_log_prob_bwd, bernoulli_log_prob_fwd
from torch import Tensor

# Degrees that a program reads at a time to find the run of units.
_DEGREES = tl.constexpr(512)
# Programs that give each multiprocessor of the largest GPUs one.
_PROGRAMS = 128
# Entries that partial sums of the weight's gradient may have, beyond which rows are not divided.
_PART_ENTRIES = 2**22


@triton.jit
def connected(of_input, of_output, STRICT: tl.constexpr):
    if STRICT:
        return of_input < of_output
    else:
        return of_input <= of_output


@triton.jit
def heard(of_unit, of_column, STRICT: tl.constexpr, INPUTS: tl.constexpr):
    """Whether a column hears a unit, of degrees that broadcast; with INPUTS the columns are the inputs."""
    if INPUTS:
        return connected(of_column, of_unit, STRICT)
    else:
        return connected(of_unit, of_column, STRICT)


@triton.jit
def degrees(p, o, count):
    """The degrees of units o, past the last one its own."""
    return tl.load(p + tl.minimum(o, count - 1)).to(tl.int64)


@triton.jit
def masked_product_kernel(
    p_a,
    p_w,
    p_b,
    p_units,
    p_columns,
    p_out,
    rows,
    units,
    columns,
    s_unit,
    s_column,
    STRICT: tl.constexpr,
    INPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """a [rows, units] times the masked weight [units, columns], plus a bias: a tile of the result.

    ``p_units`` and ``p_columns`` hold degrees, of inputs and outputs or, with INPUTS, the other way round.
    """
    o_m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)[:, None]
    # The columns that hear most come first.
    o_tile = tl.program_id(1) if INPUTS else tl.num_programs(1) - 1 - tl.program_id(1)
    o_n = o_tile * BN + tl.arange(0, BN)
    mask_m = o_m < rows
    mask_n = o_n < columns
    b_column = degrees(p_columns, o_n, columns)
    highest, lowest = tl.max(b_column, 0), tl.min(b_column, 0)
    some = lowest if INPUTS else highest
    every = highest if INPUTS else lowest
    # The run of units that some column hears, and where in it the first is that not every column hears.
    first, last, full = units, 0, units
    for start in range(0, units, _DEGREES):
        o_u = start + tl.arange(0, _DEGREES)
        b_unit = degrees(p_units, o_u, units)
        mask_u = o_u < units
        by_some = mask_u & heard(b_unit, some, STRICT, INPUTS)
        by_every = heard(b_unit, every, STRICT, INPUTS)
        first = tl.minimum(first, tl.min(tl.where(by_some, o_u, units), 0))
        last = tl.maximum(last, tl.max(tl.where(by_some, o_u + 1, 0), 0))
        full = tl.minimum(full, tl.min(tl.where(mask_u & (by_every == 0), o_u, units), 0))
    first = first // BK * BK
    full = tl.maximum(first, full // BK * BK)
    o_n = o_n.to(tl.int64)
    p_a += o_m * units
    p_w += o_n[None, :] * s_column
    b_sum = tl.zeros([BM, BN], ACC)
    for start in range(first, full, BK):
        o_k = start + tl.arange(0, BK)
        b_a = tl.load(p_a + o_k[None, :], mask_m, other=0.0)
        b_w = tl.load(p_w + o_k.to(tl.int64)[:, None] * s_unit, mask_n[None, :], other=0.0)
        b_sum = multiply_add(b_a, b_w, b_sum, PRECISION, ACC)
    for start in range(full, last, BK):
        o_k = start + tl.arange(0, BK)
        mask_k = o_k < units
        b_unit = degrees(p_units, o_k, units)
        mask_w = heard(b_unit[:, None], b_column[None, :], STRICT, INPUTS) & mask_n[None, :]
        b_a = tl.load(p_a + o_k[None, :], mask_m & mask_k[None, :], other=0.0)
        p_k = p_w + o_k.to(tl.int64)[:, None] * s_unit
        b_w = tl.load(p_k, mask_w & mask_k[:, None], other=0.0)
        b_sum = multiply_add(b_a, b_w, b_sum, PRECISION, ACC)
    if p_b is not None:
        b_sum += tl.load(p_b + o_n, mask_n, other=0.0).to(ACC)[None, :]
    tl.store(p_out + o_m * columns + o_n[None, :], b_sum, mask_m & mask_n[None, :])


@triton.jit
def masked_weight_gradient_kernel(
    p_g,
    p_x,
    p_inputs,
    p_outputs,
    p_gw,
    rows,
    inputs,
    outputs,
    chunk,
    STRICT: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Sum over a chunk of rows of g [rows, outputs]^T x [rows, inputs], a tile; zeros under the mask."""
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    o_k = tl.program_id(1) * BK + tl.arange(0, BK)
    mask_n, mask_k = o_n < outputs, o_k < inputs
    b_output = degrees(p_outputs, o_n, outputs)
    b_input = degrees(p_inputs, o_k, inputs)
    begin = tl.program_id(2) * chunk
    end = tl.minimum(begin + chunk, rows)
    # A tile without any connection adds up nothing.
    end = tl.where(connected(tl.min(b_input, 0), tl.max(b_output, 0), STRICT), end, begin)
    b_sum = tl.zeros([BN, BK], ACC)
    for start in range(begin, end, BM):
        o_m = (start + tl.arange(0, BM)).to(tl.int64)
        mask_m = o_m < end
        p_row = p_g + o_m[None, :] * outputs + o_n[:, None]
        b_g = tl.load(p_row, mask_n[:, None] & mask_m[None, :], other=0.0)
        p_row = p_x + o_m[:, None] * inputs + o_k[None, :]
        b_x = tl.load(p_row, mask_m[:, None] & mask_k[None, :], other=0.0)
        b_sum = multiply_add(b_g, b_x, b_sum, PRECISION, ACC)
    b_sum = tl.where(connected(b_input[None, :], b_output[:, None], STRICT), b_sum, 0.0)
    p_gw += (tl.program_id(2).to(tl.int64) * outputs + o_n[:, None]) * inputs + o_k[None, :]
    tl.store(p_gw, b_sum, mask_n[:, None] & mask_k[None, :])


class _Blocks(NamedTuple):
    """Rows, columns and inner entries of a product's tile; warps."""

    rows: int
    columns: int
    inner: int
    warps: int

    @property
    def meta(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": 3}


def product_blocks(a: Tensor, rows: int, columns: int) -> _Blocks:
    """Square tiles, halved while they are fewer than multiprocessors."""
    itemsize = a.element_size()
    tensor_cores = itemsize == 2 or precision(a) == "tf32"
    height = 128 if tensor_cores else 32 if itemsize == 8 else 64
    width = 32 if itemsize == 8 else 64
    height = min(height, max(16, triton.next_power_of_2(rows)))
    width = min(width, max(16, triton.next_power_of_2(columns)))
    while max(height, width) > 16:
        if triton.cdiv(rows, height) * triton.cdiv(columns, width) >= _PROGRAMS:
            break
        height, width = (height // 2, width) if height >= width else (height, width // 2)
    inner = (128 if tensor_cores else 64) // itemsize if itemsize < 8 else 16
    # At most 32 sums of a thread on tensor cores, and 16 elsewhere, where four warps spilled registers.
    num_warps = 8 if height * width >= (8192 if tensor_cores else 4096) else 4
    return _Blocks(height, width, max(16, inner), num_warps)


class _Layer:
    """A layer under a mask of degrees, its inputs as rows [batch, inputs]; all of one dtype."""

    def __init__(
        self, x: Tensor, weight: Tensor, in_degrees: Tensor, out_degrees: Tensor, strict: bool
    ) -> None:
        self.x = x.reshape(x.shape[:-1].numel(), x.shape[-1]).contiguous()
        self.weight = weight
        self.in_degrees = in_degrees.contiguous()
        self.out_degrees = out_degrees.contiguous()
        self.dtype = accumulator(weight)
        self.meta: dict[str, Any] = {
            "STRICT": strict,
            "PRECISION": precision(weight),
            "ACC": tl.float64 if self.dtype == torch.float64 else tl.float32,
        }

    def _product(
        self, a: Tensor, bias: Tensor | None, of_inputs: bool, dtype: torch.dtype
    ) -> Tensor:
        """a times the weight: from inputs to outputs or, with ``of_inputs``, back."""
        weight = self.weight if of_inputs else self.weight.t()
        units, columns = weight.shape
        rows = a.shape[0]
        out = a.new_empty((rows, columns), dtype=dtype)
        if out.numel() == 0:
            return out
        degrees = self.in_degrees, self.out_degrees
        block = product_blocks(a, rows, columns)
        launch(
            masked_product_kernel,
            (triton.cdiv(rows, block.rows), triton.cdiv(columns, block.columns)),
            a,
            weight,
            None if bias is None else bias.contiguous(),
            *(reversed(degrees) if of_inputs else degrees),
            out,
            rows,
            units,
            columns,
            *weight.stride(),
            INPUTS=of_inputs,
            BM=block.rows,
            BN=block.columns,
            BK=block.inner,
            **block.meta,
            **self.meta,
        )
        return out

    def outputs(self, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        return self._product(self.x, bias, False, dtype)

    def input_gradient(self, grad: Tensor) -> Tensor:
        """From that of the outputs [batch, outputs], contiguous."""
        return self._product(grad, None, True, grad.dtype)

    def weight_gradient(self, grad: Tensor) -> Tensor:
        rows, (outputs, inputs) = grad.shape[0], self.weight.shape
        if rows == 0 or self.weight.numel() == 0:
            return self.weight.new_zeros((outputs, inputs))
        block = product_blocks(grad, outputs, inputs)
        tiles = triton.cdiv(outputs, block.rows) * triton.cdiv(inputs, block.columns)
        parts = min(triton.cdiv(_PROGRAMS, tiles), max(1, _PART_ENTRIES // self.weight.numel()))
        # Below that a product is not worth a sum of its own.
        parts = max(1, min(parts, rows // (8 * block.inner)))
        chunk = triton.cdiv(triton.cdiv(rows, parts), block.inner) * block.inner
        parts = triton.cdiv(rows, chunk)
        dtype = self.weight.dtype if parts == 1 else self.dtype
        out = grad.new_empty((parts, outputs, inputs), dtype=dtype)
        launch(
            masked_weight_gradient_kernel,
            (triton.cdiv(outputs, block.rows), triton.cdiv(inputs, block.columns), parts),
            grad,
            self.x,
            self.in_degrees,
            self.out_degrees,
            out,
            rows,
            inputs,
            outputs,
            chunk,
            BM=block.inner,
            BN=block.rows,
            BK=block.columns,
            **block.meta,
            **self.meta,
        )
        return out[0] if parts == 1 else out.sum(0).to(self.weight.dtype)


def masked_linear_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor | None,
    out_degrees: Tensor | None,
    kept: Tensor | None,
    strict: bool,
) -> Tensor:
    shape = (*x.shape[:-1], weight.shape[0])
    if in_degrees is not None and out_degrees is not None:
        layer = _Layer(x, weight, in_degrees, out_degrees, strict)
        return layer.outputs(bias, x.dtype).view(shape)
    assert kept is not None
    out = _product(x.reshape(x.shape[:-1].numel(), -1), _masked(weight, kept).t())
    if bias is not None:
        out += bias
    return out.to(x.dtype).view(shape)


def masked_linear_bwd(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor | None,
    out_degrees: Tensor | None,
    kept: Tensor | None,
    strict: bool,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    rows = x.shape[:-1].numel()
    grad = grad.reshape(rows, weight.shape[0]).contiguous()
    grad_x = grad_weight = grad_bias = grad.new_empty(0)
    if in_degrees is not None and out_degrees is not None:
        layer = _Layer(x, weight, in_degrees, out_degrees, strict)
        if mask[0]:
            grad_x = layer.input_gradient(grad)
        if mask[1]:
            grad_weight = layer.weight_gradient(grad)
    else:
        assert kept is not None
        if mask[0]:
            grad_x = _product(grad, _masked(weight, kept))
        if mask[1]:
            grad_weight = _masked(_product(grad.t(), x.reshape(rows, -1)), kept)
    if mask[2] and bias is not None:
        grad_bias = grad.sum(0, dtype=accumulator(bias)).to(bias.dtype)
    return (
        grad_x.to(x.dtype).view(x.shape) if mask[0] else grad_x,
        grad_weight.to(weight.dtype),
        grad_bias,
    )


def _masked(weight: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept, weight, 0)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b in the accumulator's dtype."""
    out = a.new_empty((a.shape[0], b.shape[1]), dtype=accumulator(a))
    if a.is_cpu or a.element_size() >= 4:
        # Into given memory, which autocast leaves alone.
        return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)
    # PyTorch has this form on CUDA only; the other is for the interpreter.
    return torch.mm(a, b, out_dtype=out.dtype)


def _network(x: Tensor, weight: Tensor) -> _Layer:
    """An FVSBN as a layer: every variable hears those before it."""
    # Data enter products of reduced precision where they are exact there, as 0 and 1 are.
    exact = not x.dtype.is_floating_point or x.dtype == weight.dtype
    dtype = weight.dtype if exact else accumulator(weight)
    order = torch.arange(weight.shape[0], device=weight.device)
    return _Layer(x.to(dtype), weight.to(dtype), order, order, True)


def fvsbn_log_prob_fwd(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    logits = _network(x, weight).outputs(bias, accumulator(weight))
    return bernoulli_log_prob_fwd(logits, x, 1), logits


def fvsbn_log_prob_bwd(
    grad: Tensor,
    log_prob: Tensor,
    logits: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    # Samples without weight need no data.
    used = torch.where((grad != 0).unsqueeze(-1), x, 0)
    grad_logits, grad_x = bernoulli_log_prob_bwd(grad, logits, x, 1, [True, mask[0]])
    layer = _network(used, weight.to(logits.dtype))
    empty = grad.new_empty(0)
    if mask[0]:
        grad_x = (grad_x + layer.input_gradient(grad_logits)).to(x.dtype)
    return (
        grad_x,
        layer.weight_gradient(grad_logits).to(weight.dtype) if mask[1] else empty,
        grad_logits.sum(0).to(bias.dtype) if mask[2] else empty,
    )
