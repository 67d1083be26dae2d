"""CDFs of mixtures of logistics and their inverse: a program takes elements with all components."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._elements import ACCUMULATORS, ElementPlan, element_offsets
from dgm_fast.kernels._layout import accumulator, launch
from dgm_fast.kernels._math import exp_accurate
from torch import Tensor

_MAX_STEPS = tl.constexpr(200)


@triton.jit
def load_components(p_w, p_m, p_s, mask, ACC: tl.constexpr):
    """Log-weights, weights, means, log-scales and inverse scales, [BE, BM]; weight 0 beyond the last."""
    b_w = tl.load(p_w, mask, other=float("-inf")).to(ACC)
    b_m = tl.load(p_m, mask, other=0.0).to(ACC)
    b_s = tl.load(p_s, mask, other=0.0).to(ACC)
    b_highest = tl.max(b_w, 1)[:, None]
    b_e = exp_accurate(b_w - b_highest)
    b_total = tl.sum(b_e, 1)[:, None]
    # A finite inverse: zero times it stays zero.
    b_inverse = exp_accurate(tl.minimum(-b_s, 700.0 if tl.float64 == ACC else 87.0))
    return b_w - b_highest - tl.log(b_total), b_e / b_total, b_m, b_s, b_inverse


@triton.jit
def distances(b_x, b_m, b_inverse):
    """a = (x - mean) / s, bounded, and exp(-|a|)."""
    FARTHEST: tl.constexpr = 1e100 if b_x.dtype == tl.float64 else 1e15
    b_a = (b_x[:, None] - b_m) * b_inverse
    b_a = tl.minimum(tl.maximum(b_a, -FARTHEST), FARTHEST)
    return b_a, tl.exp(-tl.abs(b_a))


@triton.jit
def cdf_and_rest(b_a, b_e, b_weight):
    """F and 1 - F."""
    b_near = b_weight / (1.0 + b_e)
    b_far = b_near * b_e
    b_below = tl.sum(tl.where(b_a < 0.0, b_far, b_near), 1)
    return b_below, tl.sum(tl.where(b_a < 0.0, b_near, b_far), 1)


@triton.jit
def shares(b_a, b_e, b_log_weight, b_s):
    """Each component's share of the density, not normalised, their sum, and the log-density."""
    b_joint = b_log_weight - b_s - tl.abs(b_a)
    b_highest = tl.max(b_joint, 1)
    b_h = 1.0 / (1.0 + b_e)
    b_share = exp_accurate(b_joint - b_highest[:, None]) * b_h * b_h
    b_sum = tl.sum(b_share, 1)
    return b_share, b_sum, b_highest + tl.log(b_sum)


@triton.jit
def quantile(b_z, b_weight, b_m, b_inverse, mask, TINY: tl.constexpr, EPS: tl.constexpr):
    """x with F(x) = z: ``csrc/cpu/logistic_cdf.cpp: quantile``."""
    NEAR: tl.constexpr = 1e-10 if b_z.dtype == tl.float64 else 1e-4
    b_in = tl.minimum(tl.maximum(b_z, TINY), 1.0 - 0.5 * EPS)
    b_logit = tl.log(b_in / (1.0 - b_in))
    b_own = b_m + b_logit[:, None] / b_inverse
    present = b_weight > 0.0
    b_low = tl.min(tl.where(present, b_own, float("inf")), 1)
    b_high = tl.max(tl.where(present, b_own, float("-inf")), 1)
    b_x = tl.sum(tl.where(present, b_weight * b_own, 0.0), 1)
    b_x = tl.minimum(tl.maximum(b_x, b_low), b_high)
    b_last = b_high - b_low
    b_left = mask.to(tl.int32)
    step = 0
    while (tl.max(b_left, 0) > 0) & (step < _MAX_STEPS):
        b_a, b_e = distances(b_x, b_m, b_inverse)
        b_below, b_above = cdf_and_rest(b_a, b_e, b_weight)
        b_h = 1.0 / (1.0 + b_e)
        b_slope = tl.sum(b_weight * b_e * b_h * b_h * b_inverse, 1)
        b_excess = tl.log(b_below / b_above) - b_logit
        b_low = tl.where(b_excess < 0.0, b_x, b_low)
        b_high = tl.where(b_excess < 0.0, b_high, b_x)
        b_step = b_excess * b_below * b_above / b_slope
        b_to = b_x - b_step
        trusted = (b_low <= b_to) & (b_to <= b_high) & (2.0 * tl.abs(b_step) <= b_last)
        b_next = tl.where(trusted, b_to, 0.5 * (b_low + b_high))
        b_last = tl.abs(b_next - b_x)
        arrived = (trusted & (tl.abs(b_excess) < NEAR)) | (b_last <= EPS * tl.abs(b_next))
        b_x = tl.where(b_left > 0, b_next, b_x)
        b_left = tl.where(arrived, 0, b_left)
        step += 1
    return b_x


@triton.jit
def logistic_mixture_cdf_fwd_kernel(
    p_x,
    p_w,
    p_m,
    p_s,
    p_y,
    p_log_det,
    elements,
    inner,
    s_x0,
    s_x1,
    s_w0,
    s_w1,
    s_m0,
    s_m1,
    s_s0,
    s_s1,
    s_wk,
    s_mk,
    s_sk,
    INVERSE: tl.constexpr,
    COMPONENTS: tl.constexpr,
    TINY: tl.constexpr,
    EPS: tl.constexpr,
    IDX: tl.constexpr,
    BE: tl.constexpr,
    BM: tl.constexpr,
):
    ACC: tl.constexpr = p_log_det.dtype.element_ty
    o_e, o_0, o_1 = element_offsets(inner, IDX, BE)
    o_k = tl.arange(0, BM)[None, :]
    mask = o_e < elements
    mask_k = mask[:, None] & (o_k < COMPONENTS)
    b_x = tl.load(p_x + o_0 * s_x0 + o_1 * s_x1, mask, other=0.5).to(ACC)
    b_log_weight, b_weight, b_m, b_s, b_inverse = load_components(
        p_w + (o_0 * s_w0 + o_1 * s_w1)[:, None] + o_k * s_wk,
        p_m + (o_0 * s_m0 + o_1 * s_m1)[:, None] + o_k * s_mk,
        p_s + (o_0 * s_s0 + o_1 * s_s1)[:, None] + o_k * s_sk,
        mask_k,
        ACC,
    )
    if INVERSE:
        b_z = b_x
        b_x = quantile(b_z, b_weight, b_m, b_inverse, mask, TINY, EPS)
    b_a, b_e = distances(b_x, b_m, b_inverse)
    _, _, b_log = shares(b_a, b_e, b_log_weight, b_s)
    if INVERSE:
        within = (b_z > 0.0) & (b_z < 1.0)
        b_edge = tl.where(b_z == 0.0, float("-inf"), float("nan"))
        b_edge = tl.where(b_z == 1.0, float("inf"), b_edge)
        b_y = tl.where(within, b_x, b_edge)
        b_log = tl.where(within, -b_log, tl.abs(b_edge))
    else:
        b_y, _ = cdf_and_rest(b_a, b_e, b_weight)
        b_y = tl.minimum(b_y, 1.0)
    tl.store(p_y + o_e, b_y, mask)
    tl.store(p_log_det + o_e, b_log, mask)


@triton.jit
def logistic_mixture_cdf_bwd_kernel(
    p_x,
    p_w,
    p_m,
    p_s,
    p_gy,
    p_gl,
    p_gx,
    p_gw,
    p_gm,
    p_gs,
    elements,
    inner,
    s_x0,
    s_x1,
    s_w0,
    s_w1,
    s_m0,
    s_m1,
    s_s0,
    s_s1,
    s_gy0,
    s_gy1,
    s_gl0,
    s_gl1,
    s_wk,
    s_mk,
    s_sk,
    INVERSE: tl.constexpr,
    COMPONENTS: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BE: tl.constexpr,
    BM: tl.constexpr,
):
    o_e, o_0, o_1 = element_offsets(inner, IDX, BE)
    o_k = tl.arange(0, BM)[None, :]
    mask = o_e < elements
    mask_k = mask[:, None] & (o_k < COMPONENTS)
    b_x = tl.load(p_x + o_0 * s_x0 + o_1 * s_x1, mask, other=0.0).to(ACC)
    b_log_weight, b_weight, b_m, b_s, b_inverse = load_components(
        p_w + (o_0 * s_w0 + o_1 * s_w1)[:, None] + o_k * s_wk,
        p_m + (o_0 * s_m0 + o_1 * s_m1)[:, None] + o_k * s_mk,
        p_s + (o_0 * s_s0 + o_1 * s_s1)[:, None] + o_k * s_sk,
        mask_k,
        ACC,
    )
    b_a, b_e = distances(b_x, b_m, b_inverse)
    b_share, b_sum, b_log = shares(b_a, b_e, b_log_weight, b_s)
    b_share = b_share / b_sum[:, None]
    b_h = 1.0 / (1.0 + b_e)
    b_turn = (1.0 - b_e) * b_h
    b_turn = tl.where(b_a < 0.0, b_turn, -b_turn)
    b_bend = tl.sum(b_share * b_turn * b_inverse, 1)
    b_gy = tl.zeros([BE], ACC)
    if p_gy is not None:
        b_gy = tl.load(p_gy + o_0 * s_gy0 + o_1 * s_gy1, mask, other=0.0).to(ACC)
    b_gl = tl.zeros([BE], ACC)
    if p_gl is not None:
        b_gl = tl.load(p_gl + o_0 * s_gl0 + o_1 * s_gl1, mask, other=0.0).to(ACC)
    if INVERSE:
        b_gl = -b_gl
        b_of_f = -(b_gy + b_gl * b_bend)
        b_of_cdf = b_of_f * exp_accurate(-b_log)
        b_gx = -b_of_cdf
    else:
        b_of_cdf = b_gy
        b_of_f = b_gy * exp_accurate(b_log)
        b_gx = b_of_f + b_gl * b_bend
    if p_gx is not None:
        tl.store(p_gx + o_e, b_gx, mask)
    o_out = o_e[:, None] * COMPONENTS + o_k
    if p_gm is not None:
        b_gm = -b_share * (b_of_f[:, None] + b_gl[:, None] * b_turn * b_inverse)
        tl.store(p_gm + o_out, b_gm, mask_k)
    if p_gs is not None:
        b_gs = b_of_f[:, None] * (b_a / b_inverse) + b_gl[:, None] * (1.0 + b_a * b_turn)
        tl.store(p_gs + o_out, -b_share * b_gs, mask_k)
    if p_gw is not None:
        b_cdf = tl.where(b_a < 0.0, b_e * b_h, b_h)
        b_below = tl.sum(b_weight * b_cdf, 1)[:, None]
        b_gw = b_of_cdf[:, None] * b_weight * (b_cdf - b_below)
        b_gw += b_gl[:, None] * (b_share - b_weight)
        tl.store(p_gw + o_out, b_gw, mask_k)


def logistic_mixture_cdf_fwd(
    x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape)
    log_det = x.new_empty(x.shape, dtype=accumulator(x))
    if x.numel():
        plan = ElementPlan(x, (logits, means, log_scales), ())
        limits = torch.finfo(log_det.dtype)
        launch(
            logistic_mixture_cdf_fwd_kernel,
            plan.grid,
            *plan.tensors,
            y,
            log_det,
            plan.elements,
            plan.inner,
            *plan.strides,
            *plan.parameter_strides,
            INVERSE=inverse,
            COMPONENTS=logits.shape[-1],
            TINY=limits.tiny,
            EPS=limits.eps,
            IDX=plan.index,
            BE=plan.block,
            BM=plan.columns,
            num_warps=4,
        )
    return y, log_det


def logistic_mixture_cdf_bwd(
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    y: Tensor,
    x: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    inverse: bool,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    parameters = (logits, means, log_scales)
    shapes = [x.shape, *((*x.shape, p.shape[-1]) for p in parameters)]
    grads = [x.new_empty(s if wanted else 0) for s, wanted in zip(shapes, mask, strict=True)]
    if x.numel():
        # Derivatives are taken at the point of the real line, which the inverse has found.
        plan = ElementPlan(y if inverse else x, parameters, (grad_y, grad_log_det))
        launch(
            logistic_mixture_cdf_bwd_kernel,
            plan.grid,
            *plan.tensors,
            *(g if wanted else None for g, wanted in zip(grads, mask, strict=True)),
            plan.elements,
            plan.inner,
            *plan.strides,
            *plan.parameter_strides,
            INVERSE=inverse,
            COMPONENTS=logits.shape[-1],
            ACC=ACCUMULATORS[accumulator(x)],
            IDX=plan.index,
            BE=plan.block,
            BM=plan.columns,
            num_warps=4,
        )
    return tuple(
        g.sum_to_size(a.shape) if wanted else g
        for g, a, wanted in zip(grads, (x, *parameters), mask, strict=True)
    )
