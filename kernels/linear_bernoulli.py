"""Bernoulli log-likelihood of a linear layer's logits, which exist only tile by tile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._gemm import (
    Blocks,
    Chunk,
    Inputs,
    head_gradients,
    input_rows,
    logits_tile,
    scaled,
)
from dgm_fast.kernels._layout import launch, no_gradients, numeric, per_program, row_view
from dgm_fast.kernels._math import log1p
from dgm_fast.kernels.bernoulli import bernoulli_score, linear_term, more_excess
from torch import Tensor

# Columns of a tile: as many factors in (1, 2] have a product in the range of float32.
_COLUMNS = 64


@triton.jit
def linear_bernoulli_log_prob_fwd_kernel(
    p_h,
    p_w,
    p_b,
    p_x,
    p_out,
    rows,
    inner,
    size,
    tiles,
    features,
    positions,
    s_h0,
    s_h1,
    s_w,
    s_x0,
    s_x1,
    s_xd,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The part of some tiles of columns in the log-likelihood of a block of rows."""
    o_r = tl.program_id(0).to(IDX) * BM + tl.arange(0, BM)
    mask_r = (o_r < rows)[:, None]
    p_rows = input_rows(p_h, o_r, positions, s_h0, s_h1, ALIGN, ROWS)
    p_x += (o_r // inner).to(tl.int64)[:, None] * s_x0 + (o_r % inner).to(tl.int64)[:, None] * s_x1
    b_sum = tl.zeros([BM], tl.float64)
    first = tl.program_id(1).to(IDX) * tiles * BN
    for start in range(first, tl.minimum(first + tiles * BN, size), BN):
        o_d = start + tl.arange(0, BN)
        mask_d = o_d < size
        b_l = logits_tile(
            p_rows,
            p_w,
            p_b,
            o_d,
            mask_r,
            mask_d,
            features,
            s_h1,
            s_w,
            ALIGN,
            ROWS,
            PRECISION,
            ACC,
            IDX,
            BM,
            BN,
            BK,
        )
        mask = mask_d[None, :]
        b_x = tl.load(p_x + o_d[None, :] * s_xd, mask_r & mask, other=0).to(ACC)
        b_linear = tl.where(mask, linear_term(b_l, b_x), 0.0)
        b_e = tl.where(mask, tl.exp(-tl.abs(b_l)), 0.0)
        b_sum += tl.sum(b_linear, 1) - log1p(tl.reduce(b_e, 1, more_excess))
    tl.store(p_out + tl.program_id(1).to(tl.int64) * rows + o_r, b_sum, o_r < rows)


@triton.jit(do_not_specialize=["first_block"])
def linear_bernoulli_log_prob_bwd_kernel(
    p_h,
    p_w,
    p_b,
    p_g,
    p_x,
    p_gl,
    p_gb,
    first_row,
    rows,
    first_column,
    columns,
    first_block,
    inner,
    size,
    features,
    positions,
    s_h0,
    s_h1,
    s_w,
    s_x0,
    s_x1,
    s_xd,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """dl = g (x - sigmoid(l)) of a tile of a chunk of logits, and its sum over the tile's rows."""
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    o_n = tl.program_id(1) * BN + tl.arange(0, BN)
    mask_r = (o_m < rows)[:, None]
    mask_d = o_n < columns
    o_r = first_row.to(IDX) + o_m
    o_d = first_column.to(IDX) + o_n
    b_l = logits_tile(
        input_rows(p_h, o_r, positions, s_h0, s_h1, ALIGN, ROWS),
        p_w,
        p_b,
        o_d,
        mask_r,
        mask_d,
        features,
        s_h1,
        s_w,
        ALIGN,
        ROWS,
        PRECISION,
        ACC,
        IDX,
        BM,
        BN,
        BK,
    )
    o_0 = (o_r // inner).to(tl.int64)[:, None]
    o_1 = (o_r % inner).to(tl.int64)[:, None]
    mask = mask_r & mask_d[None, :]
    b_g = tl.load(p_g + o_r[:, None], mask_r, other=0.0)
    b_x = tl.load(p_x + o_0 * s_x0 + o_1 * s_x1 + o_d[None, :] * s_xd, mask, other=0).to(ACC)
    # Samples without weight need no data and get plain zeros.
    b_gl = tl.where(b_g != 0.0, b_g * bernoulli_score(b_l, b_x), 0.0)
    tl.store(p_gl + o_m[:, None] * columns + o_n[None, :], b_gl, mask)
    if p_gb is not None:
        o_b = (first_block + tl.program_id(0)).to(tl.int64) * size + o_d
        tl.store(p_gb + o_b, tl.sum(b_gl, 0), mask_d)


def _inputs(
    h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor
) -> tuple[Inputs, torch.Size, Blocks]:
    """The layer, the shape of h's rows beside x, and the blocks."""
    batch = torch.broadcast_shapes(h.shape[:-1], x.shape[:-1])
    features = h.shape[-1]
    flat = h.expand(*batch, features).reshape(1, batch.numel(), features)
    inputs = Inputs(flat, weight, bias)
    columns = min(_COLUMNS, max(16, triton.next_power_of_2(weight.shape[0])))
    return inputs, batch, inputs.blocks(columns, triton.cdiv(weight.shape[0], columns))


def linear_bernoulli_log_prob_fwd(
    h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor
) -> Tensor:
    size = weight.shape[0]
    inputs, batch, block = _inputs(h, weight, bias, x)
    if inputs.rows == 0 or size == 0:
        return h.new_zeros(batch, dtype=inputs.dtype)
    rows, (data,) = row_view(torch.Size((*batch, size)), 1, (numeric(x),))
    row_blocks = triton.cdiv(inputs.rows, block.rows)
    tiles = triton.cdiv(size, block.columns)
    each = min(tiles, per_program(row_blocks * tiles))
    sums = triton.cdiv(tiles, each)
    out = h.new_empty((sums, inputs.rows), dtype=inputs.dtype if sums == 1 else torch.float64)
    launch(
        linear_bernoulli_log_prob_fwd_kernel,
        (row_blocks, sums),
        *inputs.tensors,
        data,
        out,
        inputs.rows,
        rows.inner,
        size,
        each,
        *inputs.layout,
        *rows.strides[0],
        BN=block.columns,
        **inputs.meta(size * rows.strides[0][2]),
        **block.meta,
    )
    return (out[0] if sums == 1 else out.sum(0).to(inputs.dtype)).view(batch)


def linear_bernoulli_log_prob_bwd(
    grad: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    inputs, batch, block = _inputs(h, weight, bias, x)
    size = weight.shape[0]
    if inputs.rows == 0 or size == 0:
        return tuple(no_gradients(grad, (h, weight, bias, x), mask))
    grad = grad.to(inputs.dtype)
    empty = grad.new_empty(0)
    grad_x = _grad_x(grad, inputs, batch, x) if mask[3] else empty
    if not any(mask[:3]):
        return empty, empty, empty, grad_x
    scaled_grad, unscale = scaled(grad.contiguous(), h.dtype)
    rows, (data,) = row_view(torch.Size((*batch, size)), 1, (numeric(x),))

    meta = inputs.meta(size * rows.strides[0][2]) | block.meta

    def fill(chunk: Chunk, grad_logits: Tensor, grad_bias: Tensor | None) -> None:
        launch(
            linear_bernoulli_log_prob_bwd_kernel,
            (triton.cdiv(chunk.rows, block.rows), triton.cdiv(chunk.columns, block.columns)),
            *inputs.tensors,
            scaled_grad,
            data,
            grad_logits,
            grad_bias,
            *chunk,
            rows.inner,
            size,
            *inputs.layout,
            *rows.strides[0],
            BN=block.columns,
            **meta,
        )

    grad_h = h.new_empty(inputs.h.shape) if mask[0] else None
    with_bias = mask[2] and bias is not None
    grad_weight, grad_bias = head_gradients(
        inputs, 1, block.rows, unscale, fill, grad_h, mask[1], with_bias
    )
    return (
        empty if grad_h is None else grad_h.view(*batch, h.shape[-1]).sum_to_size(h.shape),
        empty if grad_weight is None else grad_weight,
        empty if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        grad_x,
    )


def _grad_x(grad: Tensor, inputs: Inputs, batch: torch.Size, x: Tensor) -> Tensor:
    """sum g l over the samples that share x, which is the layer applied to sum g h."""
    h, weight = inputs.h.to(inputs.dtype), inputs.weight.to(inputs.dtype)
    grad = grad.unsqueeze(-1)
    lead = (1,) * (len(batch) + 1 - x.ndim) + x.shape[:-1]
    out = (grad * h.view(*batch, h.shape[-1])).sum_to_size(*lead, h.shape[-1]) @ weight.t()
    if inputs.bias is not None:
        out += grad.sum_to_size(*lead, 1) * inputs.bias
    return out.view(x.shape).to(x.dtype)
