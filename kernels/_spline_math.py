"""Rational-quadratic splines in registers: [BE, BK] elements times bins, one bin selected for each element.

``csrc/cpu/spline.h`` has the formulas and names. Options are compile-time constants, so that
float64 keeps all of their digits.
"""

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl
from dgm_fast.kernels._math import exp_accurate, log1p

SOFTPLUS, EXPONENTIAL, GIVEN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
FIXED, PERIODIC = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def exponentials(p_u, mask, CLIP: tl.constexpr, SHARES: tl.constexpr, ACC: tl.constexpr):
    """Parameters [BE, BK], the exponential of each relative to the largest, and their sum [BE]."""
    b_u = tl.load(p_u, mask, other=0.0).to(ACC)
    if SHARES:
        b_e = b_u
        b_sum = tl.max(tl.zeros_like(b_u) + 1.0, 1)
    else:
        b_v = b_u / (1.0 + CLIP * tl.abs(b_u)) if CLIP > 0 else b_u
        b_v = tl.where(mask, b_v, float("-inf"))
        b_e = exp_accurate(b_v - tl.max(b_v, 1)[:, None])
        b_sum = tl.sum(b_e, 1)
    return b_u, b_e, b_sum


@triton.jit
def pick(b_t, o_k, b_index):
    """Column ``index`` of each row of b_t [BE, BK]."""
    return tl.sum(tl.where(o_k == b_index[:, None], b_t, 0.0), 1)


@triton.jit
def find_bin(b_x, b_e, b_total, o_k, b_centre, b_range, BINS: tl.constexpr, MIN: tl.constexpr):
    """The number of the bin that holds x, [BE]."""
    b_before = tl.cumsum(b_e, 1) - b_e
    b_scale = b_range * (1.0 - MIN * BINS) / b_total
    b_knot = b_centre[:, None] + (o_k - BINS / 2) * (MIN * b_range)[:, None]
    b_knot += b_scale[:, None] * (b_before - 0.5 * b_total[:, None])
    reached = (b_knot <= b_x[:, None]) & (o_k > 0) & (o_k < BINS)
    return tl.sum(reached.to(tl.int32), 1)


@triton.jit
def place_bin(
    b_e,
    b_total,
    o_k,
    b_index,
    b_centre,
    b_range,
    BINS: tl.constexpr,
    MIN: tl.constexpr,
    SHARES: tl.constexpr,
):
    """Begin and length of the bin, what a unit of exponentials brings, and theirs before it and in it.

    The begin is summed in float64: a position in a narrow bin is the small difference of x and it.
    """
    b_wide = tl.sum(tl.where(o_k < b_index[:, None], b_e, 0.0).to(tl.float64), 1)
    b_all = tl.sum(tl.where(o_k < BINS, b_e, 0.0).to(tl.float64), 1)
    if SHARES:
        b_all = b_all * 0.0 + 1.0
    b_free = b_range.to(tl.float64) * (1.0 - MIN * BINS)
    b_begin = b_centre + (b_range * MIN).to(tl.float64) * (b_index - BINS / 2)
    b_begin += b_free * (b_wide / b_all - 0.5)
    b_own = pick(b_e, o_k, b_index)
    b_scale = b_range * (1.0 - MIN * BINS) / b_total
    b_step = MIN * b_range
    b_before = b_wide.to(b_e.dtype)
    b_length = b_step + b_scale * b_own
    if SHARES:
        b_rest = (b_centre + 0.5 * b_range - b_begin).to(b_e.dtype)
        b_length = tl.where(b_index == BINS - 1, b_rest, b_length)
    return b_begin, b_length, b_scale, b_before, b_own


@triton.jit
def slope_of(
    b_u,
    MAP: tl.constexpr,
    OFFSET: tl.constexpr,
    SCALE: tl.constexpr,
    CLIP: tl.constexpr,
    MIN: tl.constexpr,
):
    """A slope and its derivative in the parameter."""
    if MAP == SOFTPLUS:
        b_v = b_u + OFFSET
        b_e = tl.exp(-tl.abs(b_v))
        b_slope = (tl.maximum(b_v, 0.0) + log1p(b_e) + MIN) * SCALE
        b_rise = tl.where(b_v < 0.0, b_e, 1.0) / (1.0 + b_e) * SCALE
    elif MAP == EXPONENTIAL:
        b_shrink = 1.0 / (1.0 + CLIP * tl.abs(b_u))
        b_slope = exp_accurate(b_u * b_shrink)
        b_rise = b_slope * b_shrink * b_shrink
    else:
        b_slope = b_u + MIN
        b_rise = tl.zeros_like(b_u) + 1.0
    return b_slope, b_rise


@triton.jit
def load_slopes(
    p_d,
    s_dk,
    mask,
    b_index,
    BINS: tl.constexpr,
    ENDS: tl.constexpr,
    MAP: tl.constexpr,
    OFFSET: tl.constexpr,
    SCALE: tl.constexpr,
    CLIP: tl.constexpr,
    MIN: tl.constexpr,
    END_SLOPE: tl.constexpr,
    ACC: tl.constexpr,
):
    """The parameters of the slopes at the ends of the bin (-1: none), the slopes, their derivatives."""
    if ENDS == FIXED:
        b_first = b_index - 1
        b_second = tl.where(b_index < BINS - 1, b_index, -1)
    elif ENDS == PERIODIC:
        b_first = b_index
        b_second = tl.where(b_index < BINS - 1, b_index + 1, 0)
    else:
        b_first = b_index
        b_second = b_index + 1
    b_u0 = tl.load(p_d + b_first * s_dk, mask & (b_first >= 0), other=0.0).to(ACC)
    b_u1 = tl.load(p_d + b_second * s_dk, mask & (b_second >= 0), other=0.0).to(ACC)
    b_d0, b_r0 = slope_of(b_u0, MAP, OFFSET, SCALE, CLIP, MIN)
    b_d1, b_r1 = slope_of(b_u1, MAP, OFFSET, SCALE, CLIP, MIN)
    if ENDS == FIXED:
        b_d0 = tl.where(b_first >= 0, b_d0, END_SLOPE)
        b_d1 = tl.where(b_second >= 0, b_d1, END_SLOPE)
    return b_first, b_second, b_d0, b_d1, b_r0, b_r1


@triton.jit
def spline_point(b_x, b_begin, b_in, b_out, b_d0, b_d1, INVERSE: tl.constexpr):
    """theta, eta, u, v, t, 1 / D and M of a position in a bin of lengths ``in`` and ``out``."""
    b_offset = (b_x.to(tl.float64) - b_begin).to(b_x.dtype)
    b_position = tl.minimum(tl.maximum(b_offset / b_in, 0.0), 1.0)
    b_flat = b_in / b_out if not INVERSE else b_out / b_in  # 1 / delta
    b_u = b_d0 * b_flat
    b_v = b_d1 * b_flat
    if INVERSE:
        b_eta = b_position
        b_g = b_u * (1.0 - b_eta) - b_v * b_eta
        b_q = tl.sqrt(b_g * b_g + 4.0 * b_eta * (1.0 - b_eta)) + tl.abs(b_g)
        b_up = tl.where(b_g >= 0.0, 2.0 * b_eta, b_q)
        b_down = tl.where(b_g >= 0.0, b_q, 2.0 * (1.0 - b_eta))
        b_theta = b_up / (b_up + b_down)
    else:
        b_theta = b_position
    b_rest = 1.0 - b_theta
    b_t = b_theta * b_rest
    b_id = 1.0 / (1.0 + (b_u + b_v - 2.0) * b_t)
    if not INVERSE:
        b_eta = (b_theta * b_theta + b_u * b_t) * b_id
    b_m = b_v * b_theta * b_theta + 2.0 * b_t + b_u * b_rest * b_rest
    return b_theta, b_eta, b_u, b_v, b_t, b_id, b_m, b_flat


@triton.jit
def spline_value(
    b_x,
    p_along,
    p_across,
    p_d,
    s_ak,
    s_ck,
    s_dk,
    mask,
    b_centre,
    b_range,
    b_centre_out,
    b_range_out,
    INVERSE: tl.constexpr,
    TAILS: tl.constexpr,
    BINS: tl.constexpr,
    MIN: tl.constexpr,
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
    BK: tl.constexpr,
):
    """The map and its log-derivative at x [BE], by parameters that begin at p_along, p_across, p_d [BE]."""
    o_k = tl.arange(0, BK)[None, :]
    mask_k = mask[:, None] & (o_k < BINS)
    inside = (b_x >= b_centre - 0.5 * b_range) & (b_x <= b_centre + 0.5 * b_range)
    p_a = p_along[:, None] + o_k * s_ak
    _, b_ea, b_sa = exponentials(p_a, mask_k, CLIP, SHARES, ACC)
    b_index = find_bin(b_x, b_ea, b_sa, o_k, b_centre, b_range, BINS, MIN)
    b_begin, b_in, _, _, _ = place_bin(
        b_ea, b_sa, o_k, b_index, b_centre, b_range, BINS, MIN, SHARES
    )
    p_c = p_across[:, None] + o_k * s_ck
    _, b_ec, b_sc = exponentials(p_c, mask_k, CLIP, SHARES, ACC)
    b_base, b_out, _, _, _ = place_bin(
        b_ec, b_sc, o_k, b_index, b_centre_out, b_range_out, BINS, MIN_OUT, SHARES
    )
    _, _, b_d0, b_d1, _, _ = load_slopes(
        p_d,
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
    b_theta, b_eta, _, _, _, b_id, b_m, b_flat = spline_point(
        b_x, b_begin, b_in, b_out, b_d0, b_d1, INVERSE
    )
    b_log = tl.log(b_m * b_id * b_id / b_flat)
    if INVERSE:
        b_y = (b_base + b_out * b_theta).to(ACC)
        b_log = -b_log
    else:
        b_y = (b_base + b_out * b_eta).to(ACC)
    b_half = 0.5 * b_range_out
    b_y = tl.minimum(tl.maximum(b_y, b_centre_out - b_half), b_centre_out + b_half)
    if TAILS:
        b_y = tl.where(inside, b_y, b_x)
        b_log = tl.where(inside, b_log, 0.0)
    else:
        b_y = tl.where(inside, b_y, float("nan"))
        b_log = tl.where(inside, b_log, float("nan"))
    return b_y, b_log


def spline_constants(options: dict[str, Any], bins: int) -> dict[str, Any]:
    """The kernels' compile-time options: ``csrc/spline_shape.h`` in their terms."""
    code, minimum = options["parameterization"], options["min_derivative"]
    width, height = options["min_bin_width"], options["min_bin_height"]
    slopes = {"MAP": 0, "OFFSET": 0.0, "SCALE": 1.0, "SLOPE_CLIP": 0.0, "END_SLOPE": 1.0}
    clip = 0.0
    if code == 1:
        slope_clip = 1 / abs(math.log(minimum))
        slopes |= {"MAP": 1, "SLOPE_CLIP": slope_clip}
        clip, width, height = 2 * slope_clip, 0.0, 0.0
    elif code == 2:
        slopes["OFFSET"] = math.log(math.expm1(1 - minimum))
    elif code == 3:
        slopes["SCALE"] = 1 / (minimum + math.log(2.0))
    elif code == 4:
        slopes |= {"MAP": 2, "END_SLOPE": 1 - minimum}
    along = (options["left"], options["right"], width)
    across = (options["bottom"], options["top"], height)
    if options["inverse"]:
        along, across = across, along
    sides = dict(zip(("LOW", "HIGH", "MIN"), along, strict=True))
    sides |= dict(zip(("LOW_OUT", "HIGH_OUT", "MIN_OUT"), across, strict=True))
    return {
        "INVERSE": options["inverse"],
        "BINS": bins,
        "SHARES": code == 4,
        "CLIP": clip,
        "ENDS": options["ends"],
        "MIN_SLOPE": minimum,
        **sides,
        **slopes,
    }
