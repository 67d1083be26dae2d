"""Divergence between diagonal Gaussians: one pass forward, one pass backward."""

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
    per_sample,
    row_view,
    tile,
)
from dgm_fast.kernels._math import exp_accurate, expm1_remainder, wide_sum
from torch import Tensor

_STORE = tl.constexpr(STORE)
_ACCUMULATE = tl.constexpr(ACCUMULATE)


@triton.jit
def gaussian_kl_rows(
    p_m,
    p_v,
    p_pm,
    p_pv,
    o_m,
    o_v,
    o_pm,
    o_pv,
    o_d,
    mask_row,
    size,
    s_md,
    s_vd,
    s_pmd,
    s_pvd,
    ACC: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """1/2 sum_d e^t - 1 - t + (m - pm)^2 e^-pv, t = v - pv, of the rows [BR, 1] at o_* -> [BR].

    The prior's pointers are None for mean 0 and log-variance 0.
    """
    b_sum = tl.zeros([BR, BD], ACC)
    for o in range(0, size, BD):
        mask = mask_row & (o + o_d < size)
        b_diff = tl.load(p_m + o_m + (o + o_d) * s_md, mask, other=0.0).to(ACC)
        b_delta = tl.load(p_v + o_v + (o + o_d) * s_vd, mask, other=0.0).to(ACC)
        if p_pm is not None:
            b_diff -= tl.load(p_pm + o_pm + (o + o_d) * s_pmd, mask, other=0.0).to(ACC)
        b_square = b_diff * b_diff
        if p_pv is not None:
            b_pv = tl.load(p_pv + o_pv + (o + o_d) * s_pvd, mask, other=0.0).to(ACC)
            b_delta -= b_pv
            b_square *= exp_accurate(-b_pv)
        b_sum += expm1_remainder(b_delta) + b_square
    return 0.5 * wide_sum(b_sum)


@triton.jit
def gaussian_kl_fwd_kernel(
    p_m,
    p_v,
    p_pm,
    p_pv,
    p_out,
    rows,
    inner,
    size,
    s_m0,
    s_m1,
    s_md,
    s_v0,
    s_v1,
    s_vd,
    s_pm0,
    s_pm1,
    s_pmd,
    s_pv0,
    s_pv1,
    s_pvd,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    ACC: tl.constexpr = p_out.dtype.element_ty
    o_r = tl.program_id(0).to(IDX) * BR + tl.arange(0, BR).to(IDX)
    o_0 = (o_r // inner).to(tl.int64)[:, None]
    o_1 = (o_r % inner).to(tl.int64)[:, None]
    b_out = gaussian_kl_rows(
        p_m,
        p_v,
        p_pm,
        p_pv,
        o_0 * s_m0 + o_1 * s_m1,
        o_0 * s_v0 + o_1 * s_v1,
        o_0 * s_pm0 + o_1 * s_pm1,
        o_0 * s_pv0 + o_1 * s_pv1,
        tl.arange(0, BD).to(IDX)[None, :],
        (o_r < rows)[:, None],
        size,
        s_md,
        s_vd,
        s_pmd,
        s_pvd,
        ACC,
        BR,
        BD,
    )
    tl.store(p_out + o_r, b_out, o_r < rows)


@triton.jit
def gaussian_kl_bwd_kernel(
    p_g,
    p_m,
    p_v,
    p_pm,
    p_pv,
    p_gm,
    p_gv,
    p_gpm,
    p_gpv,
    inner,
    size,
    chunk,
    chunks,
    s_g0,
    s_g1,
    s_m0,
    s_m1,
    s_md,
    s_v0,
    s_v1,
    s_vd,
    s_pm0,
    s_pm1,
    s_pmd,
    s_pv0,
    s_pv1,
    s_pvd,
    scale: tl.float64,
    GRAD_M: tl.constexpr,
    GRAD_V: tl.constexpr,
    GRAD_PM: tl.constexpr,
    GRAD_PV: tl.constexpr,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """dm = g u = -dpm with u = (m - pm) e^-pv, dv = g expm1(t) / 2, dpv = -dv - g (m - pm) u / 2.

    ``scale`` multiplies the incoming gradient g.
    """
    ACC: tl.constexpr = p_g.dtype.element_ty
    o_p = tl.program_id(0)
    o_0 = (o_p // chunks).to(tl.int64)
    first = (o_p % chunks).to(IDX) * chunk
    o_d = (tl.program_id(1) * BD + tl.arange(0, BD)).to(IDX)[None, :]
    b_scale = tl.full([BR, 1], scale, ACC)
    b_sum_m = tl.zeros([BR, BD], ACC)
    b_sum_v = tl.zeros([BR, BD], ACC)
    b_sum_pv = tl.zeros([BR, BD], ACC)
    for start in range(first, tl.minimum(first + chunk, inner), BR):
        o_r = (start + tl.arange(0, BR)).to(tl.int64)[:, None]
        mask = (o_r < inner) & (o_d < size)
        b_g = b_scale * tl.load(p_g + o_0 * s_g0 + o_r * s_g1, o_r < inner, other=0.0)
        # Samples without weight need no data and get plain zeros.
        used = mask & (b_g != 0.0)
        b_diff = tl.load(p_m + o_0 * s_m0 + o_r * s_m1 + o_d * s_md, used, other=0.0).to(ACC)
        b_delta = tl.load(p_v + o_0 * s_v0 + o_r * s_v1 + o_d * s_vd, used, other=0.0).to(ACC)
        if p_pm is not None:
            p_pm_row = p_pm + o_0 * s_pm0 + o_r * s_pm1
            b_diff -= tl.load(p_pm_row + o_d * s_pmd, used, other=0.0).to(ACC)
        b_u = b_diff
        if p_pv is not None:
            p_pv_row = p_pv + o_0 * s_pv0 + o_r * s_pv1
            b_pv = tl.load(p_pv_row + o_d * s_pvd, used, other=0.0).to(ACC)
            b_delta -= b_pv
            b_u *= exp_accurate(-b_pv)
        b_gm = b_g * b_u
        b_gv = 0.5 * b_g * (b_delta + expm1_remainder(b_delta))
        b_gpv = -b_gv - 0.5 * b_gm * b_diff
        o_out = (o_0 * inner + o_r) * size + o_d
        if GRAD_M == _STORE:
            tl.store(p_gm + o_out, b_gm, mask)
        if GRAD_PM == _STORE:
            tl.store(p_gpm + o_out, -b_gm, mask)
        if GRAD_V == _STORE:
            tl.store(p_gv + o_out, b_gv, mask)
        if GRAD_PV == _STORE:
            tl.store(p_gpv + o_out, b_gpv, mask)
        if GRAD_M == _ACCUMULATE or GRAD_PM == _ACCUMULATE:
            b_sum_m += b_gm
        if GRAD_V == _ACCUMULATE:
            b_sum_v += b_gv
        if GRAD_PV == _ACCUMULATE:
            b_sum_pv += b_gpv
    o_sum = o_p.to(tl.int64) * size + tl.program_id(1) * BD + tl.arange(0, BD)
    mask_sum = tl.program_id(1) * BD + tl.arange(0, BD) < size
    if GRAD_M == _ACCUMULATE:
        tl.store(p_gm + o_sum, tl.sum(b_sum_m, 0), mask_sum)
    if GRAD_PM == _ACCUMULATE:
        tl.store(p_gpm + o_sum, -tl.sum(b_sum_m, 0), mask_sum)
    if GRAD_V == _ACCUMULATE:
        tl.store(p_gv + o_sum, tl.sum(b_sum_v, 0), mask_sum)
    if GRAD_PV == _ACCUMULATE:
        tl.store(p_gpv + o_sum, tl.sum(b_sum_pv, 0), mask_sum)


def gaussian_kl_fwd(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None,
    prior_log_var: Tensor | None,
    event_ndim: int,
) -> Tensor:
    args = (mean, log_var, prior_mean, prior_log_var)
    shape = broadcast(*args)
    out_shape = shape[: len(shape) - event_ndim]
    dtype = accumulator(*args)
    if 0 in shape:
        return mean.new_zeros(out_shape, dtype=dtype)
    out = mean.new_empty(out_shape, dtype=dtype)
    rows, tensors = row_view(shape, event_ndim, args)
    block = tile(rows.total, rows.size)
    launch(
        gaussian_kl_fwd_kernel,
        (triton.cdiv(rows.total, block.rows),),
        *tensors,
        out,
        rows.total,
        rows.inner,
        rows.size,
        *rows.strides[0],
        *rows.strides[1],
        *rows.strides[2],
        *rows.strides[3],
        IDX=rows.index,
        BR=block.rows,
        BD=block.size,
        num_warps=block.warps,
    )
    return out


def gaussian_kl_bwd(
    grad: Tensor,
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None,
    prior_log_var: Tensor | None,
    event_ndim: int,
    mask: Sequence[bool],
    *,
    scale: float = 1.0,
) -> tuple[Tensor, ...]:
    """``scale`` multiplies ``grad``."""
    args = (mean, log_var, prior_mean, prior_log_var)
    shape = broadcast(*args)
    if 0 in shape:
        return tuple(no_gradients(grad, args, mask))
    dtype = accumulator(*args, grad)
    plan = Gradients(shape, event_ndim, per_sample(grad, event_ndim, dtype), args, mask, dtype)
    rows = plan.rows
    launch(
        gaussian_kl_bwd_kernel,
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
        *rows.strides[4],
        scale,
        GRAD_M=plan.modes[0],
        GRAD_V=plan.modes[1],
        GRAD_PM=plan.modes[2],
        GRAD_PV=plan.modes[3],
        IDX=rows.index,
        BR=plan.tile.rows,
        BD=plan.tile.size,
        num_warps=plan.tile.warps,
    )
    return tuple(plan.finish())
