"""Gated PixelCNN: two stacks of convolutions without a blind spot."""

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
from dgm_fast.nn import GatedPixelLayer, MaskedConv2d


class GatedPixelCNN(PixelModel):
    """A vertical stack of all rows above a pixel, a horizontal one of its row so far, and gates.

    Every conditional depends on all pixels before it, as far as the layers reach: no blind spot. Layers are
    :class:`dgm_fast.nn.GatedPixelLayer`; two 1x1 convolutions give the outputs.

    Data, conditions and methods: see :class:`dgm_fast.models._pixel.PixelModel`. Networks see level v as
    v / (L - 1).

    Args:
        in_channels: C, colours of a pixel.
        num_levels: L. Two levels have Bernoulli logits, more a softmax.
        channels: feature maps of both stacks, at least C.
        num_layers: layers, the first one included.
        image_shape: (H, W) or (C, H, W): the size that :meth:`sample` draws unless told otherwise.
        num_classes: of a class-conditional model.
        context_dim: size of the context of a conditional model.
        kernel_size: of the layers, odd, at least 3; ``first_kernel_size`` of the first one.
        head_channels: feature maps between the two last convolutions; None: ``channels``.
        dropout: of the gated horizontal features.

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders" (2016).
    """

    head: MaskedConv2d

    def __init__(
        self,
        in_channels: int = 1,
        *,
        num_levels: int = 256,
        channels: int = 128,
        num_layers: int = 10,
        image_shape: tuple[int, ...] | None = None,
        num_classes: int | None = None,
        context_dim: int | None = None,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        head_channels: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        check_network(in_channels, num_levels, channels, num_layers, dropout)
        check_kernel_size("kernel_size", kernel_size, at_least=3)
        check_kernel_size("first_kernel_size", first_kernel_size, at_least=3)
        head_channels = channels if head_channels is None else head_channels
        check_count("head_channels", head_channels, at_least=in_channels)
        super().__init__(
            in_channels,
            make_likelihood(in_channels, num_levels),
            image_shape=image_shape,
            num_classes=num_classes,
            context_dim=context_dim,
        )
        self.layers = nn.ModuleList(
            GatedPixelLayer(
                channels if i else in_channels,
                channels,
                kernel_size=kernel_size if i else first_kernel_size,
                mask_type="B" if i else "A",
                data_channels=in_channels,
                context_dim=self.context_dim,
                dropout=dropout,
                last=i == num_layers - 1,
            )
            for i in range(num_layers)
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
        first, *others = self.layers
        vertical, horizontal = first(x, x, context)
        # The library's convolutions are quicker so.
        horizontal = horizontal.contiguous(memory_format=torch.channels_last)
        if vertical is not None:
            vertical = vertical.contiguous(memory_format=torch.channels_last)
        for layer in others:
            vertical, horizontal = layer(vertical, horizontal, context)
        # In place: nothing else needs the outputs of these layers.
        return torch.relu_(self.hidden(torch.relu_(horizontal)))

    def _describe(self, network: PixelNetworkBuilder, context: Tensor | None) -> int:
        vertical, horizontal = network.image, network.image
        for layer in self.layers:
            vertical, horizontal = layer.describe(  # type: ignore[operator]
                network, vertical, horizontal, context
            )
        h = self.hidden.describe(network, network.elementwise("relu", horizontal))
        return self.head.describe(network, network.elementwise("relu", h))
