"""Small causal networks on images of every kind, and their dense evaluation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast import functional
from dgm_fast.functional import PixelDraw, PixelLayer, PixelNetwork, PixelNetworkBuilder
from dgm_fast.reference._common import draw_class
from dgm_fast.reference.pixel import channel_groups


class _Random:
    """Weights of a test network."""

    def __init__(self, dtype: torch.dtype, batch: int | None) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.dtype, self.batch = dtype, batch

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator).to(self.dtype)

    def weight(self, out: int, inputs: int, *kernel: int) -> Tensor:
        return self.normal(out, inputs, *kernel) * 2 * (inputs * math.prod(kernel)) ** -0.5

    def bias(self, out: int) -> Tensor:
        """One for all images, or one each."""
        return 0.3 * (self.normal(out) if self.batch is None else self.normal(self.batch, out))


def pixelcnn(
    draw: PixelDraw, *, batch: int | None = None, dtype: torch.dtype = torch.float32, width: int = 7
) -> PixelNetwork:
    """Residual blocks of masked convolutions, dilated too."""
    random = _Random(dtype, None)
    build = PixelNetworkBuilder(draw)

    def conv(x: int, out: int, inputs: int, kernel: int, mask: str, dilation: int = 1) -> int:
        weight = random.weight(out, inputs, kernel, kernel)
        if x == build.image and draw.ones:
            # The ones have no colour, and this mask would give them one.
            weight[:, -draw.ones :] = 0.0
        order = {"mask_type": mask, "data_channels": draw.steps, "dilation": dilation}
        return build.masked_convolution(x, weight, random.bias(out), **order)

    h = conv(build.image, width, draw.input_channels, 5, "A")
    for dilation in (1, 2):
        r = build.elementwise("relu", h)
        r = conv(r, width, width, 3, "B", dilation)
        r = build.elementwise("elu", r)
        h = build.elementwise("add", h, r)
    h = build.elementwise("tanh", h)
    return build.build(conv(h, draw.parameters, width, 1, "B"))


def gated(
    draw: PixelDraw, *, batch: int | None = None, dtype: torch.dtype = torch.float32, width: int = 6
) -> PixelNetwork:
    """Vertical and horizontal stacks, with a bias for every image and the order of colours."""
    random = _Random(dtype, batch)
    build = PixelNetworkBuilder(draw)
    colors = draw.steps
    groups = channel_groups(width, colors, "interleaved").tolist()
    inputs = [channel % colors for channel in range(draw.input_channels - draw.ones)]
    inputs += [-1] * draw.ones
    above = [(-1, -1), (-1, 0), (-1, 1)]
    v, h = build.image, build.image
    for i in range(2):
        seen = draw.input_channels if i == 0 else width
        taps = above if i == 0 else [*above, (0, -1), (0, 0), (0, 1)]
        v2 = build.convolution(
            v,
            random.weight(2 * width, seen, len(taps)),
            random.bias(2 * width),
            taps=taps,
            moment="row",
            groups=groups * 2,
        )
        link = build.convolution(
            v2,
            random.weight(2 * width, 2 * width, 1),
            taps=[(0, 0)],
            moment="row",
            groups=groups * 2,
        )
        weight = random.weight(2 * width, seen, 3)
        for unit, own in enumerate(groups * 2):
            for channel, group in enumerate(inputs):
                if group > own or (i == 0 and group == own):
                    weight[unit, channel, 2] = 0.0
        h2 = build.convolution(
            h, weight, random.bias(2 * width), taps=[(0, -2), (0, -1), (0, 0)], groups=groups * 2
        )
        gate = build.elementwise("tanh_gate", build.elementwise("add", h2, link))
        mixed = _colored(build, random, gate, width, width, groups, groups)
        h = mixed if i == 0 else build.elementwise("add", h, mixed)
        v, inputs = build.elementwise("tanh_gate", v2), groups
    out = [channel % colors for channel in range(draw.parameters)]
    joined = build.elementwise("concatenate", build.elementwise("sigmoid", h), h)
    return build.build(_colored(build, random, joined, draw.parameters, 2 * width, out, groups * 2))


def _colored(
    build: PixelNetworkBuilder,
    random: _Random,
    x: int,
    out: int,
    seen: int,
    groups_out: list[int],
    groups_in: list[int],
) -> int:
    """A convolution at the pixel alone, masked as type B."""
    weight = random.weight(out, seen, 1)
    dead = torch.tensor(groups_in) > torch.tensor(groups_out)[:, None]
    weight[dead] = 0.0
    return build.convolution(x, weight, random.bias(out), taps=[(0, 0)], groups=groups_out)


def pixelcnn_pp(
    draw: PixelDraw, *, batch: int | None = None, dtype: torch.dtype = torch.float32, width: int = 5
) -> PixelNetwork:
    """Two streams at strides 1, 2 and 4 and back, with skip connections."""
    random = _Random(dtype, batch)
    build = PixelNetworkBuilder(draw)
    seen = draw.input_channels
    # Rows above, and what is left of the pixel or above it.
    u_taps = [(dy, dx) for dy in (-1, 0) for dx in (-1, 0, 1)]
    ul_taps = [(dy, dx) for dy in (-1, 0) for dx in (-1, 0)]

    def conv(x: int | tuple[int, ...], inputs: int, out: int, taps: list, **options: object) -> int:
        weight = random.weight(out, inputs, len(taps))
        return build.convolution(x, weight, random.bias(out), taps=taps, **options)

    def block(x: int, taps: list, moment: str, extra: int | None = None) -> int:
        h = conv(build.elementwise("concat_elu", x), 2 * width, width, taps, moment=moment)
        if extra is not None:
            skip = conv(build.elementwise("concat_elu", extra), 2 * width, width, [(0, 0)])
            h = build.elementwise("add", h, skip)
        h = build.elementwise("concat_elu", h)
        h = conv(h, 2 * width, 2 * width, taps, moment=moment)
        return build.elementwise("add", x, build.elementwise("linear_gate", h))

    above = [(-2, dx) for dx in (-1, 0, 1)] + [(-1, dx) for dx in (-1, 0, 1)]
    u = conv(build.image, seen, width, above, moment="row")
    ul = build.elementwise(
        "add",
        conv(build.image, seen, width, [(-1, -1), (-1, 0), (-1, 1)]),
        conv(build.image, seen, width, [(-1, -1), (0, -1)]),
    )
    skips = []
    for stride in (1, 2, 4):
        if stride > 1:
            u = conv(u, width, width, u_taps, moment="row", stride=stride)
            ul = conv(ul, width, width, ul_taps, stride=stride)
        u = block(u, u_taps, "row")
        ul = block(ul, ul_taps, "pixel", extra=u)
        skips.append((u, ul))
    u, ul = skips.pop()
    for stride in (2, 1):
        # Transposed taps: the kernels (2, 3) and (2, 2) of the paper's code.
        up_u = [(-ky, 1 - kx) for ky in (0, 1) for kx in (0, 1, 2)]
        up_ul = [(-ky, -kx) for ky in (0, 1) for kx in (0, 1)]
        u = conv(u, width, width, up_u, moment="row", stride=stride)
        ul = conv(ul, width, width, up_ul, stride=stride)
        skip_u, skip_ul = skips.pop()
        u = build.elementwise("add", block(u, u_taps, "row"), skip_u)
        both = conv((u, skip_ul), 2 * width, width, [(0, 0)])
        ul = build.elementwise("add", block(ul, ul_taps, "pixel", extra=u), both)
    return build.build(conv(build.elementwise("elu", ul), width, draw.parameters, [(0, 0)]))


def pixelrnn(
    draw: PixelDraw,
    *,
    kind: str,
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
    width: int = 5,
) -> PixelNetwork:
    """Two layers of a row LSTM, or of a diagonal one in both directions."""
    random = _Random(dtype, batch)
    build = PixelNetworkBuilder(draw)
    seen = draw.input_channels
    past = [(-1, -1), (-1, 0), (-1, 1), (0, -1)]
    x = build.convolution(build.image, random.weight(width, seen, 4), random.bias(width), taps=past)

    def lstm(x: int, seen: list, state: list, cell: tuple[int, int], moment: str = "pixel") -> int:
        h = build.buffer(width)
        gates = [
            build.convolution(
                b,
                random.weight(4 * width, width, len(taps)),
                random.bias(4 * width),
                taps=taps,
                moment=moment,
            )
            for b, taps in ((x, seen), (h, state))
        ]
        total = build.elementwise("add", *gates, moment=moment)
        return build.lstm(total, cell_tap=cell, output=h, moment=moment)

    for _ in range(2):
        if kind == "row":
            h = lstm(x, [(0, -1), (0, 0)], [(-1, -1), (-1, 0), (-1, 1)], (-1, 0))
        else:
            left = lstm(x, [(0, 0)], [(0, -1), (-1, 0)], (0, -1))
            # The other direction, one row late: at row i it has read the rows above.
            right = lstm(x, [(-1, 0)], [(0, 1), (-1, 0)], (0, 1), "reversed_row")
            h = build.elementwise("add", left, right)
        x = build.elementwise("add", x, h)
    out = random.weight(draw.parameters, width, 1)
    return build.build(build.convolution(x, out, random.bias(draw.parameters), taps=[(0, 0)]))


def dense_parameters(network: PixelNetwork, image: Tensor) -> Tensor:
    """Parameters at all pixels from a whole image [B, C, H, W] as the network sees it."""
    sizes = [[-(-n // stride) for n in image.shape[2:]] for stride in network.strides]
    maps = [
        image.new_zeros(len(image), channels, *size)
        for channels, size in zip(network.channels, sizes, strict=True)
    ]
    maps[0] = image
    # Recurrent: every pass brings the states of one position more to their values.
    recurrent = any(layer.kind == "lstm" for layer in network.layers)
    passes = image.shape[2] * image.shape[3] if recurrent else 1
    for _ in range(passes):
        before = [m.clone() for m in maps]
        for layer in network.layers:
            maps[layer.output] = _dense_layer(network, layer, maps, sizes[layer.output])
        if all(torch.equal(a, b) for a, b in zip(before, maps, strict=True)):
            break
    return maps[network.output]


def _dense_layer(
    network: PixelNetwork, layer: PixelLayer, maps: list[Tensor], size: list[int]
) -> Tensor:
    seen = [maps[b] for b in layer.inputs]
    if layer.kind == "convolution":
        return _dense_convolution(network, layer, torch.cat(seen, 1), size)
    if layer.kind == "add":
        return torch.stack(seen).sum(0)
    if layer.kind == "concatenate":
        return torch.cat(seen, 1)
    if layer.kind in ("tanh_gate", "linear_gate"):
        a, b = seen[0].chunk(2, 1)
        return (torch.tanh(a) if layer.kind == "tanh_gate" else a) * torch.sigmoid(b)
    if layer.kind == "lstm":
        i, f, g, o = seen[0].chunk(4, 1)
        cell = torch.sigmoid(f) * _shifted(seen[1], *layer.taps[0])
        maps[layer.inputs[1]] = cell + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(maps[layer.inputs[1]])
    functions = {
        "identity": lambda t: t,
        "relu": F.relu,
        "elu": F.elu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "concat_elu": lambda t: F.elu(torch.cat([t, -t], 1)),
    }
    return functions[layer.kind](seen[0])


def _shifted(x: Tensor, dy: int, dx: int) -> Tensor:
    """x at (i + dy, j + dx), zeros outside."""
    reach = max(abs(dy), abs(dx))
    padded = F.pad(x, [reach] * 4)
    rows, columns = x.shape[2:]
    return padded[:, :, reach + dy : reach + dy + rows, reach + dx : reach + dx + columns]


def _dense_convolution(
    network: PixelNetwork, layer: PixelLayer, x: Tensor, size: list[int]
) -> Tensor:
    """By the library's convolutions, over a kernel with zeros at dead taps."""
    reach = max(abs(d) for tap in layer.taps for d in tap)
    weight = layer.weight.to(x)
    kernel = weight.new_zeros(*weight.shape[:2], 2 * reach + 1, 2 * reach + 1)
    up = network.strides[layer.inputs[0]] > network.strides[layer.output]
    for t, (dy, dx) in enumerate(layer.taps):
        at = (reach - dy, reach - dx) if up else (reach + dy, reach + dx)
        kernel[:, :, at[0], at[1]] += weight[:, :, t]
    if up:
        out = F.conv_transpose2d(
            x, kernel.transpose(0, 1), stride=2, padding=reach, output_padding=1
        )
    else:
        stride = network.strides[layer.output] // network.strides[layer.inputs[0]]
        out = F.conv2d(x, kernel, stride=stride, padding=reach)
    if layer.bias is not None:
        out = out + layer.bias.to(x).reshape(*layer.bias.shape, 1, 1)
    return out[..., : size[0], : size[1]]


def encoded(draw: PixelDraw, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Images as the network sees them."""
    if draw.one_hot:
        hot = F.one_hot(x.long(), draw.levels).to(dtype)  # [B, C, H, W, L]
        image = hot.permute(0, 4, 1, 2, 3).flatten(1, 2)
    else:
        image = draw.scale * x.to(dtype) + draw.shift
    return torch.cat([image, image.new_ones(len(x), draw.ones, *x.shape[2:])], 1)


def redrawn(network: PixelNetwork, noise: Tensor, x: Tensor, given: Tensor | None = None) -> Tensor:
    """What the noise makes of the parameters at the image x: x itself, where every pixel was drawn so.

    A given colour has a say in the component of its pixel.
    """
    draw = network.draw
    params = dense_parameters(network, encoded(draw, x, noise.dtype))
    if draw.kind == "bernoulli":
        return (noise < torch.sigmoid(params)).to(params.dtype)
    if draw.kind == "categorical":
        logits = params.unflatten(1, (draw.levels, draw.colors)).movedim(1, -1)
        return draw_class(logits, noise)
    return functional.sample_discretized_logistic_mixture(
        params,
        num_mixtures=draw.num_mixtures,
        levels=draw.levels,
        noise=noise,
        conditioned_on=None if given is None else (x, given),
    )


def random_condition(draw: PixelDraw, batch: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Values of the draw's kind, and which of them are given."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, draw.colors, *size)
    uniform = torch.rand(shape, generator=generator)
    given = torch.rand(shape, generator=generator) < 0.4
    if draw.kind == "logistic_mixture":
        return 2 * uniform - 1, given
    return (uniform * draw.levels).floor(), given
