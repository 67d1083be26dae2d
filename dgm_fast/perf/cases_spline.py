"""Benchmark cases of the spline family, with nflows and zuko beside us where they are installed."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dgm_fast import functional
from dgm_fast.perf import plain
from dgm_fast.perf.cases_likelihood import normal
from dgm_fast.perf.registry import Inputs, case

BOUND = 3.0
GRADS = ("x", "widths", "heights", "derivatives")
SIZES = {  # B, D, K
    "small": (32, 8, 8),
    "medium": (4096, 32, 8),
    "large": (65536, 16, 8),
    "odd": (513, 7, 5),
}


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Parameters lie side by side in memory, as a network leaves them; 5 % of x is in the tails."""
    batch, dims, bins = shape
    packed = normal(generator, batch, dims, 3 * bins - 1).to(dtype)
    widths, heights, derivatives = packed.split([bins, bins, bins - 1], -1)
    x = normal(generator, batch, dims, scale=1.5).to(dtype)
    return {"x": x, "widths": widths, "heights": heights, "derivatives": derivatives}


def _peers(inverse: bool) -> dict[str, Callable[..., Any]]:
    """Rivals that are installed: nflows as it is."""
    try:
        nflows = importlib.import_module("nflows.transforms.splines.rational_quadratic")
    except ImportError:
        return {}

    def spline(x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor) -> Any:
        # In float32 at least: bfloat16 gives inf and NaN.
        inputs = [
            t.float() if t.dtype.itemsize < 4 else t for t in (x, widths, heights, derivatives)
        ]
        y, log_det = nflows.unconstrained_rational_quadratic_spline(
            *inputs, inverse=inverse, tails="linear", tail_bound=BOUND
        )
        return y.to(x.dtype), log_det

    return {"nflows": spline}


def _zuko_peers(inverse: bool) -> dict[str, Callable[..., Any]]:
    """zuko as it is, and compiled."""
    try:
        transforms = importlib.import_module("zuko.transforms")
    except ImportError:
        return {}

    def spline(x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor) -> Any:
        transform = transforms.MonotonicRQSTransform(widths, heights, derivatives, bound=BOUND)
        return (transform.inv if inverse else transform).call_and_ladj(x)

    return {"zuko": spline, "zuko compiled": torch.compile(spline, dynamic=False)}


# A parameter costs an exponential and a few sums, an element some 60 operations; backward forms both again.
FLOPS = {bins: (60 + 2 * 14 * bins, 150 + 2 * 22 * bins) for bins in (5, 8)}

for inverse in (False, True):
    case(
        "rational_quadratic_spline",
        variant="inverse" if inverse else "",
        family="spline",
        ours=functools.partial(
            functional.rational_quadratic_spline, tail_bound=BOUND, inverse=inverse
        ),
        eager=functools.partial(plain.rational_quadratic_spline, bound=BOUND, inverse=inverse),
        peers=_peers(inverse),
        sizes=SIZES,
        dtypes={"medium": (torch.float32, torch.bfloat16)},
        grads=GRADS,
        flops_per_element=lambda shape: FLOPS[shape[2]],
        second_order=("small",),
    )(_inputs)
    case(
        "rational_quadratic_spline",
        variant="zuko_inverse" if inverse else "zuko",
        family="spline",
        ours=functools.partial(
            functional.rational_quadratic_spline,
            tail_bound=BOUND,
            inverse=inverse,
            parameterization="zuko",
        ),
        eager=functools.partial(
            plain.rational_quadratic_spline, bound=BOUND, inverse=inverse, parameterization="zuko"
        ),
        peers=_zuko_peers(inverse),
        sizes={size: SIZES[size] for size in ("medium", "large")},
        grads=GRADS,
        flops_per_element=lambda shape: FLOPS[shape[2]],
    )(_inputs)


def _mixture_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    batch, dims, components = shape
    names = ("logits", "means", "log_scales")
    packed = normal(generator, batch, dims, 3 * components).to(dtype)
    inputs = dict(zip(names, packed.chunk(3, -1), strict=True))
    return {"x": 1.5 * normal(generator, batch, dims).to(dtype)} | inputs


def _quantile_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    # Within the range where float32 halvings of z itself still find the quantile.
    inputs = _mixture_inputs(shape, dtype, generator)
    return inputs | {"x": 0.05 + 0.9 * torch.rand(shape[:2], generator=generator).to(dtype)}


case(
    "logistic_mixture_cdf",
    family="spline",
    ours=functional.logistic_mixture_cdf,
    eager=plain.logistic_mixture_cdf,
    sizes={  # B, D, M
        "small": (32, 8, 4),
        "medium": (1024, 32, 8),
        "large": (4096, 32, 32),
        "odd": (513, 7, 5),
    },
    dtypes={"medium": (torch.float32, torch.bfloat16)},
    grads=("x", "logits", "means", "log_scales"),
    flops_per_element=lambda shape: (60 * shape[2], 90 * shape[2]),
    second_order=("small",),
)(_mixture_inputs)

case(
    "logistic_mixture_cdf",
    variant="inverse",
    family="spline",
    ours=functools.partial(functional.logistic_mixture_cdf, inverse=True),
    eager=plain.logistic_mixture_quantile,
    sizes={"small": (32, 8, 4), "medium": (1024, 32, 8), "large": (4096, 32, 32)},
    grads=("x", "logits", "means", "log_scales"),
    # A hundred halvings unroll into a graph that compiles for minutes.
    compiled=False,
    flops_per_element=lambda shape: (200 * shape[2], 90 * shape[2]),
    heavy=("large",),
)(_quantile_inputs)
