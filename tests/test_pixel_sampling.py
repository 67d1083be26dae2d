"""Cached sampling of causal pixel networks."""

from __future__ import annotations

import pytest
import torch
from helpers.pixel_networks import (
    gated,
    pixelcnn,
    pixelcnn_pp,
    pixelrnn,
    random_condition,
    redrawn,
)
from torch import Tensor

from dgm_fast import functional, ops
from dgm_fast.functional import PixelDraw, PixelNetwork

DRAWS = {
    "binary": PixelDraw(scale=2.0, shift=-1.0),
    "binary-colors": PixelDraw("bernoulli", 3),
    "levels": PixelDraw("categorical", 1, 5, scale=0.5, shift=-1.0),
    "one-hot": PixelDraw("categorical", 1, 3, one_hot=True, ones=1),
    "colors": PixelDraw("categorical", 3, 17, scale=0.1, ones=2),
    "colors-one-hot": PixelDraw("categorical", 3, 4, one_hot=True, ones=1),
    "mixture": PixelDraw("logistic_mixture", 1, 256, 3),
    "mixture-colors": PixelDraw("logistic_mixture", 3, 256, 4, ones=1),
    "mixture-unrounded": PixelDraw("logistic_mixture", 3, None, 2),
}
NETWORKS = {
    "pixelcnn": pixelcnn,
    "gated": gated,
    "pixelcnn++": pixelcnn_pp,
    "row-lstm": lambda draw, **options: pixelrnn(draw, kind="row", **options),
    "diagonal-lstm": lambda draw, **options: pixelrnn(draw, kind="diagonal", **options),
}
# PixelCNN++ and PixelRNN here have no order of colours.
COLORED = ("pixelcnn", "gated")
CASES = [
    (network, draw)
    for network in NETWORKS
    for draw in DRAWS
    if network in COLORED or DRAWS[draw].steps == 1
]
SIZES = [(7, 9), (8, 4), (1, 1), (1, 5), (6, 1), (5, 12)]

needs_extension = pytest.mark.skipif(
    ops.active_isa() is None, reason="the C++ extension is not built"
)
each_case = pytest.mark.parametrize("network,draw", CASES)


def noise_of(
    network: PixelNetwork, batch: int, size: tuple[int, int], dtype: torch.dtype = torch.float64
) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, network.draw.noise_channels, *size)
    return torch.rand(shape, dtype=torch.float64, generator=generator).to(dtype)


def assert_same(value: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(value, want, rtol=1e-9, atol=1e-9)


@each_case
@pytest.mark.parametrize("size", SIZES[:2])
def test_samples_are_those_of_dense_passes(network: str, draw: str, size: tuple[int, int]) -> None:
    # At x itself every pixel's parameters are those it was drawn from: one pass checks all pixels.
    described = NETWORKS[network](DRAWS[draw], batch=5)
    noise = noise_of(described, 5, size)
    x = functional.sample_pixels(described, noise)
    assert len(x.unique()) > 1
    assert_same(redrawn(described, noise, x), x)


@needs_extension
@each_case
@pytest.mark.parametrize("batch", [1, 17])
def test_kernel_is_the_reference(network: str, draw: str, batch: int) -> None:
    described = NETWORKS[network](DRAWS[draw], batch=batch)
    for size in SIZES:
        noise = noise_of(described, batch, size)
        x = functional.sample_pixels(described, noise)
        with ops.backend("reference"):
            assert_same(x, functional.sample_pixels(described, noise))


@each_case
def test_in_painting(network: str, draw: str) -> None:
    described = NETWORKS[network](DRAWS[draw], batch=4)
    noise = noise_of(described, 4, (6, 7))
    values, given = random_condition(described.draw, 4, (6, 7))
    x = functional.sample_pixels(described, noise, conditioned_on=(values, given))
    assert_same(x[given].double(), values[given].double())
    drawn = redrawn(described, noise, x)
    assert_same(x[~given], drawn[~given])
    with ops.backend("reference"):
        again = functional.sample_pixels(described, noise, conditioned_on=(values, given))
    assert_same(x, again)
