"""Mixtures of Gaussians or logistics in one dimension each: log-density of rows and its gradients.

A row holds (logits,) means and log-scales [M] of every dimension side by side; a program has some
dimensions of one row, with all components of a dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._layout import launch, per_sample
from dgm_fast.kernels._math import LOG_2PI, LOWEST, exp_accurate, log1p, tanh
from torch import Tensor

# Dimensions times components of a program.
_TILE = 1024


@triton.jit
def mixture_terms(
    p_row,
    b_x,
    mask_d,
    mixtures,
    LOGITS: tl.constexpr,
    LOGISTIC: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
):
    """Of the mixtures with parameters from p_row [BD] on: log w_m + log density, [BD, BM], and parts of it.

    The parts are the distance t in scales, the inverse scale, the weight, the total of the weights
    [BD, 1], and whether logits decide without a gradient [BD, 1]: some of +inf, which share the weight,
    or all of -inf, which have none.
    """
    ACC: tl.constexpr = b_x.dtype
    # The square of the exponential is finite.
    CAP: tl.constexpr = 350.0 if tl.float64 == ACC else 43.0
    o_m = tl.arange(0, BM)[None, :]
    mask = mask_d[:, None] & (o_m < mixtures)
    p_m = p_row[:, None] + o_m
    p_mean = p_m + mixtures if LOGITS else p_m
    b_mean = tl.load(p_mean, mask, other=0.0)
    b_log_scale = tl.load(p_mean + mixtures, mask, other=0.0)
    b_inverse = exp_accurate(tl.minimum(-b_log_scale, CAP))
    b_t = (b_x[:, None] - b_mean) * b_inverse
    if LOGISTIC:
        b_far = -tl.abs(b_t)
        b_kernel = b_far - 2.0 * log1p(tl.exp(b_far))
    else:
        b_kernel = -0.5 * (b_t * b_t) - 0.5 * LOG_2PI
    if LOGITS:
        b_logit = tl.load(p_m, mask, other=float("-inf"))
        b_top = tl.max(b_logit, 1)[:, None]
        b_certain = tl.abs(b_top) == float("inf")
        b_shifted = b_logit - tl.where(b_certain, 0.0, b_top)
        b_hot = tl.where(b_logit == float("inf"), 0.0, float("-inf"))
        b_shifted = tl.where(b_certain, b_hot, b_shifted)
        b_weight = tl.exp(b_shifted)
        b_total = tl.sum(b_weight, 1)[:, None]
        b_total = tl.where(b_total == 0.0, 1.0, b_total)
        b_log_weight = b_shifted - tl.log(b_total)
    else:
        b_certain = tl.full([BD, 1], 1, tl.int1)
        b_weight = tl.where(o_m < mixtures, 1.0, tl.zeros([BD, BM], ACC))
        b_total = tl.zeros([BD, 1], ACC) + mixtures
        b_log_weight = -tl.log(b_total)
    b_joint = tl.where(mask, (b_log_weight - b_log_scale) + b_kernel, float("-inf"))
    return b_joint, b_t, b_log_scale, b_inverse, b_weight, b_total, b_certain


@triton.jit
def nade_mixture_fwd_kernel(
    p_outputs,
    p_x,
    p_out,
    size,
    width,
    mixtures,
    tiles,
    LOGITS: tl.constexpr,
    LOGISTIC: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
):
    o_r = (tl.program_id(0) // tiles).to(tl.int64)
    o_d = tl.program_id(0) % tiles * BD + tl.arange(0, BD)
    mask_d = o_d < size
    b_x = tl.load(p_x + o_r * size + o_d, mask_d, other=0.0)
    b_joint, _, _, _, _, _, _ = mixture_terms(
        p_outputs + (o_r * size + o_d) * width, b_x, mask_d, mixtures, LOGITS, LOGISTIC, BD, BM
    )
    b_top = tl.maximum(tl.max(b_joint, 1), LOWEST)
    b_log_prob = b_top + tl.log(tl.sum(tl.exp(b_joint - b_top[:, None]), 1))
    b_sum = tl.sum(tl.where(mask_d, b_log_prob, 0.0).to(tl.float64), 0)
    tl.store(p_out + tl.program_id(0), b_sum)


@triton.jit
def nade_mixture_bwd_kernel(
    p_g,
    p_outputs,
    p_x,
    p_go,
    p_gx,
    size,
    width,
    mixtures,
    tiles,
    LOGITS: tl.constexpr,
    LOGISTIC: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
):
    """With responsibilities r and the slope s of the log-density: to the means g r s / scale, to the
    log-scales g r (s t - 1), to the logits g (r - weight).
    """
    ACC: tl.constexpr = p_go.dtype.element_ty
    CAP: tl.constexpr = 350.0 if tl.float64 == ACC else 43.0
    o_r = (tl.program_id(0) // tiles).to(tl.int64)
    o_d = tl.program_id(0) % tiles * BD + tl.arange(0, BD)
    b_g = tl.load(p_g + o_r + tl.zeros([1], tl.int32))
    mask_d = o_d < size
    # Samples without weight need no data and get plain zeros.
    used = mask_d & (b_g != 0.0)
    b_x = tl.load(p_x + o_r * size + o_d, used, other=0.0)
    o_row = (o_r * size + o_d) * width
    b_joint, b_t, b_log_scale, b_inverse, b_weight, b_total, b_certain = mixture_terms(
        p_outputs + o_row, b_x, used, mixtures, LOGITS, LOGISTIC, BD, BM
    )
    b_top = tl.maximum(tl.max(b_joint, 1), LOWEST)[:, None]
    b_e = tl.exp(b_joint - b_top)
    b_sum = tl.sum(b_e, 1)[:, None]
    # Where no component reaches x there is no gradient.
    b_up = tl.where(used[:, None] & (b_sum != 0.0), b_g[:, None], 0.0)
    b_r = b_up / tl.where(b_sum == 0.0, 1.0, b_sum) * b_e
    b_slope = b_r * (tanh(0.5 * b_t) if LOGISTIC else b_t)
    # A component without a share gets plain zeros, however far away it is.
    b_slope = tl.where(b_r == 0.0, 0.0, b_slope)
    b_gm = tl.where(b_r == 0.0, 0.0, b_slope * b_inverse)
    # A capped scale does not change the distance.
    b_stretch = tl.where((b_r == 0.0) | (-b_log_scale > CAP), 0.0, b_slope * b_t)
    o_m = tl.arange(0, BM)[None, :]
    mask = mask_d[:, None] & (o_m < mixtures)
    p_m = p_go + o_row[:, None] + o_m
    if LOGITS:
        b_gl = tl.where(b_certain, 0.0, b_r - b_up * (b_weight / b_total))
        tl.store(p_m, b_gl, mask)
        p_m += mixtures
    tl.store(p_m, b_gm, mask)
    tl.store(p_m + mixtures, b_stretch - b_r, mask)
    if p_gx is not None:
        b_gx = -tl.sum(tl.where(mask, b_gm, 0.0), 1)
        tl.store(p_gx + o_r * size + o_d, b_gx, mask_d)


def _arguments(outputs: Tensor, with_logits: bool, mixture: int) -> dict[str, Any]:
    size, width = outputs.shape[1:]
    mixtures = width // (3 if with_logits else 2)
    bm = triton.next_power_of_2(mixtures)
    tile = _TILE // 2 if outputs.dtype == torch.float64 else _TILE
    bd = max(1, min(tile // bm, 64, triton.next_power_of_2(size)))
    return dict(
        size=size,
        width=width,
        mixtures=mixtures,
        tiles=triton.cdiv(size, bd),
        LOGITS=with_logits,
        LOGISTIC=mixture == 1,
        BD=bd,
        BM=bm,
        num_warps=max(1, min(8, bd * bm * 8 // tile)),
    )


def mixture_log_prob_fwd(outputs: Tensor, x: Tensor, with_logits: bool, mixture: int) -> Tensor:
    """``outputs`` [B, D, width] and x [B, D], contiguous and of one dtype -> [B]."""
    arguments = _arguments(outputs, with_logits, mixture)
    tiles = arguments["tiles"]
    sums = outputs.new_empty((outputs.shape[0], tiles), dtype=torch.float64)
    if outputs.shape[0]:
        grid = (outputs.shape[0] * tiles,)
        launch(nade_mixture_fwd_kernel, grid, outputs, x, sums, **arguments)
    return sums.sum(1).to(outputs.dtype)


def mixture_log_prob_bwd(
    grad: Tensor, outputs: Tensor, x: Tensor, with_logits: bool, mixture: int, want_x: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients to the outputs and, where wanted, to x."""
    outputs = outputs.contiguous()
    arguments = _arguments(outputs, with_logits, mixture)
    grad_outputs = outputs.new_empty(outputs.shape)
    grad_x = x.new_empty(x.shape) if want_x else None
    if outputs.shape[0]:
        launch(
            nade_mixture_bwd_kernel,
            (outputs.shape[0] * arguments["tiles"],),
            per_sample(grad, 0, outputs.dtype).contiguous(),
            outputs,
            x,
            grad_outputs,
            grad_x,
            **arguments,
        )
    return grad_outputs, grad_x
