"""Logarithm of a mean of exponentials with the right limits, along any dimension."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from dgm_fast.kernels._layout import Tile, accumulator, collapse, launch, per_sample, row_view, tile
from torch import Tensor


@triton.jit
def row_max(p_w, o_k, mask_row, size, s_k, ACC: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr):
    """Highest entry of each row [BR, 1] at p_w -> [BR, 1]; entries that are NaN may be passed over."""
    b_max = tl.full([BR, BK], float("-inf"), ACC)
    for o in range(0, size, BK):
        mask = mask_row & (o + o_k < size)
        b_w = tl.load(p_w + (o + o_k) * s_k, mask, other=float("-inf")).to(ACC)
        b_max = tl.maximum(b_max, b_w)
    return tl.max(b_max, 1)[:, None]


@triton.jit
def shifted(p_w, o_k, mask_row, size, s_k, b_max, ACC: tl.constexpr):
    """w - max, -inf for masked entries. A maximum of +inf leaves 0 for +inf and -inf for the others."""
    mask = mask_row & (o_k < size)
    b_w = tl.load(p_w + o_k * s_k, mask, other=float("-inf")).to(ACC)
    b_finite = tl.where(tl.abs(b_max) == float("inf"), 0.0, b_max)
    b_hot = tl.where(b_w == float("inf"), 0.0, tl.where(b_w == b_w, float("-inf"), b_w))
    return tl.where(b_max == float("inf"), b_hot, b_w - b_finite)


@triton.jit
def shifted_exp(p_w, o_k, mask_row, size, s_k, b_max, ACC: tl.constexpr):
    """e^(w - max), with the limits of ``shifted``."""
    return tl.exp(shifted(p_w, o_k, mask_row, size, s_k, b_max, ACC))


@triton.jit
def row_sum(
    p_w, o_k, mask_row, size, s_k, b_max, ACC: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr
):
    """sum_k e^(w - max) of each row -> [BR, 1]: 0 where all are -inf, NaN where one is."""
    b_sum = tl.zeros([BR, BK], ACC)
    for o in range(0, size, BK):
        b_sum += shifted_exp(p_w, o + o_k, mask_row, size, s_k, b_max, ACC)
    return tl.sum(b_sum, 1)[:, None]


@triton.jit
def log_mean_exp_fwd_kernel(
    p_w,
    p_out,
    rows,
    inner,
    size,
    s_w0,
    s_w1,
    s_wk,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    ACC: tl.constexpr = p_out.dtype.element_ty
    o_r = (tl.program_id(0).to(IDX) * BR + tl.arange(0, BR).to(IDX))[:, None]
    o_k = tl.arange(0, BK).to(IDX)[None, :]
    mask = o_r < rows
    p_row = p_w + (o_r // inner).to(tl.int64) * s_w0 + (o_r % inner).to(tl.int64) * s_w1
    b_max = row_max(p_row, o_k, mask, size, s_wk, ACC, BR, BK)
    b_sum = row_sum(p_row, o_k, mask, size, s_wk, b_max, ACC, BR, BK)
    b_out = tl.log(b_sum / size) + tl.where(b_max == float("-inf"), 0.0, b_max)
    tl.store(p_out + o_r, b_out, mask)


@triton.jit
def log_mean_exp_bwd_kernel(
    p_g,
    p_w,
    p_gw,
    rows,
    inner,
    size,
    s_g0,
    s_g1,
    s_w0,
    s_w1,
    s_wk,
    s_o0,
    s_o1,
    s_ok,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """dw = g e^(w - max) / sum e^(w - max).

    Not g e^(w - out) / K: where log-weights are in the hundreds, the rounding of ``out`` alone is 1e-5
    of the weight.
    """
    ACC: tl.constexpr = p_g.dtype.element_ty
    o_r = (tl.program_id(0).to(IDX) * BR + tl.arange(0, BR).to(IDX))[:, None]
    o_k = tl.arange(0, BK).to(IDX)[None, :]
    o_0 = (o_r // inner).to(tl.int64)
    o_1 = (o_r % inner).to(tl.int64)
    mask = o_r < rows
    p_row = p_w + o_0 * s_w0 + o_1 * s_w1
    p_grad_row = p_gw + o_0 * s_o0 + o_1 * s_o1
    b_max = row_max(p_row, o_k, mask, size, s_wk, ACC, BR, BK)
    b_sum = row_sum(p_row, o_k, mask, size, s_wk, b_max, ACC, BR, BK)
    b_g = tl.load(p_g + o_0 * s_g0 + o_1 * s_g1, mask, other=0.0)
    b_scale = tl.where(b_sum == 0.0, 0.0, b_g / b_sum)
    for o in range(0, size, BK):
        b_e = shifted_exp(p_row, o + o_k, mask, size, s_wk, b_max, ACC)
        tl.store(p_grad_row + (o + o_k) * s_ok, b_scale * b_e, mask & (o + o_k < size))


def _tile(rows: int, size: int, stride: int) -> Tile:
    # Where rows, not their entries, are contiguous in memory, a program takes many rows instead.
    return tile(rows, size, widest=1024 if stride == 1 else 16)


def log_mean_exp_fwd(log_w: Tensor, dim: int) -> Tensor:
    log_w = log_w.movedim(dim, -1)
    out = log_w.new_empty(log_w.shape[:-1], dtype=accumulator(log_w))
    if out.numel() == 0:
        return out
    rows, (log_w,) = row_view(log_w.shape, 1, (log_w,))  # type: ignore[assignment]
    block = _tile(rows.total, rows.size, rows.strides[0][2])
    launch(
        log_mean_exp_fwd_kernel,
        (triton.cdiv(rows.total, block.rows),),
        log_w,
        out,
        rows.total,
        rows.inner,
        rows.size,
        *rows.strides[0],
        IDX=rows.index,
        BR=block.rows,
        BK=block.size,
        num_warps=block.warps,
    )
    return out


def log_mean_exp_bwd(
    grad: Tensor, out: Tensor, log_w: Tensor, dim: int, mask: Sequence[bool]
) -> Tensor:
    if not mask[0]:
        return grad.new_empty(0)
    result = log_w.new_empty(log_w.shape)
    if log_w.numel() == 0:
        return result
    dim %= log_w.ndim
    log_w = log_w.movedim(dim, -1)
    grad_w = result.movedim(dim, -1)
    grad = per_sample(grad, 1, accumulator(log_w))
    rows = collapse(log_w.shape, 1, (grad, log_w, grad_w))
    if rows is None:
        grad_w = log_w.new_empty(log_w.shape)
        result = grad_w.movedim(-1, dim)
        tensors = (grad.contiguous(), log_w.contiguous(), grad_w)
        rows = collapse(log_w.shape, 1, tensors)
        assert rows is not None
        grad, log_w, _ = tensors
    block = _tile(rows.total, rows.size, rows.strides[1][2])
    launch(
        log_mean_exp_bwd_kernel,
        (triton.cdiv(rows.total, block.rows),),
        grad,
        log_w,
        grad_w,
        rows.total,
        rows.inner,
        rows.size,
        *rows.strides[0][:2],
        *rows.strides[1],
        *rows.strides[2],
        IDX=rows.index,
        BR=block.rows,
        BK=block.size,
        num_warps=block.warps,
    )
    return result.contiguous()
