"""Masked convolutions as products over their live taps, gathered from the image as they are multiplied.

An entry k of the inner dimension is a channel of a tap. Dead taps have none; pairs of channels that are
dead at the centre have a weight of zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._gemm import multiply_add, precision
from dgm_fast.kernels._layout import accumulator, index_type, launch
from dgm_fast.kernels.masked import product_blocks
from torch import Tensor
from torch._prims_common import suggest_memory_format

# Partial sums of a weight's gradient: programs that they fill, and entries they may have.
_PROGRAMS, _PART_ENTRIES = 256, 2**22
# Tiles of pixels below which a product is not worth a sum of its own.
_LEAST = 8


@triton.jit
def pixels(o_m, height, width, IDX: tl.constexpr):
    """Image, row and column of pixels."""
    o_row = o_m // width
    return (o_row // height).to(IDX), o_row % height, o_m % width


@triton.jit
def taps(o_k, channels, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, DILATION: tl.constexpr):
    """Channel of the inner entries, and how many rows and columns their tap is from the centre."""
    o_tap = o_k // channels
    o_i = (o_tap // KERNEL_W - KERNEL_H // 2) * DILATION
    o_j = (o_tap % KERNEL_W - KERNEL_W // 2) * DILATION
    return o_k % channels, o_i, o_j


@triton.jit
def masked_conv_kernel(
    p_x,
    p_w,
    p_b,
    p_out,
    count,
    channels,
    out_channels,
    inner,
    height,
    width,
    s_xn,
    s_xc,
    s_xh,
    s_xw,
    s_on,
    s_oc,
    s_oh,
    s_ow,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    DILATION: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    WHOLE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """A tile of pixels and output channels: gathered x [count, inner] times weight [inner, out_channels].

    A negative dilation is that of the gradient of x, which goes the other way. With WHOLE the channels are
    a multiple of BK.
    """
    o_m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(IDX)
    o_n = tl.program_id(1) * BN + tl.arange(0, BN)
    mask_m, mask_n = o_m < count, o_n < out_channels
    o_image, o_row, o_column = pixels(o_m, height, width, IDX)
    o_pixel = o_image * s_xn + o_row * s_xh + o_column * s_xw
    b_sum = tl.zeros([BM, BN], ACC)
    for start in range(0, inner, BK):
        o_k = start + tl.arange(0, BK)
        if WHOLE:
            # Channels of one tap.
            first, o_i, o_j = taps(start, channels, KERNEL_H, KERNEL_W, DILATION)
            o_h = o_row + o_i
            o_w = o_column + o_j
            inside = mask_m & (o_h >= 0) & (o_h < height) & (o_w >= 0) & (o_w < width)
            mask = inside[:, None] & (o_k < inner)[None, :]
            o_c = (first + tl.arange(0, BK)).to(IDX) * s_xc
            o_x = (o_pixel + (o_i * s_xh + o_j * s_xw))[:, None] + o_c[None, :]
        else:
            o_c, o_i, o_j = taps(o_k, channels, KERNEL_H, KERNEL_W, DILATION)
            o_tap = o_c.to(IDX) * s_xc + o_i * s_xh + o_j * s_xw
            o_h = o_row[:, None] + o_i[None, :]
            o_w = o_column[:, None] + o_j[None, :]
            mask = mask_m[:, None] & (o_k < inner)[None, :]
            mask = mask & (o_h >= 0) & (o_h < height) & (o_w >= 0) & (o_w < width)
            o_x = o_pixel[:, None] + o_tap[None, :]
        b_x = tl.load(p_x + o_x, mask, other=0.0)
        p_k = p_w + o_k[:, None] * out_channels + o_n[None, :]
        b_w = tl.load(p_k, (o_k < inner)[:, None] & mask_n[None, :], other=0.0)
        b_sum = multiply_add(b_x, b_w, b_sum, PRECISION, ACC)
    if p_b is not None:
        b_sum += tl.load(p_b + o_n, mask_n, other=0.0).to(ACC)[None, :]
    o_out = o_image * s_on + o_row * s_oh + o_column * s_ow
    p_out += o_out[:, None] + (o_n.to(IDX) * s_oc)[None, :]
    tl.store(p_out, b_sum, mask_m[:, None] & mask_n[None, :])


@triton.jit
def masked_conv_weight_gradient_kernel(
    p_x,
    p_g,
    p_gw,
    count,
    channels,
    out_channels,
    inner,
    chunk,
    height,
    width,
    s_xn,
    s_xc,
    s_xh,
    s_xw,
    s_gn,
    s_gc,
    s_gh,
    s_gw,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    DILATION: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Gathered x [count, inner]^T times g [count, out_channels], summed over a chunk of pixels: a tile."""
    o_k = tl.program_id(0) * BK + tl.arange(0, BK)
    o_n = tl.program_id(1) * BN + tl.arange(0, BN)
    mask_k, mask_n = o_k < inner, o_n < out_channels
    o_c, o_i, o_j = taps(o_k, channels, KERNEL_H, KERNEL_W, DILATION)
    o_tap = o_c.to(IDX) * s_xc + o_i * s_xh + o_j * s_xw
    begin = tl.program_id(2).to(IDX) * chunk
    end = tl.minimum(begin + chunk, count)
    b_sum = tl.zeros([BK, BN], ACC)
    for start in range(begin, end, BM):
        o_m = start + tl.arange(0, BM)
        mask_m = o_m < end
        o_image, o_row, o_column = pixels(o_m, height, width, IDX)
        o_h = o_row[None, :] + o_i[:, None]
        o_w = o_column[None, :] + o_j[:, None]
        mask = mask_k[:, None] & mask_m[None, :]
        mask = mask & (o_h >= 0) & (o_h < height) & (o_w >= 0) & (o_w < width)
        o_pixel = o_image * s_xn + o_row * s_xh + o_column * s_xw
        b_x = tl.load(p_x + (o_tap[:, None] + o_pixel[None, :]), mask, other=0.0)
        o_g = o_image * s_gn + o_row * s_gh + o_column * s_gw
        p_n = p_g + (o_g[:, None] + (o_n.to(IDX) * s_gc)[None, :])
        b_g = tl.load(p_n, mask_m[:, None] & mask_n[None, :], other=0.0)
        b_sum = multiply_add(b_x, b_g, b_sum, PRECISION, ACC)
    p_gw += (tl.program_id(2).to(tl.int64) * inner + o_k)[:, None] * out_channels + o_n[None, :]
    tl.store(p_gw, b_sum, mask_k[:, None] & mask_n[None, :])


class _Mask(NamedTuple):
    """The live entries of a weight: its first ``taps``, of the centre the pairs of channels in ``seen``."""

    taps: int
    centre: int
    seen: Tensor

    def live(self, weight: Tensor) -> Tensor:
        """[taps, in, out], zero where dead."""
        taps = weight.flatten(2).permute(2, 1, 0)
        centre = torch.where(self.seen.t(), taps[self.centre], 0)
        return torch.cat([taps[: self.centre], centre[None]])[: self.taps]

    def spread(self, taps: Tensor, weight: Tensor) -> Tensor:
        """The reverse for a gradient [taps, in, out]: like ``weight``, zero where dead."""
        out = weight.new_zeros(weight.shape)
        flat = out.flatten(2)
        flat[:, :, : self.taps] = taps.permute(2, 1, 0)
        flat[:, :, self.centre] = torch.where(self.seen, flat[:, :, self.centre], 0)
        return out


def _groups(channels: int, data_channels: int, contiguous: bool, like: Tensor) -> Tensor:
    """The data channel of each of ``channels`` feature maps."""
    index = torch.arange(channels, device=like.device)
    return index * data_channels // channels if contiguous else index % data_channels


def _mask(weight: Tensor, mask_type: int, data_channels: int, channel_order: int) -> _Mask:
    out_group, in_group = (
        _groups(n, data_channels, channel_order == 1, weight) for n in weight.shape[:2]
    )
    own = out_group[:, None]
    seen = in_group <= own if mask_type == 1 else in_group < own
    centre = weight.shape[2] * weight.shape[3] // 2
    dead = mask_type == 0 and data_channels == 1
    return _Mask(centre if dead else centre + 1, centre, seen)


def _empty_image(x: Tensor, channels: int) -> Tensor:
    """An image of x's size and memory format."""
    batch, _, height, width = x.shape
    if suggest_memory_format(x) == torch.channels_last:
        return x.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)
    return x.new_empty((batch, channels, height, width))


def _options(x: Tensor, other: Tensor, weight: Tensor, dilation: int) -> dict[str, Any]:
    double = accumulator(x) == torch.float64
    return {
        "KERNEL_H": weight.shape[2],
        "KERNEL_W": weight.shape[3],
        "DILATION": dilation,
        "PRECISION": precision(x),
        "ACC": tl.float64 if double else tl.float32,
        "IDX": index_type(x.numel(), other.numel()),
    }


def _convolve(
    x: Tensor, taps: Tensor, bias: Tensor | None, out: Tensor, weight: Tensor, dilation: int
) -> Tensor:
    """Into ``out``, by weights [taps, in, out]."""
    batch, channels, height, width = x.shape
    count, out_channels = batch * height * width, out.shape[1]
    if out.numel() == 0:
        return out
    block = product_blocks(x, count, out_channels)
    # Few, as addresses take registers; if it can be a divisor of the channels, so that a tile has one tap.
    most = min(block.inner, 32)
    whole = channels % 16 == 0
    inner = min(most, channels & -channels) if whole else most
    rows = block.rows if whole else min(block.rows, 64)
    launch(
        masked_conv_kernel,
        (triton.cdiv(count, rows), triton.cdiv(out_channels, block.columns)),
        x,
        taps.contiguous(),
        bias,
        out,
        count,
        channels,
        out_channels,
        taps.shape[0] * channels,
        height,
        width,
        *x.stride(),
        *out.stride(),
        WHOLE=whole,
        BM=rows,
        BN=block.columns,
        BK=inner,
        **block.meta,
        **_options(x, out, weight, dilation),
    )
    return out


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, taps: int, dilation: int) -> Tensor:
    """[taps, in, out] in the accumulator's dtype."""
    batch, channels, height, width = x.shape
    count, inner, out_channels = batch * height * width, taps * channels, weight.shape[0]
    if inner == 0 or count == 0:
        return x.new_zeros((taps, channels, out_channels), dtype=accumulator(x))
    block = product_blocks(x, inner, out_channels)
    tiles = triton.cdiv(inner, block.rows) * triton.cdiv(out_channels, block.columns)
    parts = min(triton.cdiv(_PROGRAMS, tiles), max(1, _PART_ENTRIES // (inner * out_channels)))
    parts = max(1, min(parts, count // (_LEAST * block.inner)))
    chunk = triton.cdiv(triton.cdiv(count, parts), block.inner) * block.inner
    parts = triton.cdiv(count, chunk)
    out = x.new_empty((parts, taps, channels, out_channels), dtype=accumulator(x))
    launch(
        masked_conv_weight_gradient_kernel,
        (triton.cdiv(inner, block.rows), triton.cdiv(out_channels, block.columns), parts),
        x,
        grad,
        out,
        count,
        channels,
        out_channels,
        inner,
        chunk,
        height,
        width,
        *x.stride(),
        *grad.stride(),
        BM=block.inner,
        BN=block.columns,
        BK=block.rows,
        **block.meta,
        **_options(x, grad, weight, dilation),
    )
    return out.sum(0)


def masked_conv2d_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_type: int,
    data_channels: int,
    channel_order: int,
    dilation: int,
) -> Tensor:
    taps = _mask(weight, mask_type, data_channels, channel_order).live(weight)
    bias = None if bias is None else bias.contiguous()
    return _convolve(x, taps, bias, _empty_image(x, weight.shape[0]), weight, dilation)


def masked_conv2d_bwd(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_type: int,
    data_channels: int,
    channel_order: int,
    dilation: int,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    live = _mask(weight, mask_type, data_channels, channel_order)
    grad_x = grad_weight = grad_bias = x.new_empty(0)
    if mask[0]:
        taps = live.live(weight).transpose(1, 2)
        grad_x = _convolve(grad, taps, None, _empty_image(x, x.shape[1]), weight, -dilation)
    if mask[1]:
        grad_weight = live.spread(_weight_gradient(grad, x, weight, live.taps, dilation), weight)
    if mask[2] and bias is not None:
        grad_bias = grad.sum((0, 2, 3), dtype=accumulator(bias)).to(bias.dtype)
    return grad_x, grad_weight, grad_bias
