"""Gaussian log-likelihood with unit, shared or own variance: one pass forward, one pass backward."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from dgm_fast.kernels._layout import (
    ACCUMULATE,
    STORE,
    Gradients,
    accumulator,
    broadcast,
    launch,
    no_gradients,
    numeric,
    per_sample,
    row_view,
    tile,
)
from dgm_fast.kernels._math import LOG_2PI, exp_accurate, wide_sum
from torch import Tensor

_STORE = tl.constexpr(STORE)
_ACCUMULATE = tl.constexpr(ACCUMULATE)


@triton.jit
def gaussian_rows(
    p_x,
    p_m,
    p_v,
    o_x,
    o_m,
    o_v,
    o_d,
    mask_row,
    size,
    s_xd,
    s_md,
    s_vd,
    ACC: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """-1/2 sum_d log 2 pi + v + (x - m)^2 e^-v of the rows [BR, 1] at offsets o_* -> [BR].

    p_v is None for unit variance.
    """
    b_sum = tl.zeros([BR, BD], ACC)
    for o in range(0, size, BD):
        mask = mask_row & (o + o_d < size)
        b_x = tl.load(p_x + o_x + (o + o_d) * s_xd, mask, other=0).to(ACC)
        b_m = tl.load(p_m + o_m + (o + o_d) * s_md, mask, other=0.0).to(ACC)
        b_diff = b_x - b_m
        if p_v is None:
            b_sum += b_diff * b_diff
        else:
            b_v = tl.load(p_v + o_v + (o + o_d) * s_vd, mask, other=0.0).to(ACC)
            b_sum += b_v + b_diff * b_diff * exp_accurate(-b_v)
    return -0.5 * (wide_sum(b_sum) + size * tl.full([BR], LOG_2PI, tl.float64))


@triton.jit
def gaussian_log_prob_fwd_kernel(
    p_x,
    p_m,
    p_v,
    p_out,
    rows,
    inner,
    size,
    s_x0,
    s_x1,
    s_xd,
    s_m0,
    s_m1,
    s_md,
    s_v0,
    s_v1,
    s_vd,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    ACC: tl.constexpr = p_out.dtype.element_ty
    o_r = tl.program_id(0).to(IDX) * BR + tl.arange(0, BR).to(IDX)
    o_0 = (o_r // inner).to(tl.int64)[:, None]
    o_1 = (o_r % inner).to(tl.int64)[:, None]
    b_out = gaussian_rows(
        p_x,
        p_m,
        p_v,
        o_0 * s_x0 + o_1 * s_x1,
        o_0 * s_m0 + o_1 * s_m1,
        o_0 * s_v0 + o_1 * s_v1,
        tl.arange(0, BD).to(IDX)[None, :],
        (o_r < rows)[:, None],
        size,
        s_xd,
        s_md,
        s_vd,
        ACC,
        BR,
        BD,
    )
    tl.store(p_out + o_r, b_out, o_r < rows)


@triton.jit
def gaussian_log_prob_bwd_kernel(
    p_g,
    p_x,
    p_m,
    p_v,
    p_gx,
    p_gm,
    p_gv,
    inner,
    size,
    chunk,
    chunks,
    s_g0,
    s_g1,
    s_x0,
    s_x1,
    s_xd,
    s_m0,
    s_m1,
    s_md,
    s_v0,
    s_v1,
    s_vd,
    GRAD_X: tl.constexpr,
    GRAD_M: tl.constexpr,
    GRAD_V: tl.constexpr,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """dm = g t, dx = -g t, dv = g ((x - m) t - 1) / 2 with t = (x - m) e^-v."""
    ACC: tl.constexpr = p_g.dtype.element_ty
    o_p = tl.program_id(0)
    o_0 = (o_p // chunks).to(tl.int64)
    first = (o_p % chunks).to(IDX) * chunk
    o_d = (tl.program_id(1) * BD + tl.arange(0, BD)).to(IDX)[None, :]
    b_sum_m = tl.zeros([BR, BD], ACC)
    b_sum_v = tl.zeros([BR, BD], ACC)
    for start in range(first, tl.minimum(first + chunk, inner), BR):
        o_r = (start + tl.arange(0, BR)).to(tl.int64)[:, None]
        mask = (o_r < inner) & (o_d < size)
        b_g = tl.load(p_g + o_0 * s_g0 + o_r * s_g1, o_r < inner, other=0.0)
        # Samples without weight need no data and get plain zeros.
        used = mask & (b_g != 0.0)
        b_x = tl.load(p_x + o_0 * s_x0 + o_r * s_x1 + o_d * s_xd, used, other=0).to(ACC)
        b_m = tl.load(p_m + o_0 * s_m0 + o_r * s_m1 + o_d * s_md, used, other=0.0).to(ACC)
        b_diff = b_x - b_m
        b_t = b_diff
        if p_v is not None:
            b_v = tl.load(p_v + o_0 * s_v0 + o_r * s_v1 + o_d * s_vd, used, other=0.0).to(ACC)
            b_t *= exp_accurate(-b_v)
        b_gm = b_g * b_t
        o_out = (o_0 * inner + o_r) * size + o_d
        if GRAD_M == _STORE:
            tl.store(p_gm + o_out, b_gm, mask)
        if GRAD_X == _STORE:
            tl.store(p_gx + o_out, -b_gm, mask)
        if GRAD_M == _ACCUMULATE or GRAD_X == _ACCUMULATE:
            b_sum_m += b_gm
        if p_v is not None:
            b_gv = 0.5 * b_g * (b_diff * b_t - 1.0)
            if GRAD_V == _STORE:
                tl.store(p_gv + o_out, b_gv, mask)
            if GRAD_V == _ACCUMULATE:
                b_sum_v += b_gv
    o_sum = o_p.to(tl.int64) * size + tl.program_id(1) * BD + tl.arange(0, BD)
    mask_sum = tl.program_id(1) * BD + tl.arange(0, BD) < size
    if GRAD_M == _ACCUMULATE:
        tl.store(p_gm + o_sum, tl.sum(b_sum_m, 0), mask_sum)
    if GRAD_X == _ACCUMULATE:
        tl.store(p_gx + o_sum, -tl.sum(b_sum_m, 0), mask_sum)
    if GRAD_V == _ACCUMULATE:
        tl.store(p_gv + o_sum, tl.sum(b_sum_v, 0), mask_sum)


def gaussian_log_prob_fwd(
    x: Tensor, mean: Tensor, log_var: Tensor | None, event_ndim: int
) -> Tensor:
    x = numeric(x)
    shape = broadcast(x, mean, log_var)
    out_shape = shape[: len(shape) - event_ndim]
    dtype = accumulator(x, mean, log_var)
    if 0 in shape:
        return mean.new_zeros(out_shape, dtype=dtype)
    out = mean.new_empty(out_shape, dtype=dtype)
    rows, tensors = row_view(shape, event_ndim, (x, mean, log_var))
    block = tile(rows.total, rows.size)
    launch(
        gaussian_log_prob_fwd_kernel,
        (triton.cdiv(rows.total, block.rows),),
        *tensors,
        out,
        rows.total,
        rows.inner,
        rows.size,
        *rows.strides[0],
        *rows.strides[1],
        *rows.strides[2],
        IDX=rows.index,
        BR=block.rows,
        BD=block.size,
        num_warps=block.warps,
    )
    return out


def gaussian_log_prob_bwd(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    log_var: Tensor | None,
    event_ndim: int,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    args = (numeric(x), mean, log_var)
    shape = broadcast(*args)
    if 0 in shape:
        return tuple(no_gradients(grad, args, mask))
    dtype = accumulator(*args)
    plan = Gradients(shape, event_ndim, per_sample(grad, event_ndim, dtype), args, mask, dtype)
    rows = plan.rows
    launch(
        gaussian_log_prob_bwd_kernel,
        plan.grid,
        *plan.tensors,
        *plan.buffers,
        rows.inner,
        rows.size,
        plan.chunk,
        plan.chunks,
        *rows.strides[0][:2],
        *rows.strides[1],
        *rows.strides[2],
        *rows.strides[3],
        GRAD_X=plan.modes[0],
        GRAD_M=plan.modes[1],
        GRAD_V=plan.modes[2],
        IDX=rows.index,
        BR=plan.tile.rows,
        BD=plan.tile.size,
        num_warps=plan.tile.warps,
    )
    return tuple(plan.finish())
