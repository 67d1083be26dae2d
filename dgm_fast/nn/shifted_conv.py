"""Convolutions whose taps lie in a rectangle anywhere around the output pixel."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dgm_fast import functional, reference
from dgm_fast.functional import PixelNetworkBuilder
from dgm_fast.nn.pixel import total_bias


class ShiftedConv2d(nn.Conv2d):
    r"""Convolution over the rectangle of taps that starts at an offset from the output pixel.

    .. math:: y_{o, i, j} = b_o + \sum_{c, u, v} w_{o, c, u, v}\, x_{c,\; s i + r_0 + u,\; s j + c_0 + v}

    with zeros outside of the image and :math:`\lceil H / s \rceil \times \lceil W / s \rceil` output
    pixels. Every tap is live. With rows r0 + u <= 0 (or below 0) it sees the rows above an output pixel
    and its own (or only those above): the vertical stack of a Gated PixelCNN, and the shifted convolutions
    of PixelCNN++.

    Args:
        in_channels, out_channels: feature maps.
        kernel_size: (height, width) of the rectangle.
        first: (r0, c0), row and column of its first tap from the output pixel.
        stride: s.
        bias: whether there is one.
        device, dtype: of the parameters, which are those of an ``nn.Conv2d``.

    Shape: [B, in_channels, H, W] -> [B, out_channels, ceil(H / s), ceil(W / s)].

    Source: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders" (2016), section 2.2;
    Salimans et al., "PixelCNN++" (2017), section 2.3 and released code.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        first: tuple[int, int],
        *,
        stride: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        stride = (self.stride[0], self.stride[1])
        if stride == (1, 1):
            return functional.shifted_conv2d(x, self.weight, self.bias, first=self.first)
        return reference.shifted_conv2d(x, self.weight, self.bias, first=self.first, stride=stride)

    def describe(
        self,
        network: PixelNetworkBuilder,
        x: int,
        *,
        moment: str,
        stride: int | None = None,
        added: Tensor | None = None,
    ) -> int:
        """Add the layer on buffer ``x`` to a description for cached sampling; returns its buffer.

        Args:
            network, x: description and buffer.
            moment: "row" or "pixel", when it runs.
            stride: of the output in pixels; None for that of the input.
            added: [B, out_channels], added to the bias.
        """
        (rows, columns), (top, left) = self.kernel_size, self.first
        return network.convolution(
            x,
            self.weight.flatten(2),
            total_bias(self.bias, added),
            taps=[(top + u, left + v) for u in range(rows) for v in range(columns)],
            moment=moment,
            stride=stride,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, first={self.first}"


class ShiftedConvTranspose2d(nn.ConvTranspose2d):
    r"""Transposed convolution: each input pixel adds to the rectangle that starts at an offset from it.

    .. math:: y_{o, i, j} = b_o + \sum_{c, u, v} w_{c, o, u, v}\, x_{c, i', j'}, \qquad
        s i' + r_0 + u = i,\quad s j' + c_0 + v = j

    Args:
        in_channels, out_channels, kernel_size, device, dtype: as for :class:`ShiftedConv2d`.
        first: (r0, c0), at most 0: the rectangle's first row and column from the pixel (s i', s j').
        stride: s.

    Shape: [B, in_channels, H, W] and a size (H', W') of at most (s H, s W) -> [B, out_channels, H', W'].

    Source: Salimans et al., "PixelCNN++" (2017), section 2.3 and released code.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        first: tuple[int, int],
        *,
        stride: int,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, device=device, dtype=dtype
        )
        self.first = first

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        whole = nn.functional.conv_transpose2d(x, self.weight, self.bias, self.stride)
        (top, left), (height, width) = self.first, size
        return whole[:, :, -top : height - top, -left : width - left]

    def describe(self, network: PixelNetworkBuilder, x: int, *, moment: str, stride: int) -> int:
        """Add the layer to a description, as :meth:`ShiftedConv2d.describe` does."""
        (rows, columns), (top, left) = self.kernel_size, self.first
        # An output pixel reads the input pixel at half its place plus a tap, where that is whole.
        return network.convolution(
            x,
            self.weight.transpose(0, 1).flatten(2),
            self.bias,
            taps=[(-top - u, -left - v) for u in range(rows) for v in range(columns)],
            moment=moment,
            stride=stride,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, first={self.first}"
