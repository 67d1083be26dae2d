"""Causal networks on images, described layer by layer for :func:`sample_pixels`, and their checks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgm_fast.functional._checks import check_floating, values_visible
from dgm_fast.reference.pixel import channel_groups, conv_mask
from dgm_fast.reference.pixel_network import (
    DRAWS,
    KINDS,
    MOMENTS,
    PixelDraw,
    PixelLayer,
    PixelNetwork,
    Tap,
)

_HERE: Tap = (0, 0)


class PixelNetworkBuilder:
    """Adds layers one by one; every method returns the buffer that its layer writes.

    Attributes:
        image: buffer 0, the image as the network sees it.
        layers: what was added so far.
    """

    image: int = 0

    def __init__(self, draw: PixelDraw) -> None:
        self._draw = draw
        self.layers: list[PixelLayer] = []
        self._channels = [draw.input_channels]
        self._strides = [1]
        self._moments = ["pixel"]

    def buffer(self, channels: int, stride: int = 1) -> int:
        """A buffer that a later layer writes (``output=``) and earlier ones read: a recurrent state."""
        self._channels.append(channels)
        self._strides.append(stride)
        self._moments.append("pixel")
        return len(self._channels) - 1

    def convolution(
        self,
        inputs: int | Sequence[int],
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        taps: Sequence[Tap],
        moment: str = "pixel",
        stride: int | None = None,
        groups: Sequence[int] | None = None,
        output: int | None = None,
    ) -> int:
        """A convolution over live taps (see :class:`PixelLayer`).

        Args:
            inputs: one buffer, or several whose channels follow each other.
            weight: [out, in, taps], masked.
            bias: [out], [B, out] or None.
            taps: (dy, dx) of the entries of ``weight``'s last dimension.
            moment: "pixel", "row" or "reversed_row".
            stride: of the output, in pixels; None for that of the inputs.
            groups: the colour of every unit; None for 0.
            output: a buffer made by :meth:`buffer`; None for a new one.
        """
        inputs = (inputs,) if isinstance(inputs, int) else tuple(inputs)
        if output is None:
            output = self.buffer(weight.shape[0], stride or self._strides[inputs[0]])
        own = None if groups is None else tuple(int(g) for g in groups)
        return self._add(
            PixelLayer("convolution", inputs, output, moment, weight, bias, tuple(taps), own)
        )

    def masked_convolution(
        self,
        x: int,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        mask_type: str,
        data_channels: int = 1,
        channel_order: str = "interleaved",
        dilation: int = 1,
    ) -> int:
        """What :func:`masked_conv2d` computes, of its live taps: weight [out, in, kH, kW]."""
        mask = conv_mask(
            weight, mask_type=mask_type, data_channels=data_channels, channel_order=channel_order
        )
        rows, columns = weight.shape[2:]
        centre = rows * columns // 2
        # Live are the taps before the centre, and the centre itself but in type A of one data channel.
        count = centre + (mask_type == "B" or data_channels > 1)
        live = torch.where(mask, weight.detach(), 0.0).flatten(2)[:, :, :count]
        taps = [
            (dilation * (t // columns - rows // 2), dilation * (t % columns - columns // 2))
            for t in range(count)
        ]
        groups = None
        if data_channels > 1:
            groups = channel_groups(weight.shape[0], data_channels, channel_order).tolist()
        return self.convolution(x, live, bias, taps=taps, groups=groups)

    def constant(self, value: Tensor, groups: Sequence[int] | None = None) -> int:
        """A buffer with ``value`` [C] or [B, C] at every pixel, and zeros outside of the image as all."""
        weight = value.new_zeros(value.shape[-1], self._channels[self.image], 0)
        return self.convolution(self.image, weight, value, taps=[], moment="row", groups=groups)

    def elementwise(self, kind: str, *inputs: int, moment: str | None = None) -> int:
        """An element-wise layer of ``KINDS``, run at the row where all its inputs are ("pixel" otherwise).

        What a state of moment "reversed_row" depends on has to say ``moment="reversed_row"``.
        """
        channels = [self._channels[b] for b in inputs]
        width = {
            "concat_elu": 2 * channels[0],
            "tanh_gate": channels[0] // 2,
            "linear_gate": channels[0] // 2,
            "concatenate": sum(channels),
        }.get(kind, channels[0])
        moments = {self._moments[b] for b in inputs}
        output = self.buffer(width, self._strides[inputs[0]])
        moment = moment or ("pixel" if "pixel" in moments else "row")
        return self._add(PixelLayer(kind, tuple(inputs), output, moment))

    def lstm(self, gates: int, *, cell_tap: Tap, output: int, moment: str = "pixel") -> int:
        r"""One step of an LSTM: c = \sigma(f) c' + \sigma(i) tanh(g), h = \sigma(o) tanh(c).

        Args:
            gates: buffer of i, f, g, o, 4 h channels, before their activations.
            cell_tap: where the cell c' before lies: (-1, 0) in a row LSTM, (0, -1) in a diagonal one.
            output: buffer of h, made by :meth:`buffer`: the gates' convolution reads it.
            moment: "pixel", or "reversed_row" for the direction from right to left.
        """
        cell = self.buffer(self._channels[output], self._strides[output])
        self._moments[cell] = moment
        return self._add(PixelLayer("lstm", (gates, cell), output, moment, taps=(cell_tap,)))

    def build(self, output: int) -> PixelNetwork:
        """The network with its parameters in buffer ``output``, checked.

        Raises:
            ValueError, TypeError: if a layer is not causal or shapes do not match; the message says why.
        """
        network = PixelNetwork(
            tuple(self.layers), tuple(self._channels), tuple(self._strides), output, self._draw
        )
        check_network(network)
        return network

    def _add(self, layer: PixelLayer) -> int:
        self.layers.append(layer)
        self._moments[layer.output] = layer.moment
        return layer.output


def check_network(network: PixelNetwork) -> None:
    """Raise ValueError (TypeError) with the reason where a network cannot be sampled pixel by pixel."""
    _check_draw(network.draw)
    buffers = len(network.channels)
    if len(network.strides) != buffers or buffers == 0:
        raise ValueError(
            f"channels and strides must name the same buffers, got {buffers} and {len(network.strides)}"
        )
    if network.channels[0] != network.draw.input_channels:
        raise ValueError(
            f"buffer 0 must have the draw's {network.draw.input_channels} channels, "
            f"got {network.channels[0]}"
        )
    for b, stride in enumerate(network.strides):
        if stride < 1 or stride & (stride - 1) or (b == 0 and stride != 1):
            raise ValueError(f"strides[{b}] must be a power of two (1 for the image), got {stride}")
    written: dict[int, int] = {}
    for i, layer in enumerate(network.layers):
        _check_layer(network, i, layer)
        for b in _outputs(layer):
            if b in written or b == 0:
                raise ValueError(f"layers[{i}] writes buffer {b}, which has its values already")
            written[b] = i
    missing = sorted({b for layer in network.layers for b in layer.inputs} - {0, *written})
    if missing:
        raise ValueError(f"no layer writes buffer {missing[0]}")
    moments, groups = network.moments(), network.groups()
    _check_groups(network, groups)
    for i, layer in enumerate(network.layers):
        _check_causal(network, i, layer, written, moments, groups)
    out = network.output
    if out not in written or network.strides[out] != 1:
        raise ValueError(f"output must be a buffer of stride 1 that a layer writes, got {out}")
    if network.channels[out] != network.draw.parameters:
        raise ValueError(
            f"the draw takes {network.draw.parameters} parameters a pixel, but the network gives "
            f"{network.channels[out]}"
        )
    steps = network.draw.steps
    if any(group > channel % steps for channel, group in enumerate(groups[out])):
        raise ValueError(
            "output: channel k must have at most group k mod colors, but parameters of a colour belong to "
            "a later one"
        )
    _check_parameters(network)


def _check_draw(draw: PixelDraw) -> None:
    if draw.kind not in DRAWS:
        raise ValueError(f"draw.kind must be one of {DRAWS}, got {draw.kind!r}")
    if draw.colors < 1 or draw.ones < 0 or draw.num_mixtures < 1:
        raise ValueError("draw.colors and num_mixtures must be at least 1 and ones at least 0")
    if draw.kind == "logistic_mixture":
        if draw.colors not in (1, 3):
            raise ValueError(f"a logistic mixture has 1 or 3 colors, got {draw.colors}")
        if draw.one_hot:
            raise ValueError("a logistic mixture enters the network as values, not one_hot")
    if draw.levels is None:
        if draw.kind != "logistic_mixture":
            raise ValueError("draw.levels may be None for a logistic mixture only")
    elif draw.levels < 2 or (draw.kind == "bernoulli" and draw.levels != 2):
        raise ValueError(f"draw.levels must be at least 2 (2 for bernoulli), got {draw.levels}")


def _outputs(layer: PixelLayer) -> tuple[int, ...]:
    return (layer.output, layer.inputs[1]) if layer.kind == "lstm" else (layer.output,)


def _name(i: int, layer: PixelLayer) -> str:
    return f"layers[{i}] ({layer.kind})"


def _check_layer(network: PixelNetwork, i: int, layer: PixelLayer) -> None:
    """Kind, buffers, shapes."""
    name, buffers = _name(i, layer), len(network.channels)
    if layer.kind not in KINDS:
        raise ValueError(f"layers[{i}].kind must be one of {KINDS}, got {layer.kind!r}")
    if layer.moment not in MOMENTS:
        raise ValueError(f"{name}: moment must be one of {MOMENTS}, got {layer.moment!r}")
    if not layer.inputs or any(not 0 <= b < buffers for b in (*layer.inputs, layer.output)):
        raise ValueError(f"{name}: inputs and output must be buffers 0 to {buffers - 1}")
    seen = [network.channels[b] for b in layer.inputs]
    strides = {network.strides[b] for b in layer.inputs}
    channels, stride = network.channels[layer.output], network.strides[layer.output]
    if len(strides) != 1:
        raise ValueError(f"{name}: its inputs have different strides {sorted(strides)}")
    (stride_in,) = strides
    if layer.kind == "convolution":
        if stride not in (stride_in, 2 * stride_in, stride_in // 2):
            raise ValueError(f"{name}: from stride {stride_in} to {stride} is no step of 1 or 2")
        shape = (channels, sum(seen), len(layer.taps))
        if layer.weight is None or layer.weight.shape != shape:
            got = None if layer.weight is None else tuple(layer.weight.shape)
            raise ValueError(f"{name}: weight must be [out, in, taps] = {shape}, got {got}")
        if layer.bias is not None and (
            layer.bias.ndim not in (1, 2) or layer.bias.shape[-1] != channels
        ):
            raise ValueError(
                f"{name}: bias must be [{channels}] or [B, {channels}], got {tuple(layer.bias.shape)}"
            )
        if layer.groups is not None and (
            len(layer.groups) != channels
            or not all(0 <= g < network.draw.steps for g in layer.groups)
        ):
            raise ValueError(
                f"{name}: groups must hold the colour, 0 to {network.draw.steps - 1}, of {channels} units"
            )
        return
    if stride != stride_in:
        raise ValueError(f"{name}: from stride {stride_in} to {stride}, but it is element-wise")
    count = {"add": None, "concatenate": None, "lstm": 2}.get(layer.kind, 1)
    if count is not None and len(seen) != count:
        raise ValueError(f"{name}: takes {count} inputs, got {len(seen)}")
    if layer.kind == "lstm":
        fits = seen == [4 * channels, channels] and len(layer.taps) == 1
    elif layer.kind in ("tanh_gate", "linear_gate"):
        fits = seen == [2 * channels]
    elif layer.kind == "concat_elu":
        fits = channels == 2 * seen[0]
    elif layer.kind == "concatenate":
        fits = channels == sum(seen)
    else:
        fits = set(seen) == {channels}
    if not fits:
        raise ValueError(f"{name}: {seen} channels do not make {channels}")


def _check_groups(network: PixelNetwork, groups: list[tuple[int, ...]]) -> None:
    """Halves of gates and terms of sums belong to the same colours."""
    if network.draw.steps == 1:
        return
    for i, layer in enumerate(network.layers):
        seen = [groups[b] for b in layer.inputs]
        parts = {"tanh_gate": 2, "linear_gate": 2, "lstm": 4}.get(layer.kind, 1)
        if layer.kind == "add":
            same = all(own == seen[0] for own in seen)
        elif layer.kind in ("concatenate", "convolution"):
            same = True
        else:
            same = seen[0] == seen[0][: len(seen[0]) // parts] * parts
        if not same:
            raise ValueError(
                f"{_name(i, layer)}: what it combines belongs to different colours: give the convolutions "
                "before it the same groups"
            )


def _check_causal(
    network: PixelNetwork,
    i: int,
    layer: PixelLayer,
    written: dict[int, int],
    moments: list[str | None],
    groups: list[tuple[int, ...]],
) -> None:
    """Every tap reads what is there when the layer runs."""
    first = 0
    for position, b in enumerate(layer.inputs):
        taps: tuple[Tap, ...] = (_HERE,)
        if layer.kind == "convolution" or (layer.kind == "lstm" and position == 1):
            taps = layer.taps
        earlier = b == 0 or written[b] < i
        for t, (dy, dx) in enumerate(taps):
            if dy < 0:
                continue
            before = moments[b]
            if layer.moment == "pixel":
                if before in ("row", "reversed_row"):
                    ready = dy == 0 and earlier
                else:
                    ready = dy == 0 and (dx < 0 or (dx == 0 and earlier))
            elif before in (None, "pixel"):
                ready = False
            elif layer.moment == "reversed_row" and before == "reversed_row":
                between = network.layers[i : written[b]]
                together = all(other.moment != "row" for other in between)
                ready = dy == 0 and ((dx > 0 and together) or (dx == 0 and earlier))
            else:
                ready = dy == 0 and earlier
            if not ready:
                raise ValueError(
                    f"{_name(i, layer)}: tap ({dy}, {dx}) of buffer {b} is not causal: at moment "
                    f"{layer.moment!r} it is not known yet"
                )
            if (dy, dx) == _HERE and layer.moment == "pixel" and before in (None, "pixel"):
                _check_colors(network, i, layer, b, groups, first, t)
        first += network.channels[b]


def _check_colors(
    network: PixelNetwork,
    i: int,
    layer: PixelLayer,
    b: int,
    groups: list[tuple[int, ...]],
    first: int,
    t: int,
) -> None:
    """At the pixel itself, units of a colour see what is drawn before it."""
    # Under a trace, and on another device, weights are taken at their word.
    if (b != 0 and network.draw.steps == 1) or not values_visible():
        return
    seen = torch.tensor(groups[b])
    own = torch.tensor(groups[layer.output])
    if layer.kind != "convolution":
        hidden = b == 0 and bool((seen >= 0).any())
    else:
        assert layer.weight is not None
        dead = seen >= own[:, None] if b == 0 else seen > own[:, None]
        hidden = False
        if layer.weight.device.type == "cpu":
            hidden = bool((layer.weight[:, first : first + len(seen), t][dead] != 0).any())
    if hidden:
        raise ValueError(
            f"{_name(i, layer)}: tap (0, 0) of buffer {b} is not causal: a unit sees a colour that is "
            "drawn after it"
        )


def _check_parameters(network: PixelNetwork) -> None:
    tensors = {}
    for i, layer in enumerate(network.layers):
        tensors[f"layers[{i}].weight"] = layer.weight
        tensors[f"layers[{i}].bias"] = layer.bias
    check_floating(**tensors)


def noise_shape(network: PixelNetwork, batch: int, height: int, width: int) -> tuple[int, ...]:
    """Shape of the noise of ``batch`` images."""
    return (batch, network.draw.noise_channels, height, width)
