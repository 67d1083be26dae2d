"""Masked convolutions and the gated activation of autoregressive image models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgm_fast import ops, reference
from dgm_fast.functional._checks import cast_as_linear, check_floating, check_tensor, promoted


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask_type: str,
    data_channels: int = 1,
    channel_order: str = "interleaved",
    dilation: int = 1,
) -> Tensor:
    r"""Convolution whose output at a pixel sees only the pixels before it in raster order.

    .. math:: y_{o, i, j} = b_o + \sum_{c, u, v} m_{o, c, u, v}\, w_{o, c, u, v}\, x_{c, i + d u, j + d v},
        \qquad |u| \le \lfloor k_H / 2 \rfloor,\ |v| \le \lfloor k_W / 2 \rfloor

    with stride 1 and zeros outside of the image, so that y has x's size. The mask m is 1 where (u, v) comes
    before (0, 0) in raster order (u < 0, or u = 0 and v < 0), and 0 after it. At (0, 0), an output channel
    of data channel g sees the input channels of data channels below g (type "A", for the first layer) or up
    to g (type "B"). With one data channel the centre is dead (A) or live (B).

    Equal to ``F.conv2d(x, weight * mask, bias, padding=..., dilation=dilation)``, but dead taps are not
    computed; their weights may hold anything and get a gradient of exactly zero. The result has x's
    memory format (contiguous or channels-last).

    Args:
        x: floating point, [B, C_in, H, W] or [C_in, H, W].
        weight: [C_out, C_in, kH, kW], both kernel sizes odd.
        bias: [C_out] or None.
        mask_type: "A" or "B".
        data_channels: colour channels of the data (3 for RGB), at most C_in and C_out.
        channel_order: which data channel a feature map belongs to: "interleaved", channel mod
            data_channels, or "contiguous", data_channels runs of (nearly) equal length.
        dilation: distance between taps, at least 1.

    Returns:
        [B, C_out, H, W] (or [C_out, H, W]) in the common dtype of the arguments; under autocast they are
        cast as F.conv2d casts them. Differentiable in ``x``, ``weight`` and ``bias``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes, devices or options do not match.

    Source: van den Oord et al., "Pixel Recurrent Neural Networks" (2016), section 3.4.
    """
    _check_convolution(x, weight, bias, mask_type, data_channels, channel_order, dilation, 2)
    x, weight, bias = cast_as_linear(x, weight, bias)
    if x.ndim == 3:
        x = x.unsqueeze(0)
        options = (mask_type, data_channels, channel_order, dilation)
        return _conv2d(x, weight, bias, *options).squeeze(0)
    return _conv2d(x, weight, bias, mask_type, data_channels, channel_order, dilation)


def masked_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask_type: str,
    data_channels: int = 1,
    channel_order: str = "interleaved",
    dilation: int = 1,
) -> Tensor:
    r"""Causal convolution: the output at a position sees only what comes before it (type "B": and itself).

    .. math:: y_{o, i} = b_o + \sum_{c, u} m_{o, c, u}\, w_{o, c, u}\, x_{c, i + d u},
        \qquad |u| \le \lfloor k / 2 \rfloor

    :func:`masked_conv2d` on images of height 1: the taps u < 0 are live, those u > 0 dead, and u = 0
    follows the data channels. A causal convolution over k positions is one with 2 k - 1 (type "B") or
    2 k + 1 (type "A") taps.

    Args:
        x: floating point, [B, C_in, L] or [C_in, L].
        weight: [C_out, C_in, k], k odd.
        bias, mask_type, data_channels, channel_order, dilation: as for :func:`masked_conv2d`.

    Returns:
        [B, C_out, L] (or [C_out, L]) in the common dtype of the arguments. Differentiable in ``x``,
        ``weight`` and ``bias``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes, devices or options do not match.

    Source: van den Oord et al., "WaveNet: A Generative Model for Raw Audio" (2016), section 2.1.
    """
    _check_convolution(x, weight, bias, mask_type, data_channels, channel_order, dilation, 1)
    x, weight, bias = cast_as_linear(x, weight, bias)
    image = x.unsqueeze(-2) if x.ndim == 3 else x[None, :, None]
    options = (mask_type, data_channels, channel_order, dilation)
    out = _conv2d(image, weight.unsqueeze(2), bias, *options).squeeze(2)
    return out if x.ndim == 3 else out.squeeze(0)


def gated_activation(
    x: Tensor,
    *,
    dim: int = 1,
    bias: Tensor | None = None,
    condition: Tensor | None = None,
) -> Tensor:
    r"""Gated activation unit over two halves of the channels, with the additions before it.

    .. math:: y = \tanh(a)\, \sigma(b), \qquad (a, b) = \text{halves of } x + \text{bias} + \text{condition}

    One pass over x, which is all that backward keeps.

    Args:
        x: floating point, with an even number 2 C of entries in dimension ``dim``.
        dim: the dimension of the channels.
        bias: [2 C] (of the convolution before, say) or None.
        condition: what the layer is conditioned on, or None. One a sample: the dimensions of x up to
            ``dim`` ([B, 2 C] for ``dim`` = 1). One a position: all dimensions of x. Sizes of 1 are
            broadcast, except that of the channels.

    Returns:
        x's shape with C entries in ``dim``, in the common dtype of the arguments. Differentiable in
        ``x``, ``bias`` and ``condition``.

    Raises:
        TypeError: if an argument is not a floating-point tensor, or dim no int.
        ValueError: if shapes or devices do not match, or x has an odd number of channels.

    Source: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders" (2016), equations
    2 to 4.
    """
    check_tensor("x", x)
    check_floating(x=x, bias=bias, condition=condition)
    _check_int("dim", dim)
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim must be a dimension of x {tuple(x.shape)}, got {dim}")
    dim %= x.ndim
    channels = x.shape[dim]
    if channels % 2:
        raise ValueError(f"x must have an even size in dimension {dim}, got shape {tuple(x.shape)}")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must have shape ({channels},), got {tuple(bias.shape)}")
    if condition is not None:
        condition = _aligned_condition(condition, x, dim)
    x, bias, condition = promoted(x, bias, condition)
    if ops.use_kernel(x, "pixel"):
        return ops.gated_activation(x, bias, condition, dim)
    return reference.gated_activation(x, bias, condition, dim=dim)


def _aligned_condition(condition: Tensor, x: Tensor, dim: int) -> Tensor:
    """``condition`` with all dimensions of x."""
    shape = condition.shape
    if len(shape) not in (dim + 1, x.ndim):
        raise ValueError(
            f"condition must have the {x.ndim} dimensions of x or its first {dim + 1}, "
            f"got shape {tuple(shape)}"
        )
    if any(n != x.shape[d] and (n != 1 or d == dim) for d, n in enumerate(shape)):
        raise ValueError(
            f"condition must match x's shape {tuple(x.shape)} (sizes of 1 are broadcast, except of the "
            f"channels), got {tuple(shape)}"
        )
    return condition[(..., *(None for _ in range(x.ndim - len(shape))))]


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_type: str,
    data_channels: int,
    channel_order: str,
    dilation: int,
) -> Tensor:
    options: dict[str, Any] = {
        "mask_type": mask_type,
        "data_channels": data_channels,
        "channel_order": channel_order,
        "dilation": dilation,
    }
    if not ops.use_kernel(x, "pixel"):
        return reference.masked_conv2d(x, weight, bias, **options)
    codes = ops.MASK_TYPES[mask_type], data_channels, ops.CHANNEL_ORDERS[channel_order], dilation

    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return ops.masked_conv2d(x, weight, bias, *codes)

    def library(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return reference.cropped_conv2d(x, weight, bias, **options)

    chosen = ops.strategy(
        "masked_conv2d",
        {"kernel": kernel, "library": library},
        _masked_conv_rule(x, weight),
        (x, weight, bias),
        tuple(options.values()),
    )
    return chosen(x, weight, bias)


# Channels from which the library's half-precision convolutions should outrun live taps: reasoned, not
# measured.
_LIBRARY_CHANNELS = 128


def _masked_conv_rule(x: Tensor, weight: Tensor) -> str:
    """On CUDA live taps save a seventh of a cropped kernel's products: little beside a better kernel."""
    many = min(weight.shape[:2]) >= _LIBRARY_CHANNELS
    half = x.dtype in (torch.float16, torch.bfloat16)
    return "library" if many and half and x.device.type == "cuda" else "kernel"


def _check_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_type: str,
    data_channels: int,
    channel_order: str,
    dilation: int,
    spatial_ndim: int,
) -> None:
    check_tensor("x", x)
    check_tensor("weight", weight)
    check_floating(x=x, weight=weight, bias=bias)
    if weight.ndim != spatial_ndim + 2:
        raise ValueError(
            f"weight must have {spatial_ndim + 2} dimensions (channels out, channels in, kernel), "
            f"got shape {tuple(weight.shape)}"
        )
    if x.ndim not in (spatial_ndim + 1, spatial_ndim + 2):
        raise ValueError(
            f"x must have {spatial_ndim + 2} dimensions (or {spatial_ndim + 1} without a batch), "
            f"got shape {tuple(x.shape)}"
        )
    if any(k % 2 == 0 for k in weight.shape[2:]):
        raise ValueError(f"weight must have odd kernel sizes, got shape {tuple(weight.shape)}")
    channels = x.shape[-spatial_ndim - 1]
    if channels != weight.shape[1]:
        raise ValueError(
            f"x must have weight's {weight.shape[1]} input channels, got shape {tuple(x.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    check_mask(mask_type, data_channels, channel_order, dilation)
    if data_channels > min(weight.shape[:2]):
        raise ValueError(
            f"data_channels must be at most the channels of weight {tuple(weight.shape)}, "
            f"got {data_channels}"
        )


def check_mask(mask_type: str, data_channels: int, channel_order: str, dilation: int) -> None:
    """The options that a masked layer and its function share."""
    if mask_type not in ops.MASK_TYPES:
        raise ValueError(f"mask_type must be one of {tuple(ops.MASK_TYPES)}, got {mask_type!r}")
    if channel_order not in ops.CHANNEL_ORDERS:
        raise ValueError(
            f"channel_order must be one of {tuple(ops.CHANNEL_ORDERS)}, got {channel_order!r}"
        )
    for name, value in (("data_channels", data_channels), ("dilation", dilation)):
        _check_int(name, value)
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _check_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
