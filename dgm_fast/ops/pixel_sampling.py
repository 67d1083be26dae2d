"""Registration of cached sampling of causal pixel networks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dgm_fast.ops import _extension
from dgm_fast.ops._registry import OpSpec, register, registered
from dgm_fast.reference import pixel_sampling as formulas
from dgm_fast.reference._common import compute_dtype
from dgm_fast.reference.pixel_network import (
    DRAWS,
    KINDS,
    MOMENTS,
    PixelDraw,
    PixelLayer,
    PixelNetwork,
)

_listener = threading.local()


@contextmanager
def row_progress(listener: Callable[[int], None] | None) -> Iterator[None]:
    """Calls of ``pixel_sample`` from this thread tell ``listener`` how many rows are done."""
    before = getattr(_listener, "call", None)
    _listener.call = listener
    try:
        yield
    finally:
        _listener.call = before


def _report(done: int) -> None:
    call = getattr(_listener, "call", None)
    if call is not None:
        call(done)


if _extension.extension is not None:
    _extension.extension.set_progress(_report)


def pixel_arguments(network: PixelNetwork) -> tuple[Any, ...]:
    """The op's arguments between noise and given values: a network as lists of tensors and integers."""
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    layers: list[int] = []
    for layer in network.layers:
        for t, held in ((layer.weight, weights), (layer.bias, biases)):
            if t is not None:
                held.append(t.detach())
        layers += [
            KINDS.index(layer.kind),
            MOMENTS.index(layer.moment),
            layer.output,
            layer.weight is not None,
            layer.bias is not None,
            len(layer.inputs),
            *layer.inputs,
            len(layer.taps),
            *(n for tap in layer.taps for n in tap),
        ]
    draw = network.draw
    groups = [g for own in network.groups() for g in own] if _colored(network) else []
    return (
        weights,
        biases,
        [int(n) for n in layers],
        list(network.channels),
        list(network.strides),
        groups,
        network.output,
        DRAWS.index(draw.kind),
        draw.colors,
        draw.levels or 0,
        draw.num_mixtures,
        draw.one_hot,
        float(draw.scale),
        float(draw.shift),
        draw.ones,
    )


def _colored(network: PixelNetwork) -> bool:
    """Whether channels differ in when they are known."""
    return network.draw.steps > 1 or network.draw.ones > 0


def _network(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    layers: Sequence[int],
    channels: Sequence[int],
    strides: Sequence[int],
    groups: Sequence[int],
    output: int,
    draw: int,
    colors: int,
    levels: int,
    num_mixtures: int,
    one_hot: bool,
    scale: float,
    shift: float,
    ones: int,
) -> PixelNetwork:
    """The description behind :func:`pixel_arguments`."""
    starts = [sum(channels[:b]) for b in range(len(channels))]
    numbers, next_weight, next_bias = iter(layers), iter(weights), iter(biases)
    found = []
    for kind in numbers:
        moment, output_buffer, weighted, biased, count = (next(numbers) for _ in range(5))
        inputs = tuple(next(numbers) for _ in range(count))
        taps = tuple((next(numbers), next(numbers)) for _ in range(next(numbers)))
        own = None
        if weighted and groups:
            start = starts[output_buffer]
            own = tuple(groups[start : start + channels[output_buffer]])
        found.append(
            PixelLayer(
                KINDS[kind],
                inputs,
                output_buffer,
                MOMENTS[moment],
                next(next_weight) if weighted else None,
                next(next_bias) if biased else None,
                taps,
                own,
            )
        )
    how = PixelDraw(DRAWS[draw], colors, levels or None, num_mixtures, one_hot, scale, shift, ones)
    return PixelNetwork(tuple(found), tuple(channels), tuple(strides), output, how)


def _reference(noise: Tensor, *args: Any) -> Tensor:
    *described, values, given = args
    with torch.no_grad():
        listener = getattr(_listener, "call", None)
        return formulas.pixel_sample(_network(*described), noise, values, given, listener)


def _fake(noise: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *args: Any) -> Tensor:
    draw, colors = args[5], args[6]
    dtype = compute_dtype(noise, *weights, *biases)
    if DRAWS[draw] == "categorical":
        dtype = torch.int64
    return noise.new_empty((noise.shape[0], colors, *noise.shape[2:]), dtype=dtype)


_B, _H, _W, _C = 3, 5, 6, 10


def _example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    past = ((-1, -1), (-1, 0), (-1, 1), (0, -1))
    layers = []
    for i, (inputs, outputs, taps) in enumerate(
        ((1, _C, past), (_C, _C, (*past, (0, 0))), (_C, 1, ((0, 0),)))
    ):
        weight = torch.randn(outputs, inputs, len(taps), device=device, dtype=dtype)
        bias = torch.randn(outputs, device=device, dtype=dtype)
        layers.append(
            PixelLayer("convolution", (2 * i,), 2 * i + 1, weight=weight, bias=bias, taps=taps)
        )
        if i < 2:
            layers.append(PixelLayer("relu", (2 * i + 1,), 2 * i + 2))
    network = PixelNetwork(
        tuple(layers), (1, _C, _C, _C, _C, 1), (1,) * 6, 5, PixelDraw(scale=2.0, shift=-1.0)
    )
    noise = torch.rand(_B, 1, _H, _W, device=device, dtype=torch.float32)
    given = torch.rand(_B, 1, _H, _W, device=device) < 0.3
    return noise, *pixel_arguments(network), torch.ones_like(noise), given


# A family of its own: it has no Triton kernels, which those of "pixel" may get.
register(OpSpec("pixel_sample", "pixel_sampling", _reference, _fake, _example))

pixel_sample = registered("pixel_sample")
