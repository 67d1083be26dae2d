"""Benchmark cases of the NADE family: log-probabilities, and samples by the recurrence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgm_fast import functional
from dgm_fast.perf import plain
from dgm_fast.perf.cases_likelihood import SMALL_BFLOAT16, WITH_BFLOAT16, normal
from dgm_fast.perf.registry import Inputs, case

PARAMETERS = ("W", "c", "V", "b")
HEADS = ("V_logits", "b_logits", "V_means", "b_means", "V_log_scales", "b_log_scales")
# A dimension and hidden unit of a sample: sigmoid, product and step; backward forms them again.
FLOPS = (5, 14)


def _recurrence(dims: int, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
    """W [H, D] and c [H] that keep pre-activations of a few units."""
    return {
        "W": normal(generator, hidden, dims, scale=2.0 / dims**0.5),
        "c": normal(generator, hidden),
    }


def _weights(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Weights on shape[-1] hidden units that make outputs of deviation ``scale``."""
    return normal(generator, *shape, scale=scale * 2.0 / shape[-1] ** 0.5)


def _binary(shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    _, dims, hidden = shape
    output = {"V": _weights(generator, dims, hidden), "b": normal(generator, dims) - 1.5}
    return _recurrence(dims, hidden, generator) | output


@case(
    "nade_log_prob",
    family="nade",
    ours=functional.nade_log_prob,
    eager=plain.nade,
    peers={"python loop": plain.nade_loop},
    sizes={  # B, D, H
        "small": (8, 16, 16),
        "medium": (20, 196, 100),
        "large": (64, 784, 500),
        "odd": (33, 45, 29),
    },
    dtypes=WITH_BFLOAT16,
    grads=PARAMETERS,
    flops_per_element=lambda shape: (FLOPS[0] * shape[2], FLOPS[1] * shape[2]),
    second_order=("small",),
    heavy=("large",),
)
def nade_inputs(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    x = (torch.rand(shape[:2], generator=generator) < 0.2).float()
    return {"x": x} | {k: v.to(dtype) for k, v in _binary(shape, generator).items()}


@case(
    "nade_categorical_log_prob",
    family="nade",
    ours=functional.nade_categorical_log_prob,
    eager=plain.nade_categorical,
    sizes={  # B, D, H, C; large is scikit-learn's digits
        "small": (8, 9, 16, 5),
        "medium": (20, 64, 100, 17),
        "large": (100, 64, 500, 17),
        "odd": (33, 13, 29, 7),
    },
    dtypes=WITH_BFLOAT16,
    grads=PARAMETERS,
    flops_per_element=lambda shape: (2 * shape[2] * shape[3], 6 * shape[2] * shape[3]),
    second_order=("small",),
)
def nade_categorical_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    batch, dims, _, classes = shape
    x = torch.randint(0, classes, (batch, dims), generator=generator)
    return {"x": x} | {k: v.to(dtype) for k, v in _categorical(shape, generator).items()}


def _categorical(shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    _, dims, hidden, classes = shape
    return {
        "W": normal(generator, hidden, dims, classes, scale=2.0 / dims**0.5),
        "c": normal(generator, hidden),
        "V": _weights(generator, dims, classes, hidden),
        "b": normal(generator, dims, classes),
    }


@case(
    "rnade_log_prob",
    family="nade",
    ours=functional.rnade_log_prob,
    eager=plain.rnade,
    sizes={  # B, D, H, M
        "small": (8, 5, 16, 3),
        "medium": (100, 15, 50, 10),
        "large": (100, 63, 500, 10),
        "odd": (33, 13, 29, 7),
    },
    dtypes=WITH_BFLOAT16,
    grads=("x", "W", "c", *HEADS),
    flops_per_element=lambda shape: (6 * shape[2] * shape[3], 18 * shape[2] * shape[3]),
    second_order=("small",),
)
def rnade_inputs(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    x = normal(generator, *shape[:2])
    return {"x": x.to(dtype)} | {k: v.to(dtype) for k, v in _mixture(shape, generator).items()}


def _mixture(shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    _, dims, hidden, mixtures = shape
    inputs = _recurrence(dims, hidden, generator)
    for name in HEADS:
        if name.startswith("V"):
            inputs[name] = _weights(generator, dims, mixtures, hidden, scale=0.5)
        else:
            inputs[name] = normal(generator, dims, mixtures, scale=0.5)
    return inputs


def _sample_ours(W: Tensor, c: Tensor, V: Tensor, b: Tensor, noise: Tensor) -> Tensor:
    return functional.nade_sample(W, c, V, b, len(noise), noise=noise)


@case(
    "nade_sample",
    family="nade",
    ours=_sample_ours,
    eager=plain.nade_sample,
    sizes={
        "small": (4, 16, 16),
        "medium": (16, 784, 500),
        "large": (128, 784, 500),
        "odd": (3, 45, 29),
    },
    dtypes=SMALL_BFLOAT16,
    grads=(),
    # The loop over dimensions unrolls into a graph that compiles for minutes.
    compiled=False,
    flops_per_element=lambda shape: (5 * shape[0], 0),
)
def nade_sample_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    inputs = {k: v.to(dtype) for k, v in _binary(shape, generator).items()}
    return inputs | {"noise": torch.rand(shape[:2], generator=generator).to(dtype)}


def _categorical_sample_ours(W: Tensor, c: Tensor, V: Tensor, b: Tensor, noise: Tensor) -> Tensor:
    return functional.nade_categorical_sample(W, c, V, b, len(noise), noise=noise)


@case(
    "nade_categorical_sample",
    family="nade",
    ours=_categorical_sample_ours,
    eager=plain.nade_categorical_sample,
    sizes={
        "small": (4, 9, 16, 5),
        "medium": (16, 64, 500, 17),
        "large": (128, 64, 500, 17),
        "odd": (3, 13, 29, 7),
    },
    dtypes=SMALL_BFLOAT16,
    grads=(),
    compiled=False,
    flops_per_element=lambda shape: (2 * shape[0], 0),
)
def nade_categorical_sample_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    inputs = {k: v.to(dtype) for k, v in _categorical(shape, generator).items()}
    return inputs | {"noise": torch.rand(shape[:2], generator=generator).to(dtype)}


def _mixture_sample_ours(W: Tensor, c: Tensor, noise: Tensor, **heads: Tensor) -> Tensor:
    arguments: list[Any] = [W, c, *(heads[name] for name in HEADS), len(noise)]
    return functional.rnade_sample(*arguments, noise=noise)


@case(
    "rnade_sample",
    family="nade",
    ours=_mixture_sample_ours,
    eager=plain.rnade_sample,
    sizes={
        "small": (4, 5, 16, 3),
        "medium": (16, 63, 500, 10),
        "large": (128, 63, 500, 10),
        "odd": (3, 13, 29, 7),
    },
    dtypes=SMALL_BFLOAT16,
    grads=(),
    compiled=False,
    flops_per_element=lambda shape: (4 * shape[0], 0),
)
def rnade_sample_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    inputs = {k: v.to(dtype) for k, v in _mixture(shape, generator).items()}
    uniform = torch.rand(shape[:2], generator=generator)
    noise = torch.stack([uniform, normal(generator, *shape[:2])], -1)
    return inputs | {"noise": noise.to(dtype)}
