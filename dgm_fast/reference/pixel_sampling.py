"""Reference sampler of causal pixel networks: every layer keeps its activations and adds what is new.

A row's layers run once for all its positions, the others once a position (and colour): together the
operations of about one pass through the network. No step looks at a value, so that a row on a CUDA device
can be captured as a graph and played for all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast.reference._common import compute_dtype, draw_class
from dgm_fast.reference.mixture import logistic_mixture_draw
from dgm_fast.reference.pixel_network import PixelLayer, PixelNetwork, Tap, history

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda t: t,
    "relu": torch.relu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "concat_elu": lambda t: F.elu(torch.cat([t, -t], -1)),
}


def pixel_sample(
    network: PixelNetwork,
    noise: Tensor,
    values: Tensor | None = None,
    given: Tensor | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """x [B, C, H, W]: ``values`` where ``given``, elsewhere drawn with ``noise`` [B, n, H, W].

    Levels as int64 for categorical draws, else numbers. ``progress`` hears how many rows are done.
    """
    tensors = [t for layer in network.layers for t in (layer.weight, layer.bias)]
    dtype = compute_dtype(noise, *tensors)
    integer = network.draw.kind == "categorical"
    shape = (noise.shape[0], network.draw.colors, *noise.shape[2:])
    x = torch.empty(shape, dtype=torch.int64 if integer else dtype, device=noise.device)
    if x.numel() == 0:
        return x
    noise = noise.to(dtype)
    if values is not None:
        values = values.to(x.dtype)
    row = _Row(network, x[:, :, 0], noise[:, :, 0], given is not None)
    runs = _captured(row) if noise.is_cuda and len(noise[0, 0]) > 2 * row.period else {}
    for y in range(shape[2]):
        row.noise.copy_(noise[:, :, y])
        if values is not None and given is not None:
            row.values.copy_(values[:, :, y])
            row.given.copy_(given[:, :, y])
        phase = y % row.period
        if phase in runs:
            runs[phase].replay()
        else:
            row.run(phase)
        x[:, :, y] = row.x
        if progress is not None:
            if x.is_cuda and not torch.cuda.is_current_stream_capturing():
                torch.cuda.current_stream().synchronize()
            progress(y + 1)
    return x


def _captured(row: _Row) -> dict[int, torch.cuda.CUDAGraph]:
    """A graph for every phase of a row; none inside a capture of the caller's."""
    if torch.cuda.is_current_stream_capturing():
        return {}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        # Libraries set up what a capture may not.
        for phase in range(row.period):
            row.run(phase)
    torch.cuda.current_stream().wait_stream(side)
    graphs = {}
    for phase in range(row.period):
        graphs[phase] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[phase]):
            row.run(phase)
    row.reset()
    return graphs


class _Row:
    """The newest rows of every buffer, and the layers that make the next one.

    A buffer is [rows kept, columns with margins, B, C], its newest row last.
    """

    def __init__(self, network: PixelNetwork, x: Tensor, noise: Tensor, conditioned: bool) -> None:
        self.network = network
        self.draw = network.draw
        self.x, self.noise = torch.zeros_like(x), torch.zeros_like(noise)
        self.values = torch.zeros_like(x) if conditioned else x.new_empty(0)
        self.given = torch.zeros_like(x, dtype=torch.bool)
        self.period = max(network.strides)
        self.batch, self.width = noise.shape[0], noise.shape[-1]
        kept = [1] * len(network.channels)
        self.margin = [0] * len(network.channels)
        for layer in network.layers:
            for b in layer.inputs:
                for dy, dx in layer.taps:
                    strides = network.strides[b], network.strides[layer.output]
                    kept[b] = max(kept[b], 1 + history(dy, *strides))
                    self.margin[b] = max(self.margin[b], abs(dx))
        self.columns = [-(-self.width // s) for s in network.strides]
        self.buffers = [
            noise.new_zeros(rows, columns + 2 * margin, self.batch, channels)
            for rows, columns, margin, channels in zip(
                kept, self.columns, self.margin, network.channels, strict=True
            )
        ]
        self.layers = [
            _Convolution(layer, network, noise) if layer.kind == "convolution" else layer
            for layer in network.layers
        ]
        self.classes = torch.arange(self.draw.levels or 0, device=noise.device)

    def reset(self) -> None:
        for buffer in self.buffers:
            buffer.zero_()

    def run(self, phase: int) -> None:
        """The next row, of a number that is ``phase`` modulo ``period``."""
        for b, stride in enumerate(self.network.strides):
            if phase % stride == 0 and len(self.buffers[b]) > 1:
                self.buffers[b][:-1] = self.buffers[b][1:].clone()
        image = self.buffers[0][-1]
        image.zero_()
        if self.draw.ones:
            image[self.margin[0] : self.margin[0] + self.width, :, -self.draw.ones :] = 1.0
        layers = [
            (layer, run)
            for layer, run in zip(self.network.layers, self.layers, strict=True)
            if phase % self.network.strides[layer.output] == 0
        ]
        early = [pair for pair in layers if pair[0].moment != "pixel"]
        for moment, pairs in groupby(early, lambda pair: pair[0].moment):
            if moment == "row":
                for layer, run in pairs:
                    self._run(layer, run, phase, None, None)
                continue
            together = list(pairs)
            for j in reversed(range(self.width)):
                for layer, run in together:
                    self._run(layer, run, phase, j, None)
        late = [pair for pair in layers if pair[0].moment == "pixel"]
        for j in range(self.width):
            for step in range(self.draw.steps):
                for layer, run in late:
                    self._run(layer, run, phase, j, step)
                self._draw(j, step)

    def _run(
        self,
        layer: PixelLayer,
        run: PixelLayer | _Convolution,
        phase: int,
        pixel: int | None,
        step: int | None,
    ) -> None:
        """One layer at all columns (``pixel`` None) or at a pixel, where it lies on the layer's grid."""
        stride = self.network.strides[layer.output]
        if pixel is not None and pixel % stride:
            return
        column = None if pixel is None else pixel // stride
        if isinstance(run, _Convolution):
            run.run(self, phase // stride, column, step)
            return
        out = self.at(layer.output, column)
        seen = [self.at(b, column) for b in layer.inputs]
        if layer.kind == "add":
            value = sum(seen[1:], seen[0])
        elif layer.kind == "concatenate":
            value = torch.cat(seen, -1)
        elif layer.kind == "lstm":
            assert column is not None
            (tap,) = layer.taps
            before = self.read(layer.inputs[1], tap, column)
            i, f, g, o = seen[0].chunk(4, -1)
            cell = torch.sigmoid(f) * before + torch.sigmoid(i) * torch.tanh(g)
            seen[1].copy_(cell)
            value = torch.sigmoid(o) * torch.tanh(cell)
        elif layer.kind in ("tanh_gate", "linear_gate"):
            a, b = seen[0].chunk(2, -1)
            value = (torch.tanh(a) if layer.kind == "tanh_gate" else a) * torch.sigmoid(b)
        else:
            value = _FUNCTIONS[layer.kind](seen[0])
        out.copy_(value)

    def at(self, b: int, column: int | None) -> Tensor:
        """Newest row of a buffer: [columns, B, C], or [B, C] at a column."""
        margin = self.margin[b]
        if column is None:
            return self.buffers[b][-1, margin : margin + self.columns[b]]
        return self.buffers[b][-1, margin + column]

    def read(self, b: int, tap: Tap, column: int) -> Tensor:
        """At a tap from a column of the same grid, [B, C]."""
        return self.buffers[b][tap[0] - 1, self.margin[b] + column + tap[1]]

    def _draw(self, j: int, step: int) -> None:
        draw = self.draw
        params, noise = self.at(self.network.output, j), self.noise[:, :, j]
        colors = slice(step, step + 1)
        if draw.kind == "logistic_mixture":
            colors = slice(0, draw.colors)
            known: tuple[Tensor | None, Tensor | None] = None, None
            if len(self.values):
                known = self.values[:, :, j, None, None], self.given[:, :, j, None, None]
            x = logistic_mixture_draw(
                params[:, :, None, None],
                noise[:, :, None, None],
                num_mixtures=draw.num_mixtures,
                levels=draw.levels,
                packing="channel",
                values=known[0],
                given=known[1],
            )[:, :, 0, 0]
        elif draw.kind == "bernoulli":
            x = (noise[:, colors] < torch.sigmoid(params[:, colors])).to(params.dtype)
        else:
            x = draw_class(params[:, step :: draw.colors], noise[:, step]).unsqueeze(1)
        if len(self.values):
            x = torch.where(self.given[:, colors, j], self.values[:, colors, j], x)
        self.x[:, colors, j] = x
        image = self.at(0, j)
        if draw.one_hot:
            end = image.shape[1] - draw.ones
            image[:, step : end : draw.colors] = (x == self.classes).to(image.dtype)
        else:
            image[:, colors] = draw.scale * x.to(image.dtype) + draw.shift


class _Convolution:
    """The live taps of a layer: for every parity of the position one matrix a colour."""

    def __init__(self, layer: PixelLayer, network: PixelNetwork, like: Tensor) -> None:
        assert layer.weight is not None
        self.layer = layer
        self.stride_in = network.strides[layer.inputs[0]]
        self.stride_out = network.strides[layer.output]
        self.parities = 2 if self.stride_in > self.stride_out else 1
        weight = layer.weight.to(like)
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.to(like)
        # None: all units.
        self.units: dict[int | None, Tensor | None] = {None: None}
        if layer.moment == "pixel":
            for step in range(network.draw.steps):
                own = [u for u, g in enumerate(layer.groups or (0,) * len(weight)) if g == step]
                self.units[step] = None if len(own) == len(weight) else _index(own, like.device)
        self.bias = {s: bias if u is None else bias[..., u] for s, u in self.units.items()}
        self.taps: dict[tuple[int, int], list[Tap]] = {}
        self.matrices: dict[tuple[int, int, int | None], Tensor] = {}
        for py in range(self.parities):
            for px in range(self.parities):
                live = [
                    t
                    for t, (dy, dx) in enumerate(layer.taps)
                    if (py + dy) % self.parities == 0 and (px + dx) % self.parities == 0
                ]
                self.taps[py, px] = [layer.taps[t] for t in live]
                for key, units in self.units.items():
                    rows = weight if units is None else weight[units]
                    # [taps in, units]
                    seen = [rows[:, :, t].t() for t in live]
                    self.matrices[py, px, key] = torch.cat(seen) if seen else rows.new_empty(0)

    def run(self, row: _Row, i: int, column: int | None, step: int | None) -> None:
        """Row i (modulo the period): at all columns, or at one the units of a step."""
        units = self.units[step]
        if units is not None and len(units) == 0:
            return
        if column is not None:
            parity = column % self.parities
            self._columns(row, i % self.parities, parity, slice(column, column + 1, 1), step)
            return
        columns = row.columns[self.layer.output]
        for parity in range(min(self.parities, columns)):
            self._columns(
                row, i % self.parities, parity, slice(parity, columns, self.parities), step
            )

    def _columns(self, row: _Row, py: int, px: int, columns: slice, step: int | None) -> None:
        first, count = columns.start, len(range(columns.start, columns.stop, columns.step))
        seen = []
        for dy, dx in self.taps[py, px]:
            begin, jump, newest = first + dx, columns.step, dy
            if self.stride_in < self.stride_out:
                begin, jump = 2 * first + dx, 2 * columns.step
            elif self.stride_in > self.stride_out:
                begin, jump, newest = (first + dx) // 2, columns.step // 2 or 1, (py + dy) // 2
            for b in self.layer.inputs:
                at = begin + row.margin[b]
                seen.append(row.buffers[b][newest - 1, at : at + jump * (count - 1) + 1 : jump])
        out = row.at(self.layer.output, None)[columns]
        units, bias = self.units[step], self.bias[step]
        if seen:
            value = torch.cat(seen, -1) @ self.matrices[py, px, step] + bias
        else:
            value = bias.expand(*out.shape[:2], bias.shape[-1])
        if units is None:
            out.copy_(value)
        else:
            out.index_copy_(-1, units, value)


def _index(units: list[int], device: torch.device) -> Tensor:
    """Made on the device: a copy to it would end a capture."""
    if not units:
        return torch.empty(0, dtype=torch.int64, device=device)
    return torch.stack([torch.full((), u, device=device) for u in units])
