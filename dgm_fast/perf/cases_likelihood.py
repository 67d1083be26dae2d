"""Benchmark cases of the likelihood family."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_fast import functional
from dgm_fast.perf import plain
from dgm_fast.perf.registry import Inputs, case

FLAT_SIZES = {"small": (8, 64), "medium": (128, 784), "large": (6400, 784), "odd": (33, 199)}
WITH_BFLOAT16 = {"medium": (torch.float32, torch.bfloat16)}
# Where the plain form strays too far in bfloat16 at larger sizes to be a rival: samples that tip over.
SMALL_BFLOAT16 = {"small": (torch.float32, torch.bfloat16)}


def normal(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=generator) * scale


def trained_logits(generator: torch.Generator, *shape: int) -> Tensor:
    """Bernoulli logits spread as a trained decoder's on sparse binary images: mostly sure of 0."""
    return normal(generator, *shape, scale=3.0) - 2.0


def draw_bits(logits: Tensor, generator: torch.Generator) -> Tensor:
    return torch.bernoulli(torch.sigmoid(logits), generator=generator)


def draw_classes(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Indices [..., D] drawn from logits [..., C, D] (Gumbel-max)."""
    uniform = torch.rand(logits.shape, generator=generator).clamp_min_(1e-20)
    return (logits - uniform.log_().neg_().log_()).argmax(-2)


def _distribution_bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    distribution = torch.distributions.Bernoulli(logits=logits.float(), validate_args=False)
    return distribution.log_prob(x).sum(-1)


def _distribution_normal(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    scale = torch.exp(0.5 * log_var.float())
    return torch.distributions.Normal(mean.float(), scale, validate_args=False).log_prob(x).sum(-1)


@case(
    "bernoulli_log_prob",
    family="likelihood",
    ours=functional.bernoulli_log_prob,
    eager=plain.bernoulli_log_prob,
    peers={"torch.distributions": _distribution_bernoulli},
    sizes=FLAT_SIZES,
    dtypes=WITH_BFLOAT16,
    grads=("logits",),
    flops_per_element=(5, 3),
    second_order=("medium",),
)
def bernoulli_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    logits = trained_logits(generator, *shape)
    return {"logits": logits.to(dtype), "x": draw_bits(logits, generator)}


@case(
    "gaussian_log_prob",
    family="likelihood",
    ours=functional.gaussian_log_prob,
    eager=plain.gaussian_log_prob,
    peers={"torch.distributions": _distribution_normal},
    sizes=FLAT_SIZES,
    dtypes=WITH_BFLOAT16,
    grads=("mean", "log_var"),
    flops_per_element=(6, 6),
    second_order=("medium",),
)
def gaussian_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    mean, log_var = normal(generator, *shape), normal(generator, *shape, scale=0.3) - 1.0
    x = mean + torch.exp(0.5 * log_var) * normal(generator, *shape)
    return {"x": x, "mean": mean.to(dtype), "log_var": log_var.to(dtype)}


@case(
    "gaussian_log_prob",
    variant="unit_variance",
    family="likelihood",
    ours=functional.gaussian_log_prob,
    eager=plain.unit_gaussian_log_prob,
    sizes={"medium": (128, 784), "large": (6400, 784)},
    grads=("mean",),
    flops_per_element=(3, 2),
)
def unit_gaussian_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    mean = normal(generator, *shape)
    return {"x": mean + normal(generator, *shape), "mean": mean.to(dtype)}


def _categorical_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    logits = normal(generator, *shape, scale=2.0)
    return {"logits": logits.to(dtype), "x": draw_classes(logits, generator)}


case(
    "categorical_log_prob",
    family="likelihood",
    ours=functional.categorical_log_prob,
    eager=plain.categorical_log_prob,
    sizes={
        "small": (8, 17, 64),
        "medium": (128, 17, 784),
        "large": (6400, 17, 784),
        "odd": (33, 19, 199),
    },
    dtypes=WITH_BFLOAT16,
    grads=("logits",),
    flops_per_element=(3, 3),
    second_order=("medium",),
    heavy=("large",),
)(_categorical_inputs)

case(
    "categorical_log_prob",
    variant="256_classes",
    family="likelihood",
    ours=functional.categorical_log_prob,
    eager=plain.categorical_log_prob,
    sizes={"medium": (16, 256, 784), "large": (640, 256, 784)},
    grads=("logits",),
    flops_per_element=(3, 3),
    heavy=("large",),
)(_categorical_inputs)
