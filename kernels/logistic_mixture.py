"""Discretized mixture of logistics (PixelCNN++): a program holds a block of pixels times mixtures.

With m = |x - mean| / s, u = (half a bin) / s, E = exp(-m), q = exp(-u), everything that the piecewise
definition needs is rational in E and q, without cancellation, and so is what is missing to 1:

    P                                                             1 - P
    CDF difference               E (1 - q^2) / ((1 + E q)(q + E))   q (1 + 2 E q + E^2) / ((1 + E q)(q + E))
    outermost bin, mean inside   1 / (1 + E q)                       E q / (1 + E q)
    outermost bin, mean outside  E / (q + E)                         q / (q + E)
    density times width          exp(-m - log s) / (1 + E)^2 * 2 / (levels - 1)

The fractions are multiplied over the channels before one logarithm, which is that of 1 - (1 - P) where
P is close to 1. The derivative of the log-probability by the edge of an outermost bin is 1 - P, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._layout import accumulator, collapse, index_type, launch, numeric, per_sample
from dgm_fast.kernels._math import LOWEST, exp_accurate, expm1, log1p, tanh
from dgm_fast.kernels.log_mean_exp import row_max, row_sum, shifted
from torch import Tensor

_MIN_LOG_SCALE = tl.constexpr(-7.0)
_MIN_DIFFERENCE = tl.constexpr(1e-5)


@triton.jit
def logistic_term(b_x, b_mean, b_raw, half_bin, edge, log_bins):
    """One channel: log P is linear + log(fraction), or log1p(-rest); its derivatives by mean and raw."""
    # Coarse levels: E and q may both underflow where their ratio decides. A common factor is taken out
    # of them, which changes nothing else that is visible.
    MAX_EXPONENT: tl.constexpr = 300.0 if b_mean.dtype == tl.float64 else 40.0
    b_log_scale = tl.where(b_raw < _MIN_LOG_SCALE, _MIN_LOG_SCALE, b_raw)
    b_inverse = exp_accurate(-b_log_scale)
    b_centre = (b_x - b_mean) * b_inverse
    b_m = tl.abs(b_centre)
    b_u = half_bin * b_inverse
    b_shift = tl.maximum(tl.minimum(b_m, b_u) - MAX_EXPONENT, 0.0)
    b_e = tl.exp(b_shift - b_m)
    b_q = tl.exp(b_shift - b_u)
    b_width = -expm1(-2.0 * b_u, b_q * b_q)
    b_far = 1.0 + b_e * b_q
    b_near = b_q + b_e
    left = b_x < -edge
    outer = left | (b_x > edge)
    inside = tl.where(left, b_centre >= 0.0, b_centre <= 0.0)
    difference = b_e * b_width > b_far * b_near * _MIN_DIFFERENCE
    b_inverse_divisor = 1.0 / tl.where(
        outer,
        tl.where(inside, b_far, b_near),
        tl.where(difference, b_far * b_near, (1.0 + b_e) * (1.0 + b_e)),
    )
    b_fraction = b_inverse_divisor * tl.where(
        outer,
        tl.where(inside, 1.0, tl.maximum(b_e, b_q)),
        tl.where(difference, b_e * b_width, 1.0),
    )
    b_linear = tl.where(
        outer,
        tl.where(inside, 0.0, tl.minimum(b_u - b_m, 0.0)),
        tl.where(difference, 0.0, -b_m - b_log_scale - log_bins),
    )
    b_ratio = b_q * b_inverse_divisor
    b_rest = tl.where(
        outer,
        tl.where(inside, b_e * b_ratio, b_ratio),
        tl.where(difference, b_ratio * (1.0 + b_e * (2.0 * b_q + b_e)), 1.0),
    )
    b_slope = (1.0 - b_e * b_e) * tl.where(difference, b_ratio, b_inverse_divisor)
    b_slope = tl.where(outer, b_rest, b_slope)
    b_by_centre = tl.where(tl.where(outer, left, b_centre < 0.0), b_slope, -b_slope)
    b_by_u = b_ratio * (b_near * b_near + b_far * b_far) * (b_u / b_width)
    b_by_u = tl.where(outer, b_u * b_rest, tl.where(difference, b_by_u, 0.0))
    b_by_scale = -(b_centre * b_by_centre + b_by_u)
    b_by_scale = tl.where(outer | difference, b_by_scale, b_by_scale - 1.0)
    b_by_scale = tl.where(b_raw < _MIN_LOG_SCALE, 0.0, b_by_scale)
    return b_linear, b_fraction, b_rest, -b_inverse * b_by_centre, b_by_scale


@triton.jit
def log_probability(b_linear, b_fraction, b_rest):
    return tl.where(b_rest < 0.5, log1p(-b_rest), b_linear + tl.log(b_fraction))


@triton.jit
def mixture_terms(
    p_k,
    mask,
    b_x,
    s_parameter,
    s_channel,
    half_bin,
    edge,
    log_bins,
    ACC: tl.constexpr,
    C: tl.constexpr,
):
    """log prod_c P(x_c | k) of the mixtures whose first means p_k points to, and its derivatives.

    They are by means, log-scales and coefficients, channels fastest, in a tuple.
    """
    b_mean = tl.load(p_k, mask, other=0.0).to(ACC)
    b_scale = tl.load(p_k + s_parameter, mask, other=0.0).to(ACC)
    b_linear, b_fraction, b_rest, b_dm0, b_ds0 = logistic_term(
        b_x[0], b_mean, b_scale, half_bin, edge, log_bins
    )
    if C == 1:
        return log_probability(b_linear, b_fraction, b_rest), (b_dm0, b_ds0)
    else:
        p_coefficient = p_k + 2 * s_parameter
        b_in_green = tanh(tl.load(p_coefficient, mask, other=0.0).to(ACC))
        b_in_blue = tanh(tl.load(p_coefficient + s_channel, mask, other=0.0).to(ACC))
        b_green_in_blue = tanh(tl.load(p_coefficient + 2 * s_channel, mask, other=0.0).to(ACC))
        p_green = p_k + s_channel
        b_mean = tl.load(p_green, mask, other=0.0).to(ACC) + b_in_green * b_x[0]
        b_scale = tl.load(p_green + s_parameter, mask, other=0.0).to(ACC)
        b_linear1, b_fraction1, b_rest1, b_dm1, b_ds1 = logistic_term(
            b_x[1], b_mean, b_scale, half_bin, edge, log_bins
        )
        p_blue = p_k + 2 * s_channel
        b_mean = tl.load(p_blue, mask, other=0.0).to(ACC) + b_in_blue * b_x[0]
        b_mean += b_green_in_blue * b_x[1]
        b_scale = tl.load(p_blue + s_parameter, mask, other=0.0).to(ACC)
        b_linear2, b_fraction2, b_rest2, b_dm2, b_ds2 = logistic_term(
            b_x[2], b_mean, b_scale, half_bin, edge, log_bins
        )
        b_rest += b_rest1 * (1.0 - b_rest)
        b_rest += b_rest2 * (1.0 - b_rest)
        b_log_prob = log_probability(
            b_linear + b_linear1 + b_linear2, b_fraction * b_fraction1 * b_fraction2, b_rest
        )
        b_dc0 = b_dm1 * b_x[0] * (1.0 - b_in_green * b_in_green)
        b_dc1 = b_dm2 * b_x[0] * (1.0 - b_in_blue * b_in_blue)
        b_dc2 = b_dm2 * b_x[1] * (1.0 - b_green_in_blue * b_green_in_blue)
        return b_log_prob, (b_dm0, b_dm1, b_dm2, b_ds0, b_ds1, b_ds2, b_dc0, b_dc1, b_dc2)


@triton.jit
def load_channels(p_x, mask, s_channel, ACC: tl.constexpr, C: tl.constexpr):
    b_red = tl.load(p_x, mask, other=0).to(ACC)
    if C == 1:
        return (b_red,)
    else:
        b_green = tl.load(p_x + s_channel, mask, other=0).to(ACC)
        b_blue = tl.load(p_x + 2 * s_channel, mask, other=0).to(ACC)
        return b_red, b_green, b_blue


@triton.jit
def add_exponentials(b_top, b_sum, b_joint):
    """Sums of exponentials relative to their highest, with another block [BP, BM] of exponents."""
    b_new = tl.maximum(b_top, tl.max(b_joint, 1)[:, None])
    b_sum = b_sum * tl.exp(b_top - b_new) + tl.sum(tl.exp(b_joint - b_new), 1)[:, None]
    return b_new, b_sum


@triton.jit
def discretized_logistic_mixture_log_prob_fwd_kernel(
    p_params,
    p_x,
    p_out,
    pixels,
    blocks,
    mixtures,
    s_pb,
    s_pj,
    s_row,
    s_parameter,
    s_mixture,
    s_channel,
    s_xb,
    s_xj,
    s_xc,
    half_bin: tl.float64,
    edge: tl.float64,
    log_bins: tl.float64,
    C: tl.constexpr,
    IDX: tl.constexpr,
    BP: tl.constexpr,
    BM: tl.constexpr,
):
    """One sum over pixels for each block of them."""
    ACC: tl.constexpr = p_out.dtype.element_ty
    o_p = tl.program_id(0)
    o_b = (o_p // blocks).to(tl.int64)
    o_j = ((o_p % blocks).to(IDX) * BP + tl.arange(0, BP).to(IDX))[:, None]
    mask_j = o_j < pixels
    p_logits = p_params + o_b * s_pb + o_j * s_pj
    b_x = load_channels(p_x + o_b * s_xb + o_j * s_xj, mask_j, s_xc, ACC, C)
    valid = tl.abs(b_x[0]) <= 1.0
    for c in tl.static_range(1, C):
        valid = valid & (tl.abs(b_x[c]) <= 1.0)
    b_half_bin = tl.full([1, 1], half_bin, ACC)
    b_edge = tl.full([1, 1], edge, ACC)
    b_log_bins = tl.full([1, 1], log_bins, ACC)
    o_m = tl.arange(0, BM).to(IDX)[None, :]
    b_highest = row_max(p_logits, o_m, mask_j, mixtures, s_row, ACC, BP, BM)
    b_total = row_sum(p_logits, o_m, mask_j, mixtures, s_row, b_highest, ACC, BP, BM)
    b_top = tl.full([BP, 1], LOWEST, ACC)
    b_sum = tl.zeros([BP, 1], ACC)
    for start in range(0, mixtures, BM):
        o_k = start + o_m
        b_log_prob, _ = mixture_terms(
            p_logits + mixtures * s_row + o_k * s_mixture,
            mask_j & (o_k < mixtures),
            b_x,
            s_parameter,
            s_channel,
            b_half_bin,
            b_edge,
            b_log_bins,
            ACC,
            C,
        )
        b_log_weight = shifted(p_logits, o_k, mask_j, mixtures, s_row, b_highest, ACC)
        b_top, b_sum = add_exponentials(b_top, b_sum, b_log_weight + b_log_prob)
    b_value = tl.where(b_total == 0.0, float("-inf"), b_top + tl.log(b_sum / b_total))
    b_value = tl.where(mask_j, tl.where(valid, b_value, float("nan")), 0.0)
    tl.store(p_out + o_p, tl.sum(b_value.to(tl.float64)))


@triton.jit
def store_gradients(
    p_logit,
    p_k,
    mask,
    b_g,
    b_highest,
    b_total,
    b_log_weight,
    b_top,
    b_sum,
    b_joint,
    derivatives,
    s_parameter,
    s_channel,
    C: tl.constexpr,
):
    """Gradients to the logits at p_logit and to the other parameters of their mixtures at p_k."""
    # Pixels without any mixture, and without incoming gradient, have no sum.
    b_share = tl.where(b_sum == 0.0, 0.0, b_g / b_sum) * tl.exp(b_joint - b_top)
    b_prior = tl.where(b_sum == 0.0, 0.0, b_g / b_total) * tl.exp(b_log_weight)
    certain = b_highest == float("inf")
    tl.store(p_logit, tl.where(certain, 0.0, b_share - b_prior), mask)
    for i in tl.static_range(len(derivatives)):
        # A mixture without a share gets plain zeros, even where its derivatives overflow.
        b_grad = tl.where(b_share == 0.0, 0.0, b_share * derivatives[i])
        tl.store(p_k + (i // C) * s_parameter + (i % C) * s_channel, b_grad, mask)


@triton.jit
def discretized_logistic_mixture_log_prob_bwd_kernel(
    p_g,
    p_params,
    p_x,
    p_gp,
    pixels,
    blocks,
    mixtures,
    s_gb,
    s_pb,
    s_pj,
    s_row,
    s_parameter,
    s_mixture,
    s_channel,
    s_xb,
    s_xj,
    s_xc,
    s_ob,
    s_orow,
    s_oparameter,
    s_omixture,
    s_ochannel,
    half_bin: tl.float64,
    edge: tl.float64,
    log_bins: tl.float64,
    ONE_BLOCK: tl.constexpr,
    C: tl.constexpr,
    IDX: tl.constexpr,
    BP: tl.constexpr,
    BM: tl.constexpr,
):
    """d = g (share of the mixture) (its own derivative); to the logits, g (share - weight).

    Where all mixtures fit into one block, nothing is computed twice.
    """
    ACC: tl.constexpr = p_g.dtype.element_ty
    o_p = tl.program_id(0)
    o_b = (o_p // blocks).to(tl.int64)
    o_j = ((o_p % blocks).to(IDX) * BP + tl.arange(0, BP).to(IDX))[:, None]
    b_g = tl.load(p_g + o_b * s_gb + tl.zeros([1, 1], tl.int32))
    mask_j = o_j < pixels
    # Samples without weight need no data and get plain zeros.
    used = mask_j & (b_g != 0.0)
    p_logits = p_params + o_b * s_pb + o_j * s_pj
    p_first = p_logits + mixtures * s_row
    p_out = p_gp + o_b * s_ob + o_j
    b_x = load_channels(p_x + o_b * s_xb + o_j * s_xj, used, s_xc, ACC, C)
    b_half_bin = tl.full([1, 1], half_bin, ACC)
    b_edge = tl.full([1, 1], edge, ACC)
    b_log_bins = tl.full([1, 1], log_bins, ACC)
    o_m = tl.arange(0, BM).to(IDX)[None, :]
    b_highest = row_max(p_logits, o_m, used, mixtures, s_row, ACC, BP, BM)
    b_total = row_sum(p_logits, o_m, used, mixtures, s_row, b_highest, ACC, BP, BM)
    b_top = tl.full([BP, 1], LOWEST, ACC)
    b_sum = tl.zeros([BP, 1], ACC)
    if not ONE_BLOCK:
        for start in range(0, mixtures, BM):
            o_k = start + o_m
            b_log_prob, _ = mixture_terms(
                p_first + o_k * s_mixture,
                used & (o_k < mixtures),
                b_x,
                s_parameter,
                s_channel,
                b_half_bin,
                b_edge,
                b_log_bins,
                ACC,
                C,
            )
            b_log_weight = shifted(p_logits, o_k, used, mixtures, s_row, b_highest, ACC)
            b_top, b_sum = add_exponentials(b_top, b_sum, b_log_weight + b_log_prob)
    for start in range(0, mixtures, BM):
        o_k = start + o_m
        b_log_prob, derivatives = mixture_terms(
            p_first + o_k * s_mixture,
            used & (o_k < mixtures),
            b_x,
            s_parameter,
            s_channel,
            b_half_bin,
            b_edge,
            b_log_bins,
            ACC,
            C,
        )
        b_log_weight = shifted(p_logits, o_k, used, mixtures, s_row, b_highest, ACC)
        b_joint = b_log_weight + b_log_prob
        if ONE_BLOCK:
            b_top, b_sum = add_exponentials(b_top, b_sum, b_joint)
        store_gradients(
            p_out + o_k * s_orow,
            p_out + mixtures * s_orow + o_k * s_omixture,
            mask_j & (o_k < mixtures),
            b_g,
            b_highest,
            b_total,
            b_log_weight,
            b_top,
            b_sum,
            b_joint,
            derivatives,
            s_oparameter,
            s_ochannel,
            C,
        )


class _Plan(NamedTuple):
    """What both launchers pass: tensors, and arguments by the names of the kernels."""

    batch: int
    blocks: int
    tensors: tuple[Tensor, ...]
    arguments: dict[str, Any]


def _row_strides(
    row: int, channels: int, mixtures: int, parameter_major: bool
) -> tuple[int, int, int]:
    """Steps from a parameter, a mixture and a channel to the next, for rows of a given stride."""
    if parameter_major or channels == 1:
        return channels * mixtures * row, channels * row, row
    return mixtures * row, row, 3 * mixtures * row


def _plan(
    grad: Tensor | None,
    params: Tensor,
    x: Tensor,
    mixtures: int,
    levels: int,
    parameter_major: bool,
) -> _Plan:
    """``grad`` is None or has one number per sample, aligned with images."""
    x = numeric(x)
    batch = torch.broadcast_shapes(params.shape[:1], x.shape[:-3])[0]
    channels = x.shape[-3]

    def view() -> Any:
        images = (grad, params[:, 0], x.select(-3, 0))
        return collapse(torch.Size((batch, *params.shape[2:])), 2, images)

    rows = view()
    if rows is None:
        params, x = params.contiguous(), x.contiguous()
        rows = view()
    # All mixtures of a few pixels: nothing is computed twice, and a small batch makes enough programs.
    # Pixels times mixtures of a thread: more would take the registers of other warps.
    each = 1 if grad is None or grad.dtype == torch.float64 else 2
    bm = triton.next_power_of_2(mixtures) if mixtures <= 32 else 16
    bp = min(256 * each // bm, 128, triton.next_power_of_2(rows.size))
    blocks = triton.cdiv(rows.size, bp)
    s_row = params.stride(1)
    (s_gb, _), (s_pb, s_pj), (s_xb, s_xj) = (s[1:] for s in rows.strides)
    s_parameter, s_mixture, s_channel = _row_strides(s_row, channels, mixtures, parameter_major)
    rows_of_image = params.shape[1]
    arguments = dict(
        pixels=rows.size,
        blocks=blocks,
        mixtures=mixtures,
        s_pb=s_pb,
        s_pj=s_pj,
        s_row=s_row,
        s_parameter=s_parameter,
        s_mixture=s_mixture,
        s_channel=s_channel,
        s_xb=s_xb,
        s_xj=s_xj,
        s_xc=x.stride(-3),
        half_bin=1.0 / (levels - 1),
        edge=1.0 - min(1e-3, 0.5 / (levels - 1)),
        log_bins=math.log((levels - 1) / 2),
        C=channels,
        IDX=index_type(
            rows_of_image * (s_row + rows.size),
            rows.size * s_pj,
            rows.size * s_xj + channels * x.stride(-3),
        ),
        BP=bp,
        BM=bm,
        num_warps=max(1, bp * bm // (32 * each)),
    )
    if grad is None:
        return _Plan(batch, blocks, (params, x), arguments)
    strides = _row_strides(rows.size, channels, mixtures, parameter_major)
    arguments |= dict(
        s_gb=s_gb,
        s_ob=rows_of_image * rows.size,
        s_orow=rows.size,
        s_oparameter=strides[0],
        s_omixture=strides[1],
        s_ochannel=strides[2],
        ONE_BLOCK=mixtures <= bm,
    )
    return _Plan(batch, blocks, (grad, params, x), arguments)


def _is_empty(params: Tensor, x: Tensor) -> bool:
    return params.numel() == 0 or x.numel() == 0


def discretized_logistic_mixture_log_prob_fwd(
    params: Tensor, x: Tensor, num_mixtures: int, levels: int, parameter_major: bool
) -> Tensor:
    dtype = accumulator(params)
    if _is_empty(params, x):
        batch = torch.broadcast_shapes(params.shape[:1], x.shape[:-3])
        return params.new_zeros(batch, dtype=dtype)
    plan = _plan(None, params, x, num_mixtures, levels, parameter_major)
    out = params.new_empty((plan.batch, plan.blocks), dtype=dtype)
    launch(
        discretized_logistic_mixture_log_prob_fwd_kernel,
        (plan.batch * plan.blocks,),
        *plan.tensors,
        out,
        **plan.arguments,
    )
    return out.sum(1) if plan.blocks > 1 else out[:, 0]


def discretized_logistic_mixture_log_prob_bwd(
    grad: Tensor,
    params: Tensor,
    x: Tensor,
    num_mixtures: int,
    levels: int,
    parameter_major: bool,
    mask: Sequence[bool],
) -> Tensor:
    if not mask[0]:
        return grad.new_empty(0)
    if _is_empty(params, x):
        return params.new_zeros(params.shape)
    dtype = accumulator(params)
    plan = _plan(per_sample(grad, 2, dtype), params, x, num_mixtures, levels, parameter_major)
    shared = plan.batch != params.shape[0]
    shape = (plan.batch, *params.shape[1:])
    out = params.new_empty(shape, dtype=dtype if shared else params.dtype)
    launch(
        discretized_logistic_mixture_log_prob_bwd_kernel,
        (plan.batch * plan.blocks,),
        *plan.tensors,
        out,
        **plan.arguments,
    )
    return out.sum(0, keepdim=True).to(params.dtype) if shared else out
