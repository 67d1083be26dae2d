"""PixelCNN++: two streams through three resolutions, and a mixture of logistics."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from dgm_fast.functional import PixelNetworkBuilder
from dgm_fast.models._inputs import check_count
from dgm_fast.models._pixel import PixelModel, check_network
from dgm_fast.models._pixel_likelihood import LogisticMixturePixels
from dgm_fast.nn import GatedResidual, ShiftedConv2d, ShiftedConvTranspose2d
from dgm_fast.nn.gated_residual import GATE_SCALE

# Down-shifted convolutions see their row and the one above, down-right-shifted ones the pixel at the left
# too: kernel and first tap of each.
_DOWN: tuple[tuple[int, int], tuple[int, int]] = ((2, 3), (-1, -1))
_DOWN_RIGHT: tuple[tuple[int, int], tuple[int, int]] = ((2, 2), (-1, -1))


class PixelCNNPP(PixelModel):
    r"""Residual layers on two streams, down and up again with skip connections; mixtures of logistics.

    A stream of all rows above a pixel and one that also sees its row so far go through
    ``num_resolutions`` sizes of the image, each half of the one before, and back up, where each layer is
    given the features of the same size from the way down. The colours of a pixel come from one mixture of
    logistics, their means linear in the colours before
    (:func:`dgm_fast.functional.discretized_logistic_mixture_log_prob`), so that networks need no colour
    masks.

    Data, conditions and methods: see :class:`dgm_fast.models._pixel.PixelModel`. Two levels are levels like
    others here: a mixture of logistics, and samples int64. Networks see level v as 2 v / (L - 1) - 1, with
    a channel of ones that marks the image's border.

    Args:
        in_channels: C, 1 or 3.
        num_levels: L.
        channels: feature maps F (the paper's results have 160).
        num_blocks: residual layers of each stream at each resolution (the paper: 5).
        num_mixtures: components a pixel.
        num_resolutions: sizes of the image (the paper: 3). They need not divide it.
        image_shape: (H, W) or (C, H, W): the size that :meth:`sample` draws unless told otherwise.
        num_classes: of a class-conditional model.
        context_dim: size of the context of a conditional model.
        dropout: inside of the residual layers (the paper: 0.5).

    All convolutions have normalised weights; they are formed once for all the pixels of a sample, and
    :meth:`initialize` sets them by the data.

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: Salimans, Karpathy, Chen and Kingma, "PixelCNN++: Improving the PixelCNN with Discretized
    Logistic Mixture Likelihood and Other Modifications" (2017), section 2 and figure 2, and released code.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        num_levels: int = 256,
        channels: int = 160,
        num_blocks: int = 5,
        num_mixtures: int = 10,
        num_resolutions: int = 3,
        image_shape: tuple[int, ...] | None = None,
        num_classes: int | None = None,
        context_dim: int | None = None,
        dropout: float = 0.5,
    ) -> None:
        check_network(in_channels, num_levels, channels, num_blocks, dropout)
        if in_channels not in (1, 3):
            raise ValueError(
                f"in_channels must be 1 or 3 for a mixture of logistics, got {in_channels}"
            )
        check_count("num_mixtures", num_mixtures)
        check_count("num_resolutions", num_resolutions)
        super().__init__(
            in_channels,
            LogisticMixturePixels(in_channels, num_levels, num_mixtures),
            image_shape=image_shape,
            num_classes=num_classes,
            context_dim=context_dim,
        )
        self.num_blocks = num_blocks
        self.num_resolutions = num_resolutions
        width = channels
        down, down_right = (partial(_conv, kernel=k, first=f) for k, f in (_DOWN, _DOWN_RIGHT))

        def residual(make_conv: partial[ShiftedConv2d], skip_channels: int) -> GatedResidual:
            return GatedResidual(
                width,
                make_conv,
                skip_channels=skip_channels,
                context_dim=self.context_dim,
                dropout=dropout,
            )

        # The first features of a pixel must not see it: both rows of the first lie above it, the others in
        # the row above, and in the two rows so far at its left.
        first = partial(_normalised, in_channels + 1, width)
        self.first_above = first((2, 3), (-2, -1))
        self.first_row_above = first((1, 3), (-1, -1))
        self.first_left = first((2, 1), (-1, -1))
        self.down_above, self.down_left = nn.ModuleList(), nn.ModuleList()
        self.smaller_above, self.smaller_left = nn.ModuleList(), nn.ModuleList()
        self.up_above, self.up_left = nn.ModuleList(), nn.ModuleList()
        self.larger_above, self.larger_left = nn.ModuleList(), nn.ModuleList()
        for level in range(num_resolutions):
            for _ in range(num_blocks):
                self.down_above.append(residual(down, 0))
                self.down_left.append(residual(down_right, width))
            # On the way up one more layer takes the features right after each change of size.
            for _ in range(num_blocks if level == 0 else num_blocks + 1):
                self.up_above.append(residual(down, width))
                self.up_left.append(residual(down_right, 2 * width))
            if level < num_resolutions - 1:
                self.smaller_above.append(_normalised(width, width, *_DOWN, stride=2))
                self.smaller_left.append(_normalised(width, width, *_DOWN_RIGHT, stride=2))
                self.larger_above.append(_larger(width, (2, 3), (0, -1)))
                self.larger_left.append(_larger(width, (2, 2), (0, 0)))
        self.head = weight_norm(nn.Conv2d(width, self.likelihood.num_params, 1))

    @torch.no_grad()
    def initialize(self, x: Tensor, *, context: Tensor | None = None) -> None:
        """Scale every convolution so that its outputs on the data x have mean 0 and variance 1.

        Those of the gates, 0.01. Call it once before training, with a batch; layers see each other's scaled
        outputs.

        Args:
            x: data, more than one pixel in all.
            context: for conditional models.

        Source: Salimans and Kingma, "Weight Normalization" (2016), section 3.
        """
        x = self._data(x)
        context = self._context(context, len(x))
        hooks = []
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                size = GATE_SCALE if name.endswith(".gate") else 1.0
                hooks.append(module.register_forward_hook(partial(_standardise, size)))
        try:
            self._params(x, context)
        finally:
            for hook in hooks:
                hook.remove()

    def _features(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        # The library's convolutions are quicker so.
        x = x.contiguous(memory_format=torch.channels_last)
        above = self.first_above(x)
        left = self.first_row_above(x) + self.first_left(x)
        kept = [(above, left)]
        for level in range(self.num_resolutions):
            for i in range(level * self.num_blocks, (level + 1) * self.num_blocks):
                above = self.down_above[i](above, None, context)
                left = self.down_left[i](left, above, context)
                kept.append((above, left))
            if level < self.num_resolutions - 1:
                above, left = self.smaller_above[level](above), self.smaller_left[level](left)
                kept.append((above, left))
        above, left = kept.pop()
        index = 0
        for level in range(self.num_resolutions):
            for _ in range(self.num_blocks if level == 0 else self.num_blocks + 1):
                skip_above, skip_left = kept.pop()
                above = self.up_above[index](above, skip_above, context)
                both = torch.cat([above, skip_left], 1)
                left = self.up_left[index](left, both, context)
                index += 1
            if level < self.num_resolutions - 1:
                size = kept[-1][0].shape[2:]
                above = self.larger_above[level](above, size)
                left = self.larger_left[level](left, size)
        return torch_functional.elu(left)

    def _describe(self, network: PixelNetworkBuilder, context: Tensor | None) -> int:
        # The stream of the rows above runs once a row.
        def first(layer: Any, moment: str) -> int:
            return layer.describe(network, network.image, moment=moment)

        above = first(self.first_above, "row")
        left = network.elementwise(
            "add", first(self.first_row_above, "row"), first(self.first_left, "pixel")
        )
        kept = [(above, left)]
        layers: Any = self
        for level in range(self.num_resolutions):
            for i in range(level * self.num_blocks, (level + 1) * self.num_blocks):
                above = layers.down_above[i].describe(network, above, None, context, moment="row")
                left = layers.down_left[i].describe(network, left, above, context, moment="pixel")
                kept.append((above, left))
            if level < self.num_resolutions - 1:
                size = 2 ** (level + 1)
                above = layers.smaller_above[level].describe(
                    network, above, moment="row", stride=size
                )
                left = layers.smaller_left[level].describe(
                    network, left, moment="pixel", stride=size
                )
                kept.append((above, left))
        above, left = kept.pop()
        index = 0
        for level in range(self.num_resolutions):
            for _ in range(self.num_blocks if level == 0 else self.num_blocks + 1):
                skip_above, skip_left = kept.pop()
                above = layers.up_above[index].describe(
                    network, above, skip_above, context, moment="row"
                )
                both = network.elementwise("concatenate", above, skip_left)
                left = layers.up_left[index].describe(network, left, both, context, moment="pixel")
                index += 1
            if level < self.num_resolutions - 1:
                size = 2 ** (self.num_resolutions - 2 - level)
                above = layers.larger_above[level].describe(
                    network, above, moment="row", stride=size
                )
                left = layers.larger_left[level].describe(
                    network, left, moment="pixel", stride=size
                )
        h = network.elementwise("elu", left)
        return network.convolution(h, self.head.weight.flatten(2), self.head.bias, taps=[(0, 0)])


def _conv(
    in_channels: int, out_channels: int, *, kernel: tuple[int, int], first: tuple[int, int]
) -> ShiftedConv2d:
    return ShiftedConv2d(in_channels, out_channels, kernel, first)


def _normalised(
    in_channels: int,
    out_channels: int,
    kernel: tuple[int, int],
    first: tuple[int, int],
    stride: int = 1,
) -> nn.Module:
    return weight_norm(ShiftedConv2d(in_channels, out_channels, kernel, first, stride=stride))


def _larger(channels: int, kernel: tuple[int, int], first: tuple[int, int]) -> nn.Module:
    # Normalised over the inputs of an output channel, which is dimension 1 of its weight.
    return weight_norm(ShiftedConvTranspose2d(channels, channels, kernel, first, stride=2), dim=1)


def _standardise(size: float, module: Any, inputs: Any, out: Tensor) -> Tensor:
    """Outputs with mean 0 and standard deviation ``size``, and the layer scaled to give them."""
    std, mean = torch.std_mean(out, (0, 2, 3))
    factor = size / (std + 1e-10)
    scale = module.parametrizations.weight.original0
    scale *= factor.view_as(scale)
    module.bias.copy_((module.bias - mean) * factor)
    return (out - mean[:, None, None]) * factor[:, None, None]
