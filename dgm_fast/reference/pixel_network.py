"""What a causal network on images is made of, as its samplers take it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Tap = tuple[int, int]

# When a layer runs. "pixel": at one position, right before its pixel is drawn. "row": at all positions of a
# row, before its first pixel is drawn. "reversed_row": so too, but position by position from right to left,
# so that it may depend on itself.
MOMENTS = ("pixel", "row", "reversed_row")
# Element-wise functions of one buffer.
FUNCTIONS = ("identity", "relu", "elu", "tanh", "sigmoid")
KINDS = (
    "convolution",
    *FUNCTIONS,
    "concat_elu",  # elu of (x, -x): twice the channels
    "tanh_gate",  # tanh(a) sigmoid(b) of the halves (a, b) of the channels
    "linear_gate",  # a sigmoid(b)
    "add",
    "concatenate",
    "lstm",
)
DRAWS = ("bernoulli", "categorical", "logistic_mixture")


class PixelLayer(NamedTuple):
    """One layer: from some buffers to another.

    A buffer of stride s is a map [B, C, ceil(H / s), ceil(W / s)]. With strides s_in and s_out of two
    buffers, a tap (dy, dx) of the output at (i, j) reads the input at (i + dy, j + dx) where s_in = s_out,
    at (2 i + dy, 2 j + dx) where s_out = 2 s_in (a convolution of stride 2), and, if both are whole, at
    ((i + dy) / 2, (j + dx) / 2) where s_in = 2 s_out (a transposed one). Outside of the map it reads zeros.

    Attributes:
        kind: one of ``KINDS``.
        inputs: buffers, all of one stride. A convolution sees their channels one after the other. "lstm":
            gates (input, forget, cell, output: 4 h channels) and the buffer of its cells (h channels),
            which it writes too.
        output: the buffer that the layer writes.
        moment: one of ``MOMENTS``.
        weight: of a convolution, [out, in, taps], zero where a unit must not look.
        bias: [out], or [B, out] (a class or another condition), or None.
        taps: (dy, dx) of a convolution. "lstm": the one tap where it reads the cell before.
        groups: of a convolution, the colour 0, 1, ... of every unit; None for 0. Units are evaluated before
            their colour is drawn. They may see, at their own position, the colours before it and units of
            the same or earlier colours.
    """

    kind: str
    inputs: tuple[int, ...]
    output: int
    moment: str = "pixel"
    weight: Tensor | None = None
    bias: Tensor | None = None
    taps: tuple[Tap, ...] = ()
    groups: tuple[int, ...] | None = None


class PixelDraw(NamedTuple):
    """How a pixel follows from parameters and noise, and how it enters the network.

    Attributes:
        kind: one of ``DRAWS``. "bernoulli": 0 or 1 from one logit a colour. "categorical": a level from the
            logits of all levels, that of level l and colour c at channel l * C + c. Both draw a colour at a
            time. "logistic_mixture": all colours at once, from the parameters of
            ``discretized_logistic_mixture_log_prob``, packing "channel", to values in [-1, 1].
        colors: C.
        levels: number of levels; None for a mixture leaves colours unrounded.
        num_mixtures: components of the mixture.
        one_hot: the network sees a level as a one-hot vector, level l of colour c at channel l * C + c.
        scale, shift: else it sees scale * value + shift.
        ones: so many channels that are one at every pixel follow those of the colours.
    """

    kind: str = "bernoulli"
    colors: int = 1
    levels: int | None = 2
    num_mixtures: int = 10
    one_hot: bool = False
    scale: float = 1.0
    shift: float = 0.0
    ones: int = 0

    @property
    def input_channels(self) -> int:
        """Channels of buffer 0."""
        width = self.levels if self.one_hot and self.levels else 1
        return self.colors * width + self.ones

    @property
    def parameters(self) -> int:
        """Channels of the buffer of parameters."""
        if self.kind == "logistic_mixture":
            return self.num_mixtures * (3 if self.colors == 1 else 10)
        return self.colors * (1 if self.kind == "bernoulli" else self.levels or 0)

    @property
    def noise_channels(self) -> int:
        """Entries of noise of a pixel."""
        return self.colors + (self.kind == "logistic_mixture")

    @property
    def steps(self) -> int:
        """Draws of a pixel, one after the other."""
        return 1 if self.kind == "logistic_mixture" else self.colors


class PixelNetwork(NamedTuple):
    """A causal network on images, layer by layer, and the draw of a pixel.

    Attributes:
        layers: in an order in which they can run.
        channels: of every buffer. Buffer 0 is the image as the network sees it.
        strides: of every buffer, powers of two; 1 for the image and for the parameters.
        output: the buffer of the parameters.
        draw: how a pixel is drawn.
    """

    layers: tuple[PixelLayer, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    output: int
    draw: PixelDraw

    def moments(self) -> list[str | None]:
        """When each buffer is written; None for the image."""
        moments: list[str | None] = [None] * len(self.channels)
        for layer in self.layers:
            moments[layer.output] = layer.moment
            if layer.kind == "lstm":
                moments[layer.inputs[1]] = layer.moment
        return moments

    def groups(self) -> list[tuple[int, ...]]:
        """The colour of every channel of every buffer."""
        draw = self.draw
        colored = draw.input_channels - draw.ones
        # The ones are known before everything.
        image = [channel % draw.steps for channel in range(colored)] + [-1] * draw.ones
        found: list[tuple[int, ...]] = [()] * len(self.channels)
        found[0] = tuple(image)
        for layer in self.layers:
            channels = self.channels[layer.output]
            seen = [found[b] for b in layer.inputs]
            if layer.kind == "convolution":
                own = layer.groups or (0,) * channels
            elif layer.kind == "concat_elu":
                own = seen[0] * 2
            elif layer.kind == "concatenate":
                own = tuple(group for groups in seen for group in groups)
            else:
                own = seen[0][:channels]
            found[layer.output] = own
            if layer.kind == "lstm":
                found[layer.inputs[1]] = own
        return found


def history(tap: int, stride_in: int, stride_out: int) -> int:
    """How many rows of the input, above its newest, a tap's row reaches."""
    return -tap // 2 if stride_in > stride_out else -tap
