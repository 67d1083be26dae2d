"""Leaky ReLU, with a bias or without. Backward takes the mask from the sign of the output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._dense import channels_dense, entries_dense, in_layout_of
from dgm_fast.kernels._elements import ACCUMULATORS
from dgm_fast.kernels._layout import accumulator, index_type, launch
from torch import Tensor

_BLOCK = 1024
# Partial sums of a bias's gradient, and positions of each at least.
_PARTS = 64
_PART = 1024


@triton.jit
def _leaky(b_v, SLOPE: tl.constexpr):
    # A product with slope 0 would make NaN of -inf.
    b_low = tl.zeros_like(b_v) if SLOPE == 0.0 else b_v * SLOPE
    return tl.where(b_v <= 0.0, b_low, b_v)


@triton.jit
def leaky_relu_fwd_kernel(
    p_x,
    p_b,
    p_out,
    elements,
    channels,
    inner,
    SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BE: tl.constexpr,
):
    o_e = tl.program_id(0).to(IDX) * BE + tl.arange(0, BE).to(IDX)
    mask = o_e < elements
    b_v = tl.load(p_x + o_e, mask, other=0.0).to(ACC)
    if p_b is not None:
        b_v += tl.load(p_b + (o_e // inner) % channels, mask, other=0.0)
    tl.store(p_out + o_e, _leaky(b_v, SLOPE), mask)


@triton.jit
def leaky_relu_bwd_kernel(
    p_g,
    p_out,
    p_gx,
    elements,
    SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BE: tl.constexpr,
):
    o_e = tl.program_id(0).to(IDX) * BE + tl.arange(0, BE).to(IDX)
    mask = o_e < elements
    b_out = tl.load(p_out + o_e, mask, other=0.0)
    b_g = tl.load(p_g + o_e, mask, other=0.0).to(ACC)
    tl.store(p_gx + o_e, tl.where(b_out > 0.0, b_g, b_g * SLOPE), mask)


@triton.jit
def bias_leaky_relu_bwd_kernel(
    p_g,
    p_out,
    p_gx,
    p_gb,
    positions,
    channels,
    inner,
    chunk,
    SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    LAST: tl.constexpr,
    IDX: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """Some channels and one part of the positions: their gradient, and its sum over them.

    LAST: channels lie next to each other; else ``inner`` positions of one do.
    """
    o_part = tl.program_id(1)
    o_c = tl.program_id(0) * BC + tl.arange(0, BC)[None, :]
    first = o_part.to(IDX) * chunk
    last = tl.minimum(first + chunk, positions)
    b_sum = tl.zeros([BP, BC], ACC)
    for start in range(first, last, BP):
        o_p = (start + tl.arange(0, BP).to(IDX))[:, None]
        mask = (o_p < last) & (o_c < channels)
        o_e = o_p * channels + o_c
        if not LAST:
            o_e = ((o_p // inner) * channels + o_c) * inner + o_p % inner
        b_out = tl.load(p_out + o_e, mask, other=0.0)
        b_g = tl.load(p_g + o_e, mask, other=0.0).to(ACC)
        b_g = tl.where(b_out > 0.0, b_g, b_g * SLOPE)
        if p_gx is not None:
            tl.store(p_gx + o_e, b_g, mask)
        b_sum += b_g
    o_to = o_part.to(tl.int64) * channels + o_c
    tl.store(p_gb + o_to, tl.sum(b_sum, 0)[None, :], o_c < channels)


def _channel_layout(t: Tensor) -> tuple[int, int]:
    """Channels, and how many entries of one lie next to each other in dense memory."""
    channels = t.shape[1]
    last = t.ndim == 2 or not t.is_contiguous()
    return channels, 1 if last else max(1, t.numel() // max(1, t.shape[0] * channels))


def _activate(x: Tensor, bias: Tensor | None, out: Tensor, slope: float) -> Tensor:
    if out.numel():
        dtype = accumulator(x)
        channels, inner = (1, 1) if bias is None else _channel_layout(x)
        launch(
            leaky_relu_fwd_kernel,
            (triton.cdiv(out.numel(), _BLOCK),),
            x,
            None if bias is None else bias.to(dtype).contiguous(),
            out,
            out.numel(),
            channels,
            inner,
            SLOPE=slope,
            ACC=ACCUMULATORS[dtype],
            IDX=index_type(out.numel()),
            BE=_BLOCK,
            num_warps=4,
        )
    return out


def leaky_relu_fwd(x: Tensor, slope: float) -> Tensor:
    if entries_dense(x):
        return _activate(x, None, torch.empty_like(x), slope)
    return _activate(x.contiguous(), None, x.new_empty(x.shape), slope)


def leaky_relu_bwd(
    grad: Tensor, out: Tensor, x: Tensor, slope: float, mask: Sequence[bool]
) -> Tensor:
    if not mask[0]:
        return out.new_empty(0)
    grad_x = torch.empty_like(out)
    if out.numel():
        launch(
            leaky_relu_bwd_kernel,
            (triton.cdiv(out.numel(), _BLOCK),),
            in_layout_of(grad, out),
            out,
            grad_x,
            out.numel(),
            SLOPE=slope,
            ACC=ACCUMULATORS[accumulator(out)],
            IDX=index_type(out.numel()),
            BE=_BLOCK,
            num_warps=4,
        )
    return grad_x


def bias_leaky_relu_fwd(x: Tensor, bias: Tensor, slope: float) -> Tensor:
    if channels_dense(x):
        return _activate(x, bias, torch.empty_like(x), slope)
    return _activate(x.contiguous(), bias, x.new_empty(x.shape), slope)


def bias_leaky_relu_bwd(
    grad: Tensor, out: Tensor, x: Tensor, bias: Tensor, slope: float, mask: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    none = bias.new_empty(0)
    if not mask[1]:
        return leaky_relu_bwd(grad, out, x, slope, mask), none
    dtype = accumulator(out)
    channels, inner = _channel_layout(out)
    if out.numel() == 0:
        return torch.empty_like(out) if mask[0] else none, bias.new_zeros(bias.shape)
    positions = out.numel() // channels
    last = inner == 1
    columns = min(64, triton.next_power_of_2(channels)) if last else 1
    parts = max(1, min(_PARTS, positions // _PART))
    grad_x = torch.empty_like(out) if mask[0] else None
    sums = out.new_empty((parts, channels), dtype=dtype)
    launch(
        bias_leaky_relu_bwd_kernel,
        (triton.cdiv(channels, columns), parts),
        in_layout_of(grad, out),
        out,
        grad_x,
        sums,
        positions,
        channels,
        inner,
        triton.cdiv(positions, parts),
        SLOPE=slope,
        ACC=ACCUMULATORS[dtype],
        LAST=last,
        IDX=index_type(out.numel()),
        BP=_BLOCK // columns,
        BC=columns,
        num_warps=4,
    )
    return none if grad_x is None else grad_x, sums.sum(0).to(bias.dtype)
