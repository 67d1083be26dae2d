"""Benchmark cases of cached sampling, against a pass of the whole network for every pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_fast import functional, reference
from dgm_fast.functional import PixelDraw, PixelNetworkBuilder
from dgm_fast.perf import plain
from dgm_fast.perf.cases_likelihood import SMALL_BFLOAT16, normal
from dgm_fast.perf.registry import Inputs, case


def _sample(noise: Tensor, **layers: Tensor) -> Tensor:
    build = PixelNetworkBuilder(PixelDraw("bernoulli"))
    h = build.image
    count = len(layers) // 2
    for i in range(1, count + 1):
        mask_type = "A" if i == 1 else "B"
        h = build.masked_convolution(h, layers[f"W{i}"], layers[f"b{i}"], mask_type=mask_type)
        if i < count:
            h = build.elementwise("relu", h)
    return functional.sample_pixels(build.build(h), noise)


@case(
    "pixel_sample",
    family="pixel",
    ours=_sample,
    eager=plain.pixel_cnn_sample,
    sizes={  # B, height, width, channels, 3x3 layers between a 7x7 one and a 1x1 one
        "small": (2, 5, 5, 8, 2),
        "medium": (16, 12, 12, 16, 5),
        "large": (16, 14, 14, 32, 8),
        "odd": (3, 7, 9, 13, 3),
    },
    dtypes=SMALL_BFLOAT16,
    grads=(),
    # The loop over pixels unrolls into a graph that compiles for minutes.
    compiled=False,
    # A product and a sum a live weight.
    flops_per_element=lambda shape: (2 * shape[3] * (24 + 5 * shape[3] * shape[4] + 1), 0),
)
def pixel_sample_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    """Weights have zeros where their masks have them, so that a rival needs none."""
    batch, height, width, channels, depth = shape
    kernels = [(channels, 1, 7), *[(channels, channels, 3)] * depth, (1, channels, 1)]
    inputs = {"noise": torch.rand(batch, 1, height, width, generator=generator)}
    for i, (units, seen, side) in enumerate(kernels, 1):
        scale = (seen * max(1, side * side // 2)) ** -0.5
        weight = normal(generator, units, seen, side, side, scale=scale)
        mask = reference.conv_mask(weight, mask_type="A" if i == 1 else "B")
        inputs[f"W{i}"] = torch.where(mask, weight, 0.0)
        inputs[f"b{i}"] = normal(generator, units, scale=0.1)
    return {name: t.to(dtype) for name, t in inputs.items()}
