"""Benchmark cases of the masked family. Rivals get their mask ready made."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_fast import functional, reference
from dgm_fast.perf import plain
from dgm_fast.perf.cases_likelihood import draw_bits, normal
from dgm_fast.perf.registry import Inputs, case

MEDIUM_AND_LARGE = {
    "medium": (torch.float32, torch.bfloat16),
    "large": (torch.float32, torch.bfloat16),
}


def _linear_ours(
    x: Tensor, weight: Tensor, bias: Tensor, in_degrees: Tensor, out_degrees: Tensor, mask: Tensor
) -> Tensor:
    return functional.masked_linear(x, weight, bias, in_degrees, out_degrees)


def _linear_plain(
    x: Tensor, weight: Tensor, bias: Tensor, in_degrees: Tensor, out_degrees: Tensor, mask: Tensor
) -> Tensor:
    return plain.masked_linear(x, weight, bias, mask)


@case(
    "masked_linear",
    family="masked",
    ours=_linear_ours,
    eager=_linear_plain,
    sizes={  # B, in, out
        "small": (8, 16, 16),
        "medium": (64, 784, 500),
        "large": (100, 3000, 3000),
        "odd": (33, 199, 145),
    },
    grads=("x", "weight", "bias"),
    dtypes=MEDIUM_AND_LARGE,
    # Half of the weights count: two operations each, and four in backward.
    flops_per_element=lambda shape: (shape[2], 2 * shape[2]),
    rival_inputs=("mask",),
    second_order=("small",),
)
def masked_linear_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    batch, inputs, outputs = shape
    in_degrees = torch.arange(1, inputs + 1)
    out_degrees = torch.randint(1, inputs, (outputs,), generator=generator).sort().values
    return {
        "x": normal(generator, batch, inputs).to(dtype),
        "weight": normal(generator, outputs, inputs, scale=inputs**-0.5).to(dtype),
        "bias": normal(generator, outputs).to(dtype),
        "in_degrees": in_degrees,
        "out_degrees": out_degrees,
        "mask": reference.degree_mask(in_degrees, out_degrees).to(dtype),
    }


def _fvsbn_ours(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    return functional.fvsbn_log_prob(x, weight, bias)


@case(
    "fvsbn_log_prob",
    family="masked",
    ours=_fvsbn_ours,
    eager=plain.fvsbn,
    sizes={  # B, D
        "small": (8, 16),
        "medium": (64, 784),
        "large": (512, 784),
        "odd": (33, 199),
    },
    grads=("weight", "bias"),
    dtypes=MEDIUM_AND_LARGE,
    flops_per_element=lambda shape: (shape[1], shape[1]),
    rival_inputs=("mask",),
    second_order=("small",),
)
def fvsbn_inputs(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    batch, size = shape
    return {
        "x": draw_bits(normal(generator, batch, size) - 1.5, generator),
        "weight": normal(generator, size, size, scale=size**-0.5).to(dtype),
        "bias": (normal(generator, size) - 1.5).to(dtype),
        "mask": torch.ones(size, size).tril(-1).to(dtype),
    }
