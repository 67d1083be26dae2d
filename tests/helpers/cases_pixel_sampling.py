"""Cases of cached sampling of causal pixel networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from helpers.op_checks import OpCase
from helpers.pixel_networks import gated, pixelcnn, pixelcnn_pp, pixelrnn, random_condition
from torch import Tensor

from dgm_fast import functional, reference
from dgm_fast.functional import PixelDraw, PixelNetwork


def _tensors(network: PixelNetwork) -> list[Tensor]:
    return [t for layer in network.layers for t in (layer.weight, layer.bias) if t is not None]


def _with(network: PixelNetwork, tensors: list[Tensor]) -> PixelNetwork:
    """The network with other weights and biases."""
    rest = iter(tensors)
    layers = [
        layer._replace(
            weight=None if layer.weight is None else next(rest),
            bias=None if layer.bias is None else next(rest),
        )
        for layer in network.layers
    ]
    return network._replace(layers=tuple(layers))


def _case(
    id: str,
    network: Callable[..., PixelNetwork],
    draw: PixelDraw,
    batch: int,
    size: tuple[int, int],
    *,
    given: bool = False,
    **options: object,
) -> OpCase:
    described = network(draw, batch=batch, **options)
    condition = random_condition(draw, batch, size) if given else ()

    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(batch)
        noise = torch.rand((batch, draw.noise_channels, *size), generator=generator)
        # Noise of reduced precision would round to 1.
        noise = noise.to(torch.float64 if dtype == torch.float64 else torch.float32)
        return (noise, *(t.to(dtype) for t in _tensors(described)), *condition)

    def split(args: tuple[Tensor, ...]) -> tuple[PixelNetwork, tuple[Tensor, ...]]:
        count = len(args) - len(condition)
        return _with(described, list(args[:count])), args[count:]

    def ours(noise: Tensor, *args: Tensor) -> Tensor:
        rebuilt, pair = split(args)
        return functional.sample_pixels(rebuilt, noise, conditioned_on=pair or None)

    def plain(noise: Tensor, *args: Tensor) -> Tensor:
        rebuilt, pair = split(args)
        with torch.no_grad():
            return reference.pixel_sample(rebuilt, noise, *pair)

    return OpCase(f"pixels-{id}", "pixel_sample", ours, plain, build, ())


_BINARY = PixelDraw(scale=2.0, shift=-1.0)
_COLORS = PixelDraw("categorical", 3, 4, scale=0.5, shift=-0.75)
_MIXTURE = PixelDraw("logistic_mixture", 3, 256, 3, ones=1)

CASES = [
    _case("binary", pixelcnn, _BINARY, 3, (5, 6)),
    _case("colors-given", gated, _COLORS, 2, (4, 5), given=True),
    _case("mixture", pixelcnn, _MIXTURE, 2, (5, 4)),
    _case("row", pixelrnn, _BINARY, 2, (4, 3), given=True, kind="row"),
    _case(
        "diagonal",
        pixelrnn,
        PixelDraw("categorical", 1, 3, one_hot=True),
        2,
        (3, 4),
        kind="diagonal",
    ),
    _case("one", pixelcnn, _BINARY, 1, (1, 1)),
]

# Several shares of the batch, units of several panels.
LARGE = [
    _case("large-binary", pixelcnn, _BINARY, 40, (6, 7), width=53),
    _case("large-gated", gated, _COLORS, 19, (7, 5), given=True, width=30),
    _case("large-strides", pixelcnn_pp, _BINARY, 5, (9, 6), width=20),
]
