"""Benchmark cases of the mixture family."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_fast import functional
from dgm_fast.perf import plain
from dgm_fast.perf.cases_likelihood import SMALL_BFLOAT16, WITH_BFLOAT16, normal
from dgm_fast.perf.registry import Inputs, case


def _logistic_ours(params: Tensor, x: Tensor) -> Tensor:
    mixtures = params.shape[1] // (10 if x.shape[1] == 3 else 3)
    return functional.discretized_logistic_mixture_log_prob(params, x, num_mixtures=mixtures)


def _logistic_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    """Pixels drawn from components some ten levels wide, a few of them much narrower."""
    batch, channels, height, width, mixtures = shape
    rows = 3 if channels == 3 else 2
    params = normal(generator, batch, channels, rows, mixtures, height, width, scale=0.5)
    params[:, :, 1] = params[:, :, 1] * 2.0 - 3.0
    logits = normal(generator, batch, mixtures, height, width)
    params = torch.cat([logits, params.flatten(1, 3)], 1).to(dtype)
    x = functional.sample_discretized_logistic_mixture(
        params, num_mixtures=mixtures, generator=generator
    )
    return {"params": params, "x": x}


case(
    "discretized_logistic_mixture_log_prob",
    family="mixture",
    ours=_logistic_ours,
    eager=plain.discretized_logistic_mixture,
    sizes={  # B, C, H, W, M
        "small": (6, 3, 4, 4, 5),
        "medium": (16, 3, 32, 32, 10),
        "large": (64, 3, 32, 32, 10),
        "odd": (7, 3, 13, 11, 7),
    },
    dtypes=WITH_BFLOAT16,
    grads=("params",),
    # A parameter in ten is a logit; a mixture and channel costs some 40 operations, twice that back.
    flops_per_element=(13, 26),
    second_order=("small",),
)(_logistic_inputs)

case(
    "discretized_logistic_mixture_log_prob",
    variant="grey",
    family="mixture",
    ours=_logistic_ours,
    eager=plain.discretized_logistic_mixture,
    sizes={"medium": (32, 1, 28, 28, 10)},
    grads=("params",),
    flops_per_element=(15, 30),
)(_logistic_inputs)


@case(
    "gaussian_mixture_log_prob",
    family="mixture",
    ours=functional.gaussian_mixture_log_prob,
    eager=plain.gaussian_mixture,
    peers={"broadcast": plain.gaussian_mixture_broadcast},
    sizes={  # N, K, L; medium is a GMVAE's prior at batch 100 and ten importance samples
        "small": (64, 10, 2),
        "medium": (1000, 500, 10),
        "large": (10000, 500, 10),
        "odd": (333, 37, 5),
    },
    dtypes=SMALL_BFLOAT16,
    grads=("z", "means", "log_vars", "logits"),
    # Per z entry and component: difference, two products, a sum; backward forms them again.
    flops_per_element=lambda shape: (4 * shape[1], 10 * shape[1]),
    second_order=("small",),
    heavy=("large",),
)
def gaussian_mixture_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    rows, components, size = shape
    means = normal(generator, components, size)
    log_vars = normal(generator, components, size, scale=0.3) - 1.0
    component = torch.randint(0, components, (rows,), generator=generator)
    noise = normal(generator, rows, size) * torch.exp(0.5 * log_vars[component])
    return {
        "z": (means[component] + noise).to(dtype),
        "means": means.to(dtype),
        "log_vars": log_vars.to(dtype),
        "logits": normal(generator, components, scale=0.5).to(dtype),
    }
