"""PixelCNN: an image's pixels one after the other, from masked convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_fast.functional import PixelNetworkBuilder
from dgm_fast.models._inputs import check_count
from dgm_fast.models._pixel import (
    PixelModel,
    check_kernel_size,
    check_network,
    make_likelihood,
)
from dgm_fast.nn import MaskedConv2d, PixelResidual


class PixelCNN(PixelModel):
    """Masked convolutions: k x k of type A, residual layers of type B, two 1x1 convolutions.

    Convolutions follow the raster order by masks alone, which leaves a blind spot: part of the pixels to
    the upper right of a pixel does not reach it. :class:`GatedPixelCNN` has none.

    Data, conditions and methods: see :class:`dgm_fast.models._pixel.PixelModel`. Networks see level v as
    v / (L - 1).

    Args:
        in_channels: C, colours of a pixel.
        num_levels: L. Two levels have Bernoulli logits, more a softmax.
        channels: feature maps of the residual layers, which halve them inside; at least 2 C.
        num_layers: residual layers.
        image_shape: (H, W) or (C, H, W): the size that :meth:`sample` draws unless told otherwise.
        num_classes: of a class-conditional model.
        context_dim: size of the context of a conditional model.
        kernel_size: of the residual layers, odd; ``first_kernel_size`` of the first convolution.
        head_channels: feature maps between the two last convolutions; None: ``channels``.
        dropout: inside of the residual layers.

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks" (2016), sections
    3.4 and 3.5, table 1.
    """

    head: MaskedConv2d

    def __init__(
        self,
        in_channels: int = 1,
        *,
        num_levels: int = 256,
        channels: int = 128,
        num_layers: int = 15,
        image_shape: tuple[int, ...] | None = None,
        num_classes: int | None = None,
        context_dim: int | None = None,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        head_channels: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        check_network(in_channels, num_levels, channels, num_layers, dropout)
        check_count("channels", channels, at_least=2 * in_channels)
        check_kernel_size("kernel_size", kernel_size)
        check_kernel_size("first_kernel_size", first_kernel_size)
        head_channels = channels if head_channels is None else head_channels
        check_count("head_channels", head_channels, at_least=in_channels)
        super().__init__(
            in_channels,
            make_likelihood(in_channels, num_levels),
            image_shape=image_shape,
            num_classes=num_classes,
            context_dim=context_dim,
        )
        self.first = MaskedConv2d(
            in_channels, channels, first_kernel_size, mask_type="A", data_channels=in_channels
        )
        self.layers = nn.ModuleList(
            PixelResidual(
                channels,
                kernel_size=kernel_size,
                data_channels=in_channels,
                context_dim=self.context_dim,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.hidden = MaskedConv2d(
            channels, head_channels, 1, mask_type="B", data_channels=in_channels
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
        # In place: nothing else needs the outputs of these layers.
        return torch.relu_(self.hidden(torch.relu_(h)))

    def _describe(self, network: PixelNetworkBuilder, context: Tensor | None) -> int:
        h = self.first.describe(network, network.image)
        for layer in self.layers:
            h = layer.describe(network, h, context)  # type: ignore[operator]
        h = self.hidden.describe(network, network.elementwise("relu", h))
        return self.head.describe(network, network.elementwise("relu", h))
