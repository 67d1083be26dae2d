"""Reparameterised samples of a diagonal Gaussian; the parameters broadcast over samples in the kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._layout import (
    ACCUMULATE,
    STORE,
    Gradients,
    accumulator,
    launch,
    no_gradients,
    row_view,
    tile,
)
from dgm_fast.kernels._math import exp_accurate
from torch import Tensor

_STORE = tl.constexpr(STORE)
_ACCUMULATE = tl.constexpr(ACCUMULATE)


@triton.jit
def reparameterize_fwd_kernel(
    p_m,
    p_v,
    p_e,
    p_z,
    rows,
    inner,
    size,
    s_m0,
    s_m1,
    s_md,
    s_v0,
    s_v1,
    s_vd,
    s_e0,
    s_e1,
    s_ed,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    o_r = (tl.program_id(0).to(IDX) * BR + tl.arange(0, BR).to(IDX))[:, None]
    o_d = (tl.program_id(1) * BD + tl.arange(0, BD)).to(IDX)[None, :]
    mask = (o_r < rows) & (o_d < size)
    o_0 = (o_r // inner).to(tl.int64)
    o_1 = (o_r % inner).to(tl.int64)
    b_m = tl.load(p_m + o_0 * s_m0 + o_1 * s_m1 + o_d * s_md, mask, other=0.0).to(ACC)
    b_v = tl.load(p_v + o_0 * s_v0 + o_1 * s_v1 + o_d * s_vd, mask, other=0.0).to(ACC)
    b_e = tl.load(p_e + o_0 * s_e0 + o_1 * s_e1 + o_d * s_ed, mask, other=0.0).to(ACC)
    tl.store(p_z + o_r.to(tl.int64) * size + o_d, b_m + exp_accurate(0.5 * b_v) * b_e, mask)


@triton.jit
def reparameterize_bwd_kernel(
    p_g,
    p_m,
    p_v,
    p_e,
    p_gm,
    p_gv,
    inner,
    size,
    chunk,
    chunks,
    s_g0,
    s_g1,
    s_gd,
    s_v0,
    s_v1,
    s_vd,
    s_e0,
    s_e1,
    s_ed,
    GRAD_M: tl.constexpr,
    GRAD_V: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """dm = g, dv = g e exp(v/2) / 2; p_m is unused (the gradient does not depend on the mean)."""
    o_p = tl.program_id(0)
    o_0 = (o_p // chunks).to(tl.int64)
    first = (o_p % chunks).to(IDX) * chunk
    o_d = (tl.program_id(1) * BD + tl.arange(0, BD)).to(IDX)[None, :]
    b_sum_m = tl.zeros([BR, BD], ACC)
    b_sum_v = tl.zeros([BR, BD], ACC)
    for start in range(first, tl.minimum(first + chunk, inner), BR):
        o_r = (start + tl.arange(0, BR)).to(tl.int64)[:, None]
        mask = (o_r < inner) & (o_d < size)
        b_gm = tl.load(p_g + o_0 * s_g0 + o_r * s_g1 + o_d * s_gd, mask, other=0.0).to(ACC)
        b_v = tl.load(p_v + o_0 * s_v0 + o_r * s_v1 + o_d * s_vd, mask, other=0.0).to(ACC)
        b_e = tl.load(p_e + o_0 * s_e0 + o_r * s_e1 + o_d * s_ed, mask, other=0.0).to(ACC)
        b_gv = b_gm * (0.5 * exp_accurate(0.5 * b_v)) * b_e
        o_out = (o_0 * inner + o_r) * size + o_d
        if GRAD_M == _STORE:
            tl.store(p_gm + o_out, b_gm, mask)
        if GRAD_M == _ACCUMULATE:
            b_sum_m += b_gm
        if GRAD_V == _STORE:
            tl.store(p_gv + o_out, b_gv, mask)
        if GRAD_V == _ACCUMULATE:
            b_sum_v += b_gv
    o_sum = o_p.to(tl.int64) * size + tl.program_id(1) * BD + tl.arange(0, BD)
    mask_sum = tl.program_id(1) * BD + tl.arange(0, BD) < size
    if GRAD_M == _ACCUMULATE:
        tl.store(p_gm + o_sum, tl.sum(b_sum_m, 0), mask_sum)
    if GRAD_V == _ACCUMULATE:
        tl.store(p_gv + o_sum, tl.sum(b_sum_v, 0), mask_sum)


def _accumulator(mean: Tensor, log_var: Tensor) -> tuple[torch.dtype, tl.dtype]:
    dtype = accumulator(mean, log_var)
    return dtype, tl.float64 if dtype == torch.float64 else tl.float32


def reparameterize_fwd(mean: Tensor, log_var: Tensor, eps: Tensor) -> Tensor:
    z = eps.new_empty(eps.shape, dtype=torch.promote_types(mean.dtype, log_var.dtype))
    if eps.numel() == 0:
        return z
    if eps.ndim == mean.ndim + 1:
        mean, log_var = mean.unsqueeze(-2), log_var.unsqueeze(-2)
    rows, tensors = row_view(eps.shape, 1, (mean, log_var, eps))
    block = tile(rows.total, rows.size)
    launch(
        reparameterize_fwd_kernel,
        (triton.cdiv(rows.total, block.rows), triton.cdiv(rows.size, block.size)),
        *tensors,
        z,
        rows.total,
        rows.inner,
        rows.size,
        *rows.strides[0],
        *rows.strides[1],
        *rows.strides[2],
        ACC=_accumulator(mean, log_var)[1],
        IDX=rows.index,
        BR=block.rows,
        BD=block.size,
        num_warps=block.warps,
    )
    return z


def reparameterize_bwd(
    grad: Tensor, mean: Tensor, log_var: Tensor, eps: Tensor, mask: Sequence[bool]
) -> tuple[Tensor, ...]:
    shape = mean.shape
    if eps.numel() == 0:
        return tuple(no_gradients(grad, (mean, log_var), mask))
    if eps.ndim == mean.ndim + 1:
        mean, log_var = mean.unsqueeze(-2), log_var.unsqueeze(-2)
    dtype, acc = _accumulator(mean, log_var)
    plan = Gradients(eps.shape, 1, grad, (mean, log_var, eps), (*mask, False), dtype)
    rows = plan.rows
    launch(
        reparameterize_bwd_kernel,
        plan.grid,
        *plan.tensors,
        *plan.buffers[:2],
        rows.inner,
        rows.size,
        plan.chunk,
        plan.chunks,
        *rows.strides[0],
        *rows.strides[2],
        *rows.strides[3],
        GRAD_M=plan.modes[0],
        GRAD_V=plan.modes[1],
        ACC=acc,
        IDX=rows.index,
        BR=plan.tile.rows,
        BD=plan.tile.size,
        num_warps=plan.tile.warps,
    )
    grads = zip(plan.finish()[:2], mask, strict=True)
    return tuple(g.reshape(shape) if wanted else g for g, wanted in grads)
