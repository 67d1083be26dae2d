"""Layers of PixelRNN: Row LSTM and Diagonal BiLSTM with their masked input-to-state convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.functional import PixelNetworkBuilder
from dgm_fast.nn.pixel import MaskedConv2d
from dgm_fast.reference.pixel import channel_groups, conv_mask


class RowLSTM(nn.Module):
    """Row LSTM: :func:`dgm_fast.functional.row_lstm` behind a masked convolution along the row.

    Args:
        in_channels: feature maps.
        hidden_channels: h, units at a pixel; a multiple of data_channels, so that the gates of a unit
            belong to one colour.
        kernel_size: k of both convolutions, odd; that of the input is masked (type B).
        data_channels: colour channels of the data, in interleaved order.

    Shape: [B, in_channels, H, W] -> [B, hidden_channels, H, W].

    Raises:
        ValueError: if an option does not fit.

    Source: van den Oord et al., "Pixel Recurrent Neural Networks" (2016), section 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        *,
        kernel_size: int = 3,
        data_channels: int = 1,
    ) -> None:
        super().__init__()
        _check_units(hidden_channels, data_channels)
        self.input_to_state = MaskedConv2d(
            in_channels,
            4 * hidden_channels,
            (1, kernel_size),
            mask_type="B",
            data_channels=data_channels,
        )
        self.weight = _recurrent_weight(self.input_to_state, hidden_channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        return functional.row_lstm(self.input_to_state(x), self.weight)

    def describe(self, network: PixelNetworkBuilder, x: int) -> int:
        """Add the layer on buffer ``x`` to a description for cached sampling; returns its buffer.

        What the gates take from the states above is there at the start of a row.
        """
        reach = self.weight.shape[2] // 2
        states = network.buffer(self.weight.shape[1])
        above = network.convolution(
            states,
            self.weight,
            taps=[(-1, dx) for dx in range(-reach, reach + 1)],
            moment="row",
            groups=_groups(self.input_to_state),
        )
        gates = network.elementwise("add", self.input_to_state.describe(network, x), above)
        return network.lstm(gates, cell_tap=(-1, 0), output=states)


class DiagonalBiLSTM(nn.Module):
    """Diagonal BiLSTM: LSTMs from both upper corners, :func:`dgm_fast.functional.diagonal_lstm`.

    The one from the right sees pixels that come later in its own row: its map is moved down by a row and
    added to the other. Together they see every feature before a pixel.

    Args:
        in_channels: feature maps.
        hidden_channels: h, as for :class:`RowLSTM`.
        data_channels: colour channels of the data, in interleaved order; the 1x1 input-to-state
            convolutions are masked (type B).

    Shape: [B, in_channels, H, W] -> [B, hidden_channels, H, W].

    Raises:
        ValueError: if an option does not fit.

    Source: van den Oord et al. (2016), section 3.2.
    """

    def __init__(self, in_channels: int, hidden_channels: int, *, data_channels: int = 1) -> None:
        super().__init__()
        _check_units(hidden_channels, data_channels)
        self.input_to_state = MaskedConv2d(
            in_channels, 4 * hidden_channels, 1, mask_type="B", data_channels=data_channels
        )
        self.input_to_state_right = MaskedConv2d(
            in_channels, 4 * hidden_channels, 1, mask_type="B", data_channels=data_channels
        )
        self.weight = _recurrent_weight(self.input_to_state, hidden_channels, 2)
        self.weight_right = _recurrent_weight(self.input_to_state, hidden_channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        left = functional.diagonal_lstm(self.input_to_state(x), self.weight)
        mirrored = self.input_to_state_right(x.flip(3))
        right = functional.diagonal_lstm(mirrored, self.weight_right).flip(3)
        return left + torch_functional.pad(right[:, :, :-1], (0, 0, 1, 0))

    def describe(self, network: PixelNetworkBuilder, x: int) -> int:
        """Add the layer on buffer ``x`` to a description for cached sampling; returns its buffer.

        One direction goes from pixel to pixel as they are drawn. The other, a row late, knows the row it
        reads: it runs through it at the start of the next one.
        """
        left = self._describe_left(network, x)
        return network.elementwise("add", left, self._describe_right(network, x))

    def _describe_left(self, network: PixelNetworkBuilder, x: int) -> int:
        states = network.buffer(self.weight.shape[1])
        groups = _groups(self.input_to_state)
        above, beside = self.weight.split(1, 2)
        gates = network.elementwise(
            "add",
            self.input_to_state.describe(network, x),
            network.convolution(states, above, taps=[(-1, 0)], moment="row", groups=groups),
            network.convolution(states, beside, taps=[(0, -1)], groups=groups),
        )
        return network.lstm(gates, cell_tap=(0, -1), output=states)

    def _describe_right(self, network: PixelNetworkBuilder, x: int) -> int:
        """Through the row above, at the first row nothing: the bias is a weight of what is one inside."""
        layer = self.input_to_state_right
        states = network.buffer(self.weight_right.shape[1])
        one = network.constant(layer.weight.new_ones(1))
        live = conv_mask(layer.weight, mask_type=layer.mask_type, data_channels=layer.data_channels)
        seen = torch.where(live, layer.weight, 0.0).flatten(1)
        assert layer.bias is not None
        above, beside = self.weight_right.split(1, 2)
        taken = torch.cat([seen, layer.bias[:, None], above[:, :, 0]], 1)  # [4h, in + 1 + h]
        groups = _groups(layer)
        gates = network.elementwise(
            "add",
            network.convolution(
                (x, one, states), taken[:, :, None], taps=[(-1, 0)], moment="row", groups=groups
            ),
            network.convolution(
                states, beside, taps=[(0, 1)], moment="reversed_row", groups=groups
            ),
            moment="reversed_row",
        )
        return network.lstm(gates, cell_tap=(0, 1), output=states, moment="reversed_row")


class RecurrentPixelResidual(nn.Module):
    """Residual layer of a PixelRNN: an LSTM of half the channels, and a 1x1 convolution back.

    Args:
        hidden_channels: h; the map has 2h.
        kind: "row" (:class:`RowLSTM`) or "diagonal" (:class:`DiagonalBiLSTM`).
        data_channels: colour channels of the data; all masks are of type B.
        context_dim: size of a context; a linear function of it is added to what the LSTM sees.

    Shape: [B, 2h, H, W] (and a context [B, context_dim]) -> [B, 2h, H, W].

    Source: van den Oord et al. (2016), figure 5.
    """

    def __init__(
        self,
        hidden_channels: int,
        kind: str,
        *,
        data_channels: int = 1,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        channels = 2 * hidden_channels
        layer = RowLSTM if kind == "row" else DiagonalBiLSTM
        self.lstm = layer(channels, hidden_channels, data_channels=data_channels)
        self.expand = MaskedConv2d(
            hidden_channels, channels, 1, mask_type="B", data_channels=data_channels
        )
        self.context_layer = (
            None if context_dim is None else nn.Linear(context_dim, channels, bias=False)
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        seen = x
        if self.context_layer is not None:
            seen = x + self.context_layer(context)[:, :, None, None]
        out: Tensor = x + self.expand(self.lstm(seen))
        return out

    def describe(self, network: PixelNetworkBuilder, x: int, context: Tensor | None = None) -> int:
        """Add the layer on buffer ``x`` to a description for cached sampling; returns its buffer."""
        seen = x
        if self.context_layer is not None:
            # A map, and no bias of the LSTM's convolution: that sees nothing of it beyond the border.
            added = network.constant(self.context_layer(context), _groups(self.expand))
            seen = network.elementwise("add", x, added)
        h = self.expand.describe(network, self.lstm.describe(network, seen))
        return network.elementwise("add", x, h)


def _check_units(hidden_channels: int, data_channels: int) -> None:
    if hidden_channels < 1 or hidden_channels % data_channels:
        raise ValueError(
            f"hidden_channels must be a multiple of data_channels = {data_channels}, got {hidden_channels}"
        )


def _recurrent_weight(like: MaskedConv2d, hidden_channels: int, taps: int) -> nn.Parameter:
    """U(-s, s) with s^2 = 1 / (taps h), as PyTorch initialises convolutions."""
    weight = like.weight.new_empty((4 * hidden_channels, hidden_channels, taps))
    bound = (taps * hidden_channels) ** -0.5
    return nn.Parameter(nn.init.uniform_(weight, -bound, bound))


def _groups(layer: MaskedConv2d) -> list[int]:
    """The colour of every unit of a layer, for what is added to it."""
    return channel_groups(layer.out_channels, layer.data_channels, layer.channel_order).tolist()
