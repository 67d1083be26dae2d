"""Affine maps with their log-determinant in the same pass: couplings and actnorm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._layout import (
    accumulator,
    index_type,
    launch,
    numeric,
    per_sample,
    row_view,
    tile,
)
from dgm_fast.kernels._math import exp_accurate, log1p, tanh
from torch import Tensor

_TWO_OVER_PI = tl.constexpr(0.6366197723675814)
_PI_OVER_TWO = tl.constexpr(1.5707963267948966)
_ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}
# Elements of a program of an element-wise kernel, and partial sums of a gradient over samples.
_BLOCK = 1024
_PARTS = 64


@triton.jit
def atan(x):
    """Arc tangent: by its argument's reciprocal above 1, two halvings of the angle, and a series."""
    b_a = tl.abs(x)
    b_r = tl.minimum(b_a, 1.0 / tl.maximum(b_a, 1e-30))
    for _ in tl.static_range(2):
        b_r = b_r / (1.0 + tl.sqrt(1.0 + b_r * b_r))
    # |r| <= 0.199: the first term left out is below half an ulp.
    TERMS: tl.constexpr = 11 if x.dtype == tl.float64 else 5
    b_s = b_r * b_r
    b_p = tl.zeros_like(b_s) + 1.0 / (2 * TERMS + 1)
    for i in tl.static_range(TERMS):
        b_p = -b_s * b_p + 1.0 / (2 * (TERMS - i) - 1)
    b_angle = 4.0 * b_r * b_p
    b_angle = tl.where(b_a > 1.0, -b_angle + _PI_OVER_TWO, b_angle)
    return tl.where(x < 0.0, -b_angle, b_angle)


@triton.jit
def scale_of(b_u, MAP: tl.constexpr, CLAMP: tl.constexpr):
    """The log-scale of parameter u, and its derivative."""
    if MAP == 0:
        b_log = b_u
        b_rise = tl.zeros_like(b_u) + 1.0
    elif MAP == 1 or MAP == 2:
        b_v = b_u + 2.0 if MAP == 1 else b_u
        b_e = tl.exp(-tl.abs(b_v))
        b_inverse = 1.0 / (1.0 + b_e)
        b_sigmoid = tl.where(b_v < 0.0, b_e * b_inverse, b_inverse)
        if MAP == 1:
            b_value = b_sigmoid + 1e-3
            b_rise = b_e * b_inverse * b_inverse / b_value
        else:
            b_value = tl.maximum(b_v, 0.0) + log1p(b_e) + 1e-3
            b_rise = b_sigmoid / b_value
        b_log = tl.log(b_value)
    elif MAP == 3:
        b_t = tanh(b_u / CLAMP)
        b_log = b_t * CLAMP
        b_rise = 1.0 - b_t * b_t
    elif MAP == 4:
        b_log = atan(b_u) * CLAMP * _TWO_OVER_PI
        b_rise = 1.0 / (1.0 + b_u * b_u) * CLAMP * _TWO_OVER_PI
    else:
        b_shrink = 1.0 / (1.0 + tl.abs(b_u) / CLAMP)
        b_log = b_u * b_shrink
        b_rise = b_shrink * b_shrink
    return b_log, b_rise


@triton.jit
def affine_coupling_fwd_kernel(
    p_x,
    p_u,
    p_t,
    p_m,
    p_y,
    p_log_det,
    rows,
    inner,
    size,
    s_x0,
    s_x1,
    s_xd,
    s_u0,
    s_u1,
    s_ud,
    s_t0,
    s_t1,
    s_td,
    s_m0,
    s_m1,
    s_md,
    INVERSE: tl.constexpr,
    MAP: tl.constexpr,
    CLAMP: tl.constexpr,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    ACC: tl.constexpr = p_log_det.dtype.element_ty
    o_r = (tl.program_id(0).to(IDX) * BR + tl.arange(0, BR).to(IDX))[:, None]
    o_0 = (o_r // inner).to(tl.int64)
    o_1 = (o_r % inner).to(tl.int64)
    b_sum = tl.zeros([BR, BD], ACC)
    for start in range(0, size, BD):
        o_d = (start + tl.arange(0, BD).to(IDX))[None, :]
        mask = (o_r < rows) & (o_d < size)
        b_x = tl.load(p_x + o_0 * s_x0 + o_1 * s_x1 + o_d * s_xd, mask, other=0.0).to(ACC)
        b_u = tl.load(p_u + o_0 * s_u0 + o_1 * s_u1 + o_d * s_ud, mask, other=0.0).to(ACC)
        b_t = tl.load(p_t + o_0 * s_t0 + o_1 * s_t1 + o_d * s_td, mask, other=0.0).to(ACC)
        b_log, _ = scale_of(b_u, MAP, CLAMP)
        b_factor = exp_accurate(-b_log if INVERSE else b_log)
        b_y = (b_x - b_t) * b_factor if INVERSE else b_x * b_factor + b_t
        used = mask
        if p_m is not None:
            b_m = tl.load(p_m + o_0 * s_m0 + o_1 * s_m1 + o_d * s_md, mask, other=0)
            used = mask & (b_m != 0)
            b_y = tl.where(b_m != 0, b_y, b_x)
        b_sum += tl.where(used, b_log, 0.0)
        tl.store(p_y + o_r.to(tl.int64) * size + o_d, b_y, mask)
    b_total = tl.sum(b_sum, 1)[:, None]
    tl.store(p_log_det + o_r, -b_total if INVERSE else b_total, o_r < rows)


@triton.jit
def affine_coupling_bwd_kernel(
    p_x,
    p_u,
    p_t,
    p_m,
    p_gy,
    p_gl,
    p_gx,
    p_gu,
    p_gt,
    elements,
    inner,
    size,
    s_x0,
    s_x1,
    s_xd,
    s_u0,
    s_u1,
    s_ud,
    s_t0,
    s_t1,
    s_td,
    s_m0,
    s_m1,
    s_md,
    s_gy0,
    s_gy1,
    s_gyd,
    s_gl0,
    s_gl1,
    s_gld,
    INVERSE: tl.constexpr,
    MAP: tl.constexpr,
    CLAMP: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BE: tl.constexpr,
):
    o_e = tl.program_id(0).to(IDX) * BE + tl.arange(0, BE).to(IDX)
    mask = o_e < elements
    o_r = o_e // size
    o_d = (o_e % size).to(tl.int64)
    o_0 = (o_r // inner).to(tl.int64)
    o_1 = (o_r % inner).to(tl.int64)
    b_x = tl.load(p_x + o_0 * s_x0 + o_1 * s_x1 + o_d * s_xd, mask, other=0.0).to(ACC)
    b_u = tl.load(p_u + o_0 * s_u0 + o_1 * s_u1 + o_d * s_ud, mask, other=0.0).to(ACC)
    b_log, b_rise = scale_of(b_u, MAP, CLAMP)
    b_gy = tl.zeros([BE], ACC)
    if p_gy is not None:
        b_gy = tl.load(p_gy + o_0 * s_gy0 + o_1 * s_gy1 + o_d * s_gyd, mask, other=0.0).to(ACC)
    b_gl = tl.zeros([BE], ACC)
    if p_gl is not None:
        b_gl = tl.load(p_gl + o_0 * s_gl0 + o_1 * s_gl1 + o_d * s_gld, mask, other=0.0).to(ACC)
    if INVERSE:
        b_t = tl.load(p_t + o_0 * s_t0 + o_1 * s_t1 + o_d * s_td, mask, other=0.0).to(ACC)
        b_gx = b_gy * exp_accurate(-b_log)
        b_gt = -b_gx
        b_gu = -(b_gx * (b_x - b_t) + b_gl) * b_rise
    else:
        b_gx = b_gy * exp_accurate(b_log)
        b_gt = b_gy
        b_gu = (b_gx * b_x + b_gl) * b_rise
    if p_m is not None:
        used = tl.load(p_m + o_0 * s_m0 + o_1 * s_m1 + o_d * s_md, mask, other=0) != 0
        b_gx = tl.where(used, b_gx, b_gy)
        b_gt = tl.where(used, b_gt, 0.0)
        b_gu = tl.where(used, b_gu, 0.0)
    if p_gx is not None:
        tl.store(p_gx + o_e, b_gx, mask)
    if p_gu is not None:
        tl.store(p_gu + o_e, b_gu, mask)
    if p_gt is not None:
        tl.store(p_gt + o_e, b_gt, mask)


def affine_coupling_fwd(
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    mask: Tensor | None,
    inverse: bool,
    event_ndim: int,
    scale: int,
    clamp: float,
) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape)
    log_det = x.new_empty(x.shape[: x.ndim - event_ndim], dtype=accumulator(x))
    if x.numel() == 0:
        return y, log_det.zero_()
    mask = None if mask is None else numeric(mask)
    rows, tensors = row_view(x.shape, event_ndim, (x, log_scale, shift, mask))
    block = tile(rows.total, rows.size)
    launch(
        affine_coupling_fwd_kernel,
        (triton.cdiv(rows.total, block.rows),),
        *tensors,
        y,
        log_det,
        rows.total,
        rows.inner,
        rows.size,
        *(s for three in rows.strides for s in three),
        INVERSE=inverse,
        MAP=scale,
        CLAMP=clamp,
        IDX=rows.index,
        BR=block.rows,
        BD=block.size,
        num_warps=block.warps,
    )
    return y, log_det


def affine_coupling_bwd(
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    mask: Tensor | None,
    inverse: bool,
    event_ndim: int,
    scale: int,
    clamp: float,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    arguments = (x, log_scale, shift)
    grads = [x.new_empty(x.shape if needed else 0) for needed in wanted]
    if x.numel():
        dtype = accumulator(x)
        of_log = None if grad_log_det is None else per_sample(grad_log_det, event_ndim, dtype)
        mask = None if mask is None else numeric(mask)
        rows, tensors = row_view(x.shape, event_ndim, (*arguments, mask, grad_y, of_log))
        elements = x.numel()
        launch(
            affine_coupling_bwd_kernel,
            (triton.cdiv(elements, _BLOCK),),
            *tensors,
            *(g if needed else None for g, needed in zip(grads, wanted, strict=True)),
            elements,
            rows.inner,
            rows.size,
            *(s for three in rows.strides for s in three),
            INVERSE=inverse,
            MAP=scale,
            CLAMP=clamp,
            ACC=_ACCUMULATORS[dtype],
            IDX=index_type(elements),
            BE=_BLOCK,
            num_warps=4,
        )
    return tuple(
        g.sum_to_size(a.shape) if needed else g
        for g, a, needed in zip(grads, arguments, wanted, strict=True)
    )


@triton.jit
def actnorm_fwd_kernel(
    p_x,
    p_l,
    p_b,
    p_y,
    elements,
    channels,
    inner,
    INVERSE: tl.constexpr,
    IDX: tl.constexpr,
    BE: tl.constexpr,
):
    ACC: tl.constexpr = p_l.dtype.element_ty
    o_e = tl.program_id(0).to(IDX) * BE + tl.arange(0, BE).to(IDX)
    mask = o_e < elements
    o_c = (o_e // inner) % channels
    b_x = tl.load(p_x + o_e, mask, other=0.0).to(ACC)
    b_l = tl.load(p_l + o_c, mask, other=0.0)
    b_b = tl.load(p_b + o_c, mask, other=0.0)
    b_factor = exp_accurate(-b_l if INVERSE else b_l)
    b_y = (b_x - b_b) * b_factor if INVERSE else b_x * b_factor + b_b
    tl.store(p_y + o_e, b_y, mask)


@triton.jit
def actnorm_bwd_kernel(
    p_x,
    p_l,
    p_b,
    p_g,
    p_gx,
    p_gl,
    p_gb,
    samples,
    channels,
    inner,
    chunk,
    INVERSE: tl.constexpr,
    IDX: tl.constexpr,
    BE: tl.constexpr,
):
    """One channel and one part of the samples: its gradient, and partial sums of the parameters'."""
    ACC: tl.constexpr = p_l.dtype.element_ty
    o_c = tl.program_id(0)
    o_p = tl.program_id(1)
    b_l = tl.load(p_l + o_c)
    b_b = tl.load(p_b + o_c)
    b_factor = exp_accurate(-b_l if INVERSE else b_l)
    first = o_p.to(IDX) * chunk
    last = tl.minimum(first + chunk, samples * inner)
    b_sum_l = tl.zeros([BE], ACC)
    b_sum_b = tl.zeros([BE], ACC)
    for start in range(first, last, BE):
        o_i = start + tl.arange(0, BE).to(IDX)
        mask = o_i < last
        o_e = ((o_i // inner) * channels + o_c) * inner + o_i % inner
        b_x = tl.load(p_x + o_e, mask, other=0.0).to(ACC)
        b_g = tl.load(p_g + o_e, mask, other=0.0).to(ACC)
        b_gx = b_g * b_factor
        if p_gx is not None:
            tl.store(p_gx + o_e, b_gx, mask)
        if INVERSE:
            b_sum_l -= tl.where(mask, b_gx * (b_x - b_b), 0.0)
            b_sum_b -= b_gx
        else:
            b_sum_l += b_gx * b_x
            b_sum_b += b_g
    if p_gl is not None:
        tl.store(p_gl + o_p * channels + o_c, tl.sum(b_sum_l, 0))
        tl.store(p_gb + o_p * channels + o_c, tl.sum(b_sum_b, 0))


def _inner(x: Tensor) -> int:
    return math.prod(x.shape[2:])


def actnorm_fwd(x: Tensor, log_scale: Tensor, bias: Tensor, inverse: bool) -> Tensor:
    y = x.new_empty(x.shape)
    if x.numel():
        dtype = accumulator(x)
        launch(
            actnorm_fwd_kernel,
            (triton.cdiv(x.numel(), _BLOCK),),
            x.contiguous(),
            log_scale.to(dtype).contiguous(),
            bias.to(dtype).contiguous(),
            y,
            x.numel(),
            x.shape[1],
            _inner(x),
            INVERSE=inverse,
            IDX=index_type(x.numel()),
            BE=_BLOCK,
            num_warps=4,
        )
    return y


def actnorm_bwd(
    grad: Tensor,
    x: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    inverse: bool,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    dtype = accumulator(x)
    grad_x = x.new_empty(x.shape if mask[0] else 0)
    channels, inner = x.shape[1], _inner(x)
    total = x.shape[0] * inner
    sums = mask[1] or mask[2]
    parts = max(1, min(_PARTS, triton.cdiv(total, _BLOCK)))
    grad_l, grad_b = (x.new_empty((parts, channels), dtype=dtype) for _ in range(2))
    if x.numel():
        launch(
            actnorm_bwd_kernel,
            (channels, parts),
            x.contiguous(),
            log_scale.to(dtype).contiguous(),
            bias.to(dtype).contiguous(),
            grad.to(x.dtype).contiguous(),
            grad_x if mask[0] else None,
            grad_l if sums else None,
            grad_b if sums else None,
            x.shape[0],
            channels,
            inner,
            triton.cdiv(total, parts),
            INVERSE=inverse,
            IDX=index_type(x.numel()),
            BE=_BLOCK,
            num_warps=4,
        )
    else:
        grad_l.zero_(), grad_b.zero_()

    def finish(partial: Tensor, argument: Tensor, wanted: bool) -> Tensor:
        return partial.sum(0).to(argument.dtype) if wanted else x.new_empty(0)

    return grad_x, finish(grad_l, log_scale, mask[1]), finish(grad_b, bias, mask[2])


__all__: list[Any] = ["actnorm_bwd", "actnorm_fwd", "affine_coupling_bwd", "affine_coupling_fwd"]
