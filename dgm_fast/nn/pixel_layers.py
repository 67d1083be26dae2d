"""Layers of autoregressive image models: what PixelCNN and Gated PixelCNN repeat."""

from __future__ import annotations

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.functional import PixelNetworkBuilder
from dgm_fast.nn.pixel import MaskedConv2d
from dgm_fast.nn.shifted_conv import ShiftedConv2d
from dgm_fast.reference.pixel import channel_groups


class PixelResidual(nn.Module):
    """Residual layer of a PixelCNN: 1x1 to half the channels, k x k, 1x1 back, each after a ReLU.

    Args:
        channels: feature maps, at least 2.
        kernel_size: k, odd.
        data_channels: colour channels of the data; all masks are of type B.
        context_dim: size of a context; a linear function of it is added after the k x k convolution.
        dropout: of what the last convolution sees.

    Shape: [B, channels, H, W] (and a context [B, context_dim]) -> [B, channels, H, W].

    Source: van den Oord et al., "Pixel Recurrent Neural Networks" (2016), figure 5.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 3,
        data_channels: int = 1,
        context_dim: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        half = channels // 2
        mask = {"mask_type": "B", "data_channels": data_channels}
        self.reduce = MaskedConv2d(channels, half, 1, **mask)  # type: ignore[arg-type]
        self.conv = MaskedConv2d(half, half, kernel_size, **mask)  # type: ignore[arg-type]
        self.expand = MaskedConv2d(half, channels, 1, **mask)  # type: ignore[arg-type]
        self.context_layer = (
            None if context_dim is None else nn.Linear(context_dim, half, bias=False)
        )
        self.dropout = dropout

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        # In place where nothing else needs the outputs of a layer: fresh memory costs more than the work.
        h = torch.relu_(self.reduce(torch_functional.relu(x)))
        h = self.conv(h)
        if self.context_layer is not None:
            h = h + self.context_layer(context)[:, :, None, None]
        h = torch.relu_(h)
        if self.dropout:
            h = torch_functional.dropout(h, self.dropout, self.training)
        return _add_in_place(self.expand(h), x)

    def describe(self, network: PixelNetworkBuilder, x: int, context: Tensor | None = None) -> int:
        """Add the layer on buffer ``x`` to a description for cached sampling; returns its buffer."""
        added = None if self.context_layer is None else self.context_layer(context)
        h = self.reduce.describe(network, network.elementwise("relu", x))
        h = self.conv.describe(network, network.elementwise("relu", h), added)
        h = self.expand.describe(network, network.elementwise("relu", h))
        return network.elementwise("add", x, h)


class GatedPixelLayer(nn.Module):
    r"""Layer of a Gated PixelCNN: a vertical stack of the rows above, a horizontal one of the row so far.

    .. math:: a^v = W^v * v, \quad v' = \mathrm{gate}(a^v + U^v c), \qquad
        a^h = W^h * h + L a^v, \quad h' = h + R\,\mathrm{gate}(a^h + U^h c)

    with gate(a, b) = tanh(a) sigmoid(b). The vertical convolution takes k columns of the floor(k / 2) rows
    above a pixel and, but for the first layer, of its own row, whose features know only the rows above:
    together with the row so far nothing before the pixel is left out. The vertical stack needs no colour
    masks. The horizontal one has k masked taps in its row.

    Args:
        in_channels: feature maps before the layer (of the data, for the first).
        channels: feature maps of both stacks after it.
        kernel_size: k, odd.
        mask_type: "A" for the first layer, which has no residual connection either, else "B".
        data_channels: colour channels of the data.
        context_dim: size of a context c, which enters both gates linearly.
        dropout: of the gated horizontal features.
        last: nothing follows that takes the vertical stack, and it is not returned.

    Shape: two of [B, in_channels, H, W] (and a context [B, context_dim]) -> vertical (None for the last
    layer) and horizontal [B, channels, H, W].

    Source: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders" (2016), section 2 and
    figure 2.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        kernel_size: int = 3,
        mask_type: str = "B",
        data_channels: int = 1,
        context_dim: int | None = None,
        dropout: float = 0.0,
        last: bool = False,
    ) -> None:
        super().__init__()
        above = kernel_size // 2
        # Both halves of a gate must belong to the same data channel.
        inner = -(-channels // data_channels) * data_channels
        self.vertical = ShiftedConv2d(
            in_channels,
            2 * channels,
            (above + (mask_type == "B"), kernel_size),
            (-above, -above),
        )
        self.horizontal = MaskedConv2d(
            in_channels,
            2 * inner,
            (1, kernel_size),
            mask_type=mask_type,
            data_channels=data_channels,
        )
        self.link = ShiftedConv2d(2 * channels, 2 * inner, (1, 1), (0, 0), bias=False)
        self.output = MaskedConv2d(inner, channels, 1, mask_type="B", data_channels=data_channels)
        self.vertical_context = self.horizontal_context = None
        if context_dim is not None:
            self.horizontal_context = nn.Linear(context_dim, 2 * inner, bias=False)
            if not last:
                self.vertical_context = nn.Linear(context_dim, 2 * channels, bias=False)
        self.residual = mask_type == "B"
        self.dropout = dropout
        self.last = last

    def forward(
        self, vertical: Tensor, horizontal: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        above = self.vertical(vertical)  # [B, 2 channels, H, W]
        linked = self.link(above)
        if self.horizontal_context is not None:
            linked = linked + self.horizontal_context(context)[:, :, None, None]
        h = functional.gated_activation(self.horizontal(horizontal), condition=linked)
        if self.dropout:
            h = torch_functional.dropout(h, self.dropout, self.training)
        h = self.output(h)
        if self.residual:
            h = _add_in_place(h, horizontal)
        if self.last:
            return None, h
        condition = None if self.vertical_context is None else self.vertical_context(context)
        return functional.gated_activation(above, condition=condition), h

    def describe(
        self,
        network: PixelNetworkBuilder,
        vertical: int,
        horizontal: int,
        context: Tensor | None = None,
    ) -> tuple[int, int]:
        """Add the layer to a description for cached sampling; returns its buffers.

        That of the vertical stack is computed once a row. It is left out of the last layer, for which the
        first number says nothing.
        """
        weight = self.link.weight.flatten(1)
        shift = None if self.vertical_context is None else self.vertical_context(context)
        added = None if self.horizontal_context is None else self.horizontal_context(context)
        if shift is not None:
            # The link sees the vertical stack without its context: that is taken back.
            added = added - shift @ weight.T
        above = self.vertical.describe(network, vertical, moment="row", added=shift)
        # Units of the link belong to the colours of what they are added to.
        groups = channel_groups(len(weight), self.output.data_channels, "interleaved")
        linked = network.convolution(
            above,
            weight.unsqueeze(-1),
            added,
            taps=[(0, 0)],
            moment="row",
            groups=groups.tolist(),
        )
        h = self.horizontal.describe(network, horizontal)
        h = network.elementwise("tanh_gate", network.elementwise("add", h, linked))
        h = self.output.describe(network, h)
        if self.residual:
            h = network.elementwise("add", horizontal, h)
        if self.last:
            return above, h
        return network.elementwise("tanh_gate", above), h


def _add_in_place(h: Tensor, x: Tensor) -> Tensor:
    """h + x in the memory of h, a layer's output that nothing else needs, if the dtypes agree."""
    return h.add_(x) if h.dtype == x.dtype else h + x
