"""Modules of autoregressive image models: masked convolutions and the gated activation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.functional import PixelNetworkBuilder
from dgm_fast.functional.pixel import check_mask


class MaskedConv2d(nn.Conv2d):
    """Convolution that sees only the pixels before its own in raster order.

    :func:`dgm_fast.functional.masked_conv2d` with weight and bias of its own: an ``nn.Conv2d`` of stride 1
    that keeps the image's size, with the same parameters and initialisation. Weights of dead taps stay
    what they are and get no gradient.

    Args:
        in_channels, out_channels: feature maps.
        kernel_size: odd, an int or (height, width).
        mask_type: "A" (first layer: the pixel itself is not seen) or "B".
        data_channels: colour channels of the data, 3 for RGB.
        channel_order: "interleaved" or "contiguous", the data channel a feature map belongs to.
        dilation: distance between taps.
        bias: whether there is one.
        device, dtype: of the parameters.

    Shape: [B, in_channels, H, W] -> [B, out_channels, H, W].

    Raises:
        TypeError, ValueError: if an option is none of these.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        mask_type: str,
        data_channels: int = 1,
        channel_order: str = "interleaved",
        dilation: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_mask(mask_type, data_channels, channel_order, dilation)
        sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        _check_odd(sizes)
        super().__init__(
            in_channels,
            out_channels,
            sizes,
            padding=(dilation * (sizes[0] // 2), dilation * (sizes[1] // 2)),
            dilation=dilation,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.mask_type = mask_type
        self.data_channels = data_channels
        self.channel_order = channel_order

    def forward(self, x: Tensor) -> Tensor:
        return functional.masked_conv2d(
            x,
            self.weight,
            self.bias,
            mask_type=self.mask_type,
            data_channels=self.data_channels,
            channel_order=self.channel_order,
            dilation=self.dilation[0],
        )

    def describe(self, network: PixelNetworkBuilder, x: int, added: Tensor | None = None) -> int:
        """Add the layer on buffer ``x`` to a description for cached sampling; returns its buffer.

        ``added`` [B, out_channels] is added to the bias.
        """
        return network.masked_convolution(
            x,
            self.weight,
            total_bias(self.bias, added),
            mask_type=self.mask_type,
            data_channels=self.data_channels,
            channel_order=self.channel_order,
            dilation=self.dilation[0],
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {_mask_repr(self)}"


class MaskedConv1d(nn.Conv1d):
    """Causal convolution: :func:`dgm_fast.functional.masked_conv1d` with weight and bias of its own.

    Args:
        in_channels, out_channels: feature maps.
        kernel_size: odd; the taps up to its centre are live.
        mask_type, data_channels, channel_order, dilation, bias, device, dtype: as for
            :class:`MaskedConv2d`.

    Shape: [B, in_channels, L] -> [B, out_channels, L].

    Raises:
        TypeError, ValueError: if an option is none of these.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        mask_type: str,
        data_channels: int = 1,
        channel_order: str = "interleaved",
        dilation: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_mask(mask_type, data_channels, channel_order, dilation)
        _check_odd((kernel_size,))
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.mask_type = mask_type
        self.data_channels = data_channels
        self.channel_order = channel_order

    def forward(self, x: Tensor) -> Tensor:
        return functional.masked_conv1d(
            x,
            self.weight,
            self.bias,
            mask_type=self.mask_type,
            data_channels=self.data_channels,
            channel_order=self.channel_order,
            dilation=self.dilation[0],
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {_mask_repr(self)}"


class GatedActivation(nn.Module):
    """tanh(a) sigmoid(b) of the two halves of the channels: :func:`dgm_fast.functional.gated_activation`.

    Args:
        dim: the dimension of the channels.

    Shape: [B, 2 C, ...] (and an optional ``condition`` [B, 2 C] or [B, 2 C, ...]) -> [B, C, ...].
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(
        self, x: Tensor, *, bias: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        return functional.gated_activation(x, dim=self.dim, bias=bias, condition=condition)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


def total_bias(bias: Tensor | None, added: Tensor | None) -> Tensor | None:
    """A layer's bias [C] and what a context adds to it [B, C], where there are such."""
    if bias is None or added is None:
        return added if bias is None else bias
    return bias + added


def _check_odd(sizes: tuple[int, ...]) -> None:
    if any(k < 1 or k % 2 == 0 for k in sizes):
        raise ValueError(f"kernel_size must be odd, got {sizes if len(sizes) > 1 else sizes[0]}")


def _mask_repr(layer: MaskedConv2d | MaskedConv1d) -> str:
    return (
        f"mask_type={layer.mask_type!r}, data_channels={layer.data_channels}, "
        f"channel_order={layer.channel_order!r}"
    )
