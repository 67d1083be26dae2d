"""Rational-quadratic splines: a program takes a block of elements with all of their bins."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from dgm_fast.kernels._elements import ACCUMULATORS, ElementPlan, element_offsets
from dgm_fast.kernels._layout import accumulator, launch
from dgm_fast.kernels._spline_math import (
    exponentials,
    find_bin,
    load_slopes,
    place_bin,
    spline_constants,
    spline_point,
    spline_value,
)
from dgm_fast.kernels.logistic_cdf import (  # noqa: F401
    logistic_mixture_cdf_bwd,
    logistic_mixture_cdf_fwd,
)
from torch import Tensor


@triton.jit
def load_bound(p_bound, offset, mask, ACC: tl.constexpr, BE: tl.constexpr):
    """The tail bound of each element, [BE]; 1 where there is none."""
    if p_bound is None:
        b_bound = tl.full([BE], 1.0, ACC)
    else:
        b_bound = tl.load(p_bound + offset, mask, other=1.0).to(ACC)
    return b_bound


@triton.jit
def domain(
    p_bound, b_bound, LOW: tl.constexpr, HIGH: tl.constexpr, ACC: tl.constexpr, BE: tl.constexpr
):
    """Centre and length of the domain along one axis, [BE]."""
    if p_bound is None:
        b_centre, b_range = tl.full([BE], (LOW + HIGH) / 2, ACC), tl.full([BE], HIGH - LOW, ACC)
    else:
        b_centre, b_range = tl.zeros([BE], ACC), 2.0 * b_bound
    return b_centre, b_range


@triton.jit
def rational_quadratic_spline_fwd_kernel(
    p_x,
    p_along,
    p_across,
    p_d,
    p_bound,
    p_y,
    p_log_det,
    elements,
    inner,
    s_x0,
    s_x1,
    s_a0,
    s_a1,
    s_c0,
    s_c1,
    s_d0,
    s_d1,
    s_b0,
    s_b1,
    s_ak,
    s_ck,
    s_dk,
    INVERSE: tl.constexpr,
    TAILS: tl.constexpr,
    BINS: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    MIN: tl.constexpr,
    LOW_OUT: tl.constexpr,
    HIGH_OUT: tl.constexpr,
    MIN_OUT: tl.constexpr,
    SHARES: tl.constexpr,
    CLIP: tl.constexpr,
    ENDS: tl.constexpr,
    MAP: tl.constexpr,
    OFFSET: tl.constexpr,
    SCALE: tl.constexpr,
    SLOPE_CLIP: tl.constexpr,
    MIN_SLOPE: tl.constexpr,
    END_SLOPE: tl.constexpr,
    IDX: tl.constexpr,
    BE: tl.constexpr,
    BK: tl.constexpr,
):
    ACC: tl.constexpr = p_log_det.dtype.element_ty
    o_e, o_0, o_1 = element_offsets(inner, IDX, BE)
    mask = o_e < elements
    b_x = tl.load(p_x + o_0 * s_x0 + o_1 * s_x1, mask, other=0.0).to(ACC)
    b_bound = load_bound(p_bound, o_0 * s_b0 + o_1 * s_b1, mask, ACC, BE)
    b_centre, b_range = domain(p_bound, b_bound, LOW, HIGH, ACC, BE)
    b_centre_out, b_range_out = domain(p_bound, b_bound, LOW_OUT, HIGH_OUT, ACC, BE)
    b_y, b_log = spline_value(
        b_x,
        p_along + o_0 * s_a0 + o_1 * s_a1,
        p_across + o_0 * s_c0 + o_1 * s_c1,
        p_d + o_0 * s_d0 + o_1 * s_d1,
        s_ak,
        s_ck,
        s_dk,
        mask,
        b_centre,
        b_range,
        b_centre_out,
        b_range_out,
        INVERSE,
        TAILS,
        BINS,
        MIN,
        MIN_OUT,
        SHARES,
        CLIP,
        ENDS,
        MAP,
        OFFSET,
        SCALE,
        SLOPE_CLIP,
        MIN_SLOPE,
        END_SLOPE,
        ACC,
        BK,
    )
    tl.store(p_y + o_e, b_y, mask)
    tl.store(p_log_det + o_e, b_log, mask)


@triton.jit
def side_grad(
    b_u,
    b_e,
    b_total,
    o_k,
    b_index,
    b_scale,
    b_before,
    b_own,
    b_begin,
    b_length,
    BINS: tl.constexpr,
    CLIP: tl.constexpr,
    SHARES: tl.constexpr,
):
    """Gradient of the parameters of one axis, [BE, BK], from those of the bin's begin and length."""
    if SHARES:
        last = b_index == BINS - 1
        b_mean = tl.zeros_like(b_begin)
        b_begin, b_length = (
            tl.where(last, b_begin - b_length, b_begin),
            tl.where(last, 0.0, b_length),
        )
        b_weight = tl.zeros_like(b_e) + 1.0
    else:
        b_mean = (b_begin * b_before + b_length * b_own) / b_total
        b_weight = b_e
    b_side = tl.where(
        o_k < b_index[:, None],
        b_begin[:, None],
        tl.where(o_k == b_index[:, None], b_length[:, None], 0.0),
    )
    b_grad = b_scale[:, None] * b_weight * (b_side - b_mean[:, None])
    if CLIP > 0:
        b_shrink = 1.0 / (1.0 + CLIP * tl.abs(b_u))
        b_grad *= b_shrink * b_shrink
    return b_grad


@triton.jit
def rational_quadratic_spline_bwd_kernel(
    p_x,
    p_along,
    p_across,
    p_d,
    p_bound,
    p_gy,
    p_gl,
    p_gx,
    p_ga,
    p_gc,
    p_gd,
    elements,
    inner,
    s_x0,
    s_x1,
    s_a0,
    s_a1,
    s_c0,
    s_c1,
    s_d0,
    s_d1,
    s_b0,
    s_b1,
    s_gy0,
    s_gy1,
    s_gl0,
    s_gl1,
    s_ak,
    s_ck,
    s_dk,
    INVERSE: tl.constexpr,
    BINS: tl.constexpr,
    NUM_SLOPES: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    MIN: tl.constexpr,
    LOW_OUT: tl.constexpr,
    HIGH_OUT: tl.constexpr,
    MIN_OUT: tl.constexpr,
    SHARES: tl.constexpr,
    CLIP: tl.constexpr,
    ENDS: tl.constexpr,
    MAP: tl.constexpr,
    OFFSET: tl.constexpr,
    SCALE: tl.constexpr,
    SLOPE_CLIP: tl.constexpr,
    MIN_SLOPE: tl.constexpr,
    END_SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BE: tl.constexpr,
    BK: tl.constexpr,
    BS: tl.constexpr,
):
    o_e, o_0, o_1 = element_offsets(inner, IDX, BE)
    o_k = tl.arange(0, BK)[None, :]
    mask = o_e < elements
    mask_k = mask[:, None] & (o_k < BINS)
    b_x = tl.load(p_x + o_0 * s_x0 + o_1 * s_x1, mask, other=0.0).to(ACC)
    b_bound = load_bound(p_bound, o_0 * s_b0 + o_1 * s_b1, mask, ACC, BE)
    b_centre, b_range = domain(p_bound, b_bound, LOW, HIGH, ACC, BE)
    inside = (b_x >= b_centre - 0.5 * b_range) & (b_x <= b_centre + 0.5 * b_range)
    p_a = p_along + (o_0 * s_a0 + o_1 * s_a1)[:, None] + o_k * s_ak
    b_ua, b_ea, b_sa = exponentials(p_a, mask_k, CLIP, SHARES, ACC)
    b_index = find_bin(b_x, b_ea, b_sa, o_k, b_centre, b_range, BINS, MIN)
    b_begin, b_in, b_scale_in, b_before_in, b_own_in = place_bin(
        b_ea, b_sa, o_k, b_index, b_centre, b_range, BINS, MIN, SHARES
    )
    p_c = p_across + (o_0 * s_c0 + o_1 * s_c1)[:, None] + o_k * s_ck
    b_uc, b_ec, b_sc = exponentials(p_c, mask_k, CLIP, SHARES, ACC)
    b_centre_out, b_range_out = domain(p_bound, b_bound, LOW_OUT, HIGH_OUT, ACC, BE)
    _, b_out, b_scale_out, b_before_out, b_own_out = place_bin(
        b_ec, b_sc, o_k, b_index, b_centre_out, b_range_out, BINS, MIN_OUT, SHARES
    )
    b_i0, b_i1, b_d0, b_d1, b_r0, b_r1 = load_slopes(
        p_d + o_0 * s_d0 + o_1 * s_d1,
        s_dk,
        mask,
        b_index,
        BINS,
        ENDS,
        MAP,
        OFFSET,
        SCALE,
        SLOPE_CLIP,
        MIN_SLOPE,
        END_SLOPE,
        ACC,
    )
    b_theta, b_eta, b_u, b_v, b_t, b_id, b_m, b_flat = spline_point(
        b_x, b_begin, b_in, b_out, b_d0, b_d1, INVERSE
    )
    b_gy = tl.zeros([BE], ACC)
    if p_gy is not None:
        b_gy = tl.load(p_gy + o_0 * s_gy0 + o_1 * s_gy1, mask, other=0.0).to(ACC)
    b_gl = tl.zeros([BE], ACC)
    if p_gl is not None:
        b_gl = tl.load(p_gl + o_0 * s_gl0 + o_1 * s_gl1, mask, other=0.0).to(ACC)
    b_rest = 1.0 - b_theta
    b_turn = 1.0 - 2.0 * b_theta
    b_log_u = b_rest * b_rest / b_m - 2.0 * b_t * b_id
    b_log_v = b_theta * b_theta / b_m - 2.0 * b_t * b_id
    b_log_theta = (b_v * b_theta - b_u * b_rest + b_turn) / b_m
    b_log_theta = 2.0 * (b_log_theta - (b_u + b_v - 2.0) * b_turn * b_id)
    b_eta_theta = b_m * b_id * b_id
    b_eta_u = b_t * (1.0 - b_eta) * b_id
    b_eta_v = -b_t * b_eta * b_id
    if INVERSE:
        b_ol = -b_gl
        b_of_eta = (b_ol * b_log_theta + b_gy * b_out) / b_eta_theta
        b_gu = b_ol * b_log_u - b_of_eta * b_eta_u
        b_gv = b_ol * b_log_v - b_of_eta * b_eta_v
        b_position = b_of_eta / b_in
    else:
        b_ol = b_gl
        b_of_eta = b_gy * b_out
        b_gu = b_ol * b_log_u + b_of_eta * b_eta_u
        b_gv = b_ol * b_log_v + b_of_eta * b_eta_v
        b_position = (b_ol * b_log_theta + b_of_eta * b_eta_theta) / b_in
    b_delta = b_ol - b_gu * b_u - b_gv * b_v
    if INVERSE:
        b_length_in = b_delta / b_in - b_position * b_eta
        b_length_out = b_gy * b_theta - b_delta / b_out
    else:
        b_length_in = -b_delta / b_in - b_position * b_theta
        b_length_out = b_gy * b_eta + b_delta / b_out
    if p_gx is not None:
        tl.store(p_gx + o_e, tl.where(inside, b_position, b_gy), mask)
    if p_ga is not None:
        b_ga = side_grad(
            b_ua,
            b_ea,
            b_sa,
            o_k,
            b_index,
            b_scale_in,
            b_before_in,
            b_own_in,
            tl.where(inside, -b_position, 0.0),
            tl.where(inside, b_length_in, 0.0),
            BINS,
            CLIP,
            SHARES,
        )
        tl.store(p_ga + o_e[:, None] * BINS + o_k, b_ga, mask_k)
    if p_gc is not None:
        b_gc = side_grad(
            b_uc,
            b_ec,
            b_sc,
            o_k,
            b_index,
            b_scale_out,
            b_before_out,
            b_own_out,
            tl.where(inside, b_gy, 0.0),
            tl.where(inside, b_length_out, 0.0),
            BINS,
            CLIP,
            SHARES,
        )
        tl.store(p_gc + o_e[:, None] * BINS + o_k, b_gc, mask_k)
    if p_gd is not None:
        o_s = tl.arange(0, BS)[None, :]
        b_g0 = tl.where(inside, b_gu * b_flat * b_r0, 0.0)[:, None]
        b_g1 = tl.where(inside, b_gv * b_flat * b_r1, 0.0)[:, None]
        b_gd = tl.where(o_s == b_i0[:, None], b_g0, 0.0) + tl.where(o_s == b_i1[:, None], b_g1, 0.0)
        tl.store(p_gd + o_e[:, None] * NUM_SLOPES + o_s, b_gd, mask[:, None] & (o_s < NUM_SLOPES))


_KEYS = (
    "bound",
    "inverse",
    "ends",
    "tails",
    "left",
    "right",
    "bottom",
    "top",
    "min_bin_width",
    "min_bin_height",
    "min_derivative",
    "parameterization",
    "sum_log_det",
)


def rational_quadratic_spline_fwd(
    x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, *values: Any
) -> tuple[Tensor, Tensor]:
    options = dict(zip(_KEYS, values, strict=True))
    y = x.new_empty(x.shape)
    log_det = x.new_empty(x.shape, dtype=accumulator(x))
    if x.numel():
        sides = (heights, widths) if options["inverse"] else (widths, heights)
        plan = ElementPlan(x, (*sides, derivatives), (options["bound"],))
        bins = widths.shape[-1]
        launch(
            rational_quadratic_spline_fwd_kernel,
            plan.grid,
            *plan.tensors,
            y,
            log_det,
            plan.elements,
            plan.inner,
            *plan.strides,
            *plan.parameter_strides,
            TAILS=options["tails"],
            IDX=plan.index,
            BE=plan.block,
            BK=triton.next_power_of_2(max(bins, 2)),
            num_warps=4,
            **spline_constants(options, bins),
        )
    if options["sum_log_det"]:
        log_det = log_det.flatten(1).sum(1) if x.ndim > 1 else log_det
    return y, log_det


def rational_quadratic_spline_bwd(
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *values: Any,
) -> tuple[Tensor, ...]:
    options, mask = dict(zip(_KEYS, values[:-1], strict=True)), values[-1]
    parameters = (widths, heights, derivatives)
    shapes = [x.shape, *((*x.shape, p.shape[-1]) for p in parameters)]
    grads = [
        x.new_empty(s) if wanted else x.new_empty(0) for s, wanted in zip(shapes, mask, strict=True)
    ]
    if x.numel():
        if options["sum_log_det"] and grad_log_det is not None:
            grad_log_det = grad_log_det.reshape(-1, *(1,) * (x.ndim - 1)).expand(x.shape)
        inverse, bins, number = options["inverse"], widths.shape[-1], derivatives.shape[-1]
        sides = (heights, widths) if inverse else (widths, heights)
        plan = ElementPlan(x, (*sides, derivatives), (options["bound"], grad_y, grad_log_det))
        targets = [g if wanted else None for g, wanted in zip(grads, mask, strict=True)]
        along, across = (targets[2], targets[1]) if inverse else (targets[1], targets[2])
        launch(
            rational_quadratic_spline_bwd_kernel,
            plan.grid,
            *plan.tensors,
            targets[0],
            along,
            across,
            targets[3] if number else None,
            plan.elements,
            plan.inner,
            *plan.strides,
            *plan.parameter_strides,
            NUM_SLOPES=number,
            ACC=ACCUMULATORS[accumulator(x)],
            IDX=plan.index,
            BE=plan.block,
            BK=triton.next_power_of_2(max(bins, 2)),
            BS=triton.next_power_of_2(max(number, 2)),
            num_warps=4,
            **spline_constants(options, bins),
        )
    return tuple(
        g.sum_to_size(a.shape) if wanted else g
        for g, a, wanted in zip(grads, (x, *parameters), mask, strict=True)
    )
