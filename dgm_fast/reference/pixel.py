"""Reference operations of pixel models: masked convolutions and the gated activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast.reference._common import compute_dtype


def channel_groups(
    channels: int, data_channels: int, channel_order: str, device: torch.device | None = None
) -> Tensor:
    """The data channel (0, 1, ...: red, green, ...) that each of ``channels`` feature maps belongs to.

    "interleaved" deals them out in turn, "contiguous" in runs of (nearly) equal length.
    """
    index = torch.arange(channels, device=device)
    if channel_order == "interleaved":
        return index % data_channels
    return index * data_channels // channels


def conv_mask(
    weight: Tensor,
    *,
    mask_type: str,
    data_channels: int = 1,
    channel_order: str = "interleaved",
) -> Tensor:
    """Which entries of a convolution's weight [C_out, C_in, *K] are live, boolean of the same shape.

    Taps before the centre in raster order are, and taps after it are not. At the centre, output channels
    of data channel g see input channels of data channels below g (type "A") or up to g (type "B").
    """
    kernel = weight.shape[2:]
    tap = torch.arange(kernel.numel(), device=weight.device).reshape(kernel)
    centre = kernel.numel() // 2
    groups_out, groups_in = (
        channel_groups(n, data_channels, channel_order, weight.device) for n in weight.shape[:2]
    )
    seen = groups_in < groups_out[:, None] if mask_type == "A" else groups_in <= groups_out[:, None]
    seen = seen.reshape(*seen.shape, *(1 for _ in kernel))
    return (tap < centre) | ((tap == centre) & seen)


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
    """Convolution of x [B, C_in, H, W] with the live entries of weight [C_out, C_in, kH, kW], same size."""
    live = conv_mask(
        weight, mask_type=mask_type, data_channels=data_channels, channel_order=channel_order
    )
    padding = [dilation * (k // 2) for k in weight.shape[2:]]
    return F.conv2d(x, torch.where(live, weight, 0.0), bias, padding=padding, dilation=dilation)


def cropped_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask_type: str,
    data_channels: int = 1,
    channel_order: str = "interleaved",
    dilation: int = 1,
) -> Tensor:
    """:func:`masked_conv2d` on the live rows of the kernel alone (of one row, on its live columns)."""
    live = conv_mask(
        weight, mask_type=mask_type, data_channels=data_channels, channel_order=channel_order
    )
    top, left = (k // 2 for k in weight.shape[2:])
    cropped = torch.where(live, weight, 0.0)[:, :, : top + 1]
    if top == 0:
        cropped = cropped[..., : left + 1]
    sides = 0 if top == 0 else dilation * left
    padded = F.pad(x, (dilation * left - sides, 0, dilation * top, 0))
    return F.conv2d(padded, cropped, bias, padding=(0, sides), dilation=dilation)


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
    """Convolution of x [B, C_in, L] with the live entries of weight [C_out, C_in, k], same length."""
    live = conv_mask(
        weight, mask_type=mask_type, data_channels=data_channels, channel_order=channel_order
    )
    padding = dilation * (weight.shape[2] // 2)
    return F.conv1d(x, torch.where(live, weight, 0.0), bias, padding=padding, dilation=dilation)


def shifted_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    first: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
) -> Tensor:
    """Convolution of x [B, C_in, H, W] with weight [C_out, C_in, kH, kW], its first tap at ``first``.

    [B, C_out, ceil(H / s), ceil(W / s)].
    """
    # What the first and the last output pixel reach beyond the image; less than nothing is cut off.
    pad = []
    for size, taps, start, step in zip(
        x.shape[:1:-1], weight.shape[:1:-1], first[::-1], stride[::-1], strict=True
    ):
        last = (size - 1) // step * step + start + taps - 1
        pad += [-start, last - (size - 1)]
    return F.conv2d(F.pad(x, pad) if any(pad) else x, weight, bias, stride)


def gated_activation(
    x: Tensor,
    bias: Tensor | None = None,
    condition: Tensor | None = None,
    *,
    dim: int = 1,
) -> Tensor:
    """tanh(a) sigmoid(b) of the halves a, b of x + bias + condition along ``dim``, in x's dtype.

    ``bias`` has one entry a channel of x; ``condition`` as many dimensions as x.
    """
    dtype = compute_dtype(x)
    total = x.to(dtype)
    if bias is not None:
        total = total + bias.to(dtype).reshape(-1, *(1 for _ in range(x.ndim - dim - 1)))
    if condition is not None:
        total = total + condition.to(dtype)
    a, b = total.chunk(2, dim)
    return (torch.tanh(a) * torch.sigmoid(b)).to(x.dtype)
