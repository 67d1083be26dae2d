"""PixelRNN: an image's pixels one after the other, from LSTMs over the image."""

from __future__ import annotations

import torch.nn.functional as torch_functional
from torch import Tensor, nn

from dgm_fast.functional import PixelNetworkBuilder
from dgm_fast.models._inputs import check_choice, check_count
from dgm_fast.models._pixel import PixelModel, check_kernel_size, check_network, make_likelihood
from dgm_fast.nn import MaskedConv2d, RecurrentPixelResidual

KINDS = ("row", "diagonal")


class PixelRNN(PixelModel):
    """A masked convolution of type A, residual LSTM layers, two 1x1 convolutions.

    Row LSTMs see a triangle above each pixel and, by their convolutions along the row, some of the row so
    far; Diagonal BiLSTMs see every pixel before it, but for the last colour of the last one of the row
    above, which reaches the pixels near it alone.

    Data, conditions and methods: see :class:`dgm_fast.models._pixel.PixelModel`. Networks see level v as
    v / (L - 1).

    Args:
        in_channels: C, colours of a pixel.
        num_levels: L. Two levels have Bernoulli logits, more a softmax.
        channels: h, units of the LSTMs, a multiple of C; feature maps are 2h.
        num_layers: residual LSTM layers.
        kind: "row" or "diagonal".
        image_shape: (H, W) or (C, H, W): the size that :meth:`sample` draws unless told otherwise.
        num_classes: of a class-conditional model.
        context_dim: size of the context of a conditional model.
        first_kernel_size: of the first convolution, odd.
        head_channels: feature maps between the two last convolutions; None: 2h.

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks" (2016), table 1.
    """

    head: MaskedConv2d

    def __init__(
        self,
        in_channels: int = 1,
        *,
        num_levels: int = 256,
        channels: int = 64,
        num_layers: int = 7,
        kind: str = "row",
        image_shape: tuple[int, ...] | None = None,
        num_classes: int | None = None,
        context_dim: int | None = None,
        first_kernel_size: int = 7,
        head_channels: int | None = None,
    ) -> None:
        check_network(in_channels, num_levels, channels, num_layers, 0.0)
        check_choice("kind", kind, KINDS)
        check_kernel_size("first_kernel_size", first_kernel_size)
        if channels % in_channels:
            raise ValueError(
                f"channels must be a multiple of in_channels = {in_channels}, got {channels}"
            )
        head_channels = 2 * channels if head_channels is None else head_channels
        check_count("head_channels", head_channels, at_least=in_channels)
        super().__init__(
            in_channels,
            make_likelihood(in_channels, num_levels),
            image_shape=image_shape,
            num_classes=num_classes,
            context_dim=context_dim,
        )
        self.kind = kind
        self.first = MaskedConv2d(
            in_channels, 2 * channels, first_kernel_size, mask_type="A", data_channels=in_channels
        )
        self.layers = nn.ModuleList(
            RecurrentPixelResidual(
                channels, kind, data_channels=in_channels, context_dim=self.context_dim
            )
            for _ in range(num_layers)
        )
        self.hidden = MaskedConv2d(
            2 * channels, head_channels, 1, mask_type="B", data_channels=in_channels
        )
        self.head = MaskedConv2d(
            head_channels,
            self.likelihood.num_params,
            1,
            mask_type="B",
            data_channels=in_channels,
        )

    def _features(self, x: Tensor, context: Tensor | None) -> Tensor:
        h = self.first(x)
        for layer in self.layers:
            h = layer(h, context)
        h = self.hidden(torch_functional.relu(h))
        return torch_functional.relu(h)

    def _describe(self, network: PixelNetworkBuilder, context: Tensor | None) -> int:
        h = self.first.describe(network, network.image)
        for layer in self.layers:
            h = layer.describe(network, h, context)  # type: ignore[operator]
        h = self.hidden.describe(network, network.elementwise("relu", h))
        return self.head.describe(network, network.elementwise("relu", h))
