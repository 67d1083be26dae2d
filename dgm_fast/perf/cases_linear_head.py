"""Benchmark cases of the linear-head family."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_fast import functional
from dgm_fast.perf import plain
from dgm_fast.perf.cases_likelihood import WITH_BFLOAT16, draw_bits, draw_classes, normal
from dgm_fast.perf.registry import Inputs, case

GRADS = ("h", "weight", "bias")


def _layer(
    rows: int, inputs: int, generator: torch.Generator, scale: float
) -> tuple[Tensor, Tensor]:
    """weight [rows, inputs] and bias [rows] that make logits of deviation ``scale``."""
    return normal(generator, rows, inputs, scale=scale / inputs**0.5), normal(generator, rows)


def _bernoulli_ours(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return functional.linear_bernoulli_log_prob(h, weight, bias, x.unsqueeze(1))


@case(
    "linear_bernoulli_log_prob",
    family="linear_head",
    ours=_bernoulli_ours,
    eager=plain.linear_bernoulli,
    sizes={  # B, K, H, D; large: the decoder of an IWAE, 6400 samples
        "small": (8, 5, 16, 64),
        "medium": (20, 50, 200, 784),
        "large": (128, 50, 200, 784),
        "odd": (7, 9, 29, 199),
    },
    dtypes=WITH_BFLOAT16,
    grads=GRADS,
    # Two operations a weight; backward forms the logits again and two products more.
    flops_per_element=lambda shape: (2 * shape[3], 6 * shape[3]),
    second_order=("small",),
)
def linear_bernoulli_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    batch, samples, inputs, dims = shape
    weight, bias = _layer(dims, inputs, generator, 3.0)
    centre = normal(generator, batch, 1, inputs)
    h = centre + 0.1 * normal(generator, batch, samples, inputs)
    x = draw_bits((centre @ weight.T + bias).squeeze(1), generator)
    return {"h": h.to(dtype), "weight": weight.to(dtype), "bias": bias.to(dtype), "x": x}


def _pixels_ours(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return functional.linear_categorical_log_prob(h, weight, bias, x, num_classes=len(weight))


@case(
    "linear_categorical_log_prob",
    family="linear_head",
    ours=_pixels_ours,
    eager=plain.linear_categorical_pixels,
    sizes={  # B, H, Y, X, C
        "small": (6, 8, 4, 4, 17),
        "medium": (8, 64, 28, 28, 256),
        "large": (64, 64, 28, 28, 256),
        "odd": (7, 29, 13, 11, 19),
    },
    dtypes=WITH_BFLOAT16,
    grads=GRADS,
    flops_per_element=lambda shape: (2 * shape[4], 6 * shape[4]),
    second_order=("small",),
    heavy=("large",),
)
def linear_categorical_pixel_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    batch, inputs, height, width, classes = shape
    weight, bias = _layer(classes, inputs, generator, 2.0)
    h = normal(generator, batch, inputs, height, width)
    logits = torch.einsum("ch,bhs->bcs", weight, h.flatten(2)) + bias[:, None]
    x = draw_classes(logits, generator).view(batch, height, width)
    return {"h": h.to(dtype), "weight": weight.to(dtype), "bias": bias.to(dtype), "x": x}


def _vectors_ours(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    classes = len(weight) // x.shape[-1]
    return functional.linear_categorical_log_prob(
        h, weight, bias, x, num_classes=classes, packing="class"
    )


@case(
    "linear_categorical_log_prob",
    variant="vectors",
    family="linear_head",
    ours=_vectors_ours,
    eager=plain.linear_categorical,
    sizes={"medium": (1000, 200, 64, 17)},  # N, H, D, C; digits
    grads=GRADS,
    flops_per_element=lambda shape: (2 * shape[2] * shape[3], 6 * shape[2] * shape[3]),
)
def linear_categorical_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    rows, inputs, dims, classes = shape
    weight, bias = _layer(classes * dims, inputs, generator, 2.0)
    h = normal(generator, rows, inputs)
    x = draw_classes((h @ weight.T + bias).view(rows, classes, dims), generator)
    return {"h": h.to(dtype), "weight": weight.to(dtype), "bias": bias.to(dtype), "x": x}
