"""Bernoulli log-likelihood from logits: one pass forward, one pass backward."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from dgm_fast.kernels._layout import (
    ACCUMULATE,
    SKIP,
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
from dgm_fast.kernels._math import log1p, wide_sum
from torch import Tensor

_SKIP = tl.constexpr(SKIP)
_STORE = tl.constexpr(STORE)
_ACCUMULATE = tl.constexpr(ACCUMULATE)
# Factors in (1, 2] whose product stays in float32.
_FACTORS = tl.constexpr(64)


@triton.jit
def linear_term(b_l, b_x):
    """x l - max(l, 0), NaN where x is outside [0, 1]."""
    b_x = tl.where((b_x >= 0.0) & (b_x <= 1.0), b_x, float("nan"))
    # Subtracting before multiplying: x l - l cancels for x near 1.
    return tl.where(b_l > 0.0, b_x - 1.0, b_x) * b_l


@triton.jit
def more_excess(b_q, b_e):
    """(1 + q)(1 + e) - 1."""
    return b_q + (b_e + b_q * b_e)


@triton.jit
def bernoulli_score(b_l, b_x):
    """x - sigmoid(l)."""
    # sigmoid(l) = 1 - e/(1 + e) for l > 0 and e/(1 + e) else, with e = exp(-|l|).
    b_e = tl.exp(-tl.abs(b_l))
    b_tail = b_e / (1.0 + b_e)
    return tl.where(b_l > 0.0, (b_x - 1.0) + b_tail, b_x - b_tail)


@triton.jit
def bernoulli_rows(
    p_l, p_x, o_d, mask_row, size, s_ld, s_xd, ACC: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr
):
    """sum_d x l - max(l, 0) - log(1 + e^-|l|) of the rows [BR, 1] at p_l and p_x -> [BR].

    The logarithms of up to 64 factors 1 + e become one, of their product. Its excess over 1 is what is
    carried: (1 + q)(1 + e) - 1 = q + e + q e has no cancellation, so e far below the rounding error of
    1 + e still counts.
    """
    b_sum = tl.zeros([BR, BD], ACC)
    for start in range(0, size, BD * _FACTORS):
        b_excess = tl.zeros([BR, BD], ACC)
        for o in range(start, tl.minimum(start + BD * _FACTORS, size), BD):
            mask = mask_row & (o + o_d < size)
            # A logit this low has e = 0 and is finite in every dtype: no term for masked lanes.
            b_l = tl.load(p_l + (o + o_d) * s_ld, mask, other=-3e4).to(ACC)
            b_x = tl.load(p_x + (o + o_d) * s_xd, mask, other=0).to(ACC)
            b_excess = more_excess(b_excess, tl.exp(-tl.abs(b_l)))
            b_sum += linear_term(b_l, b_x)
        b_sum -= log1p(b_excess)
    return wide_sum(b_sum)


@triton.jit
def bernoulli_log_prob_fwd_kernel(
    p_l,
    p_x,
    p_out,
    rows,
    inner,
    size,
    s_l0,
    s_l1,
    s_ld,
    s_x0,
    s_x1,
    s_xd,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    ACC: tl.constexpr = p_out.dtype.element_ty
    o_r = tl.program_id(0).to(IDX) * BR + tl.arange(0, BR).to(IDX)
    o_0 = (o_r // inner).to(tl.int64)[:, None]
    o_1 = (o_r % inner).to(tl.int64)[:, None]
    o_d = tl.arange(0, BD).to(IDX)[None, :]
    b_out = bernoulli_rows(
        p_l + o_0 * s_l0 + o_1 * s_l1,
        p_x + o_0 * s_x0 + o_1 * s_x1,
        o_d,
        (o_r < rows)[:, None],
        size,
        s_ld,
        s_xd,
        ACC,
        BR,
        BD,
    )
    tl.store(p_out + o_r, b_out, o_r < rows)


@triton.jit
def bernoulli_log_prob_bwd_kernel(
    p_g,
    p_l,
    p_x,
    p_gl,
    p_gx,
    inner,
    size,
    chunk,
    chunks,
    s_g0,
    s_g1,
    s_l0,
    s_l1,
    s_ld,
    s_x0,
    s_x1,
    s_xd,
    GRAD_L: tl.constexpr,
    GRAD_X: tl.constexpr,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """dl = g (x - sigmoid(l)), dx = g l, of a chunk of inner rows and a block of elements."""
    ACC: tl.constexpr = p_g.dtype.element_ty
    o_p = tl.program_id(0)
    o_0 = (o_p // chunks).to(tl.int64)
    first = (o_p % chunks).to(IDX) * chunk
    o_d = (tl.program_id(1) * BD + tl.arange(0, BD)).to(IDX)[None, :]
    if GRAD_L == _ACCUMULATE:
        b_sum_l = tl.zeros([BR, BD], ACC)
    if GRAD_X == _ACCUMULATE:
        b_sum_x = tl.zeros([BR, BD], ACC)
    for start in range(first, tl.minimum(first + chunk, inner), BR):
        o_r = (start + tl.arange(0, BR)).to(tl.int64)[:, None]
        mask = (o_r < inner) & (o_d < size)
        b_g = tl.load(p_g + o_0 * s_g0 + o_r * s_g1, o_r < inner, other=0.0)
        # Samples without weight need no data and get plain zeros.
        used = mask & (b_g != 0.0)
        b_l = tl.load(p_l + o_0 * s_l0 + o_r * s_l1 + o_d * s_ld, used, other=0.0).to(ACC)
        o_out = (o_0 * inner + o_r) * size + o_d
        if GRAD_L != _SKIP:
            b_x = tl.load(p_x + o_0 * s_x0 + o_r * s_x1 + o_d * s_xd, used, other=0).to(ACC)
            b_gl = b_g * bernoulli_score(b_l, b_x)
            if GRAD_L == _ACCUMULATE:
                b_sum_l += b_gl
            else:
                tl.store(p_gl + o_out, b_gl, mask)
        if GRAD_X == _STORE:
            tl.store(p_gx + o_out, b_g * b_l, mask)
        if GRAD_X == _ACCUMULATE:
            b_sum_x += b_g * b_l
    o_sum = o_p.to(tl.int64) * size + tl.program_id(1) * BD + tl.arange(0, BD)
    mask_sum = tl.program_id(1) * BD + tl.arange(0, BD) < size
    if GRAD_L == _ACCUMULATE:
        tl.store(p_gl + o_sum, tl.sum(b_sum_l, 0), mask_sum)
    if GRAD_X == _ACCUMULATE:
        tl.store(p_gx + o_sum, tl.sum(b_sum_x, 0), mask_sum)


def bernoulli_log_prob_fwd(logits: Tensor, x: Tensor, event_ndim: int) -> Tensor:
    x = numeric(x)
    shape = broadcast(logits, x)
    out_shape = shape[: len(shape) - event_ndim]
    dtype = accumulator(logits)
    if 0 in shape:
        return logits.new_zeros(out_shape, dtype=dtype)
    out = logits.new_empty(out_shape, dtype=dtype)
    rows, (logits, x) = row_view(shape, event_ndim, (logits, x))  # type: ignore[assignment]
    block = tile(rows.total, rows.size)
    launch(
        bernoulli_log_prob_fwd_kernel,
        (triton.cdiv(rows.total, block.rows),),
        logits,
        x,
        out,
        rows.total,
        rows.inner,
        rows.size,
        *rows.strides[0],
        *rows.strides[1],
        IDX=rows.index,
        BR=block.rows,
        BD=block.size,
        num_warps=block.warps,
    )
    return out


def bernoulli_log_prob_bwd(
    grad: Tensor, logits: Tensor, x: Tensor, event_ndim: int, mask: Sequence[bool]
) -> tuple[Tensor, ...]:
    args = (logits, numeric(x))
    shape = broadcast(*args)
    if 0 in shape:
        return tuple(no_gradients(grad, args, mask))
    dtype = accumulator(logits)
    plan = Gradients(shape, event_ndim, per_sample(grad, event_ndim, dtype), args, mask, dtype)
    rows = plan.rows
    launch(
        bernoulli_log_prob_bwd_kernel,
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
        GRAD_L=plan.modes[0],
        GRAD_X=plan.modes[1],
        IDX=rows.index,
        BR=plan.tile.rows,
        BD=plan.tile.size,
        num_warps=plan.tile.warps,
    )
    return tuple(plan.finish())
