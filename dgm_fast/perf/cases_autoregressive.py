"""Benchmark cases of the inversion of masked autoregressive networks, against a pass a dimension."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dgm_fast import functional
from dgm_fast.perf import plain
from dgm_fast.perf.cases_likelihood import SMALL_BFLOAT16, normal
from dgm_fast.perf.registry import Inputs, case

BINS, BOUND = 8, 3.0
FLOW_SIZES = {  # B, D, H, two hidden layers
    "small": (8, 8, 32),
    "medium": (256, 64, 256),
    "large": (1024, 64, 512),
    "odd": (33, 19, 37),
}


# A model holds them as buffers.
@functools.cache
def _degrees(units: int, dims: int) -> Tensor:
    return 1 + torch.arange(units) * max(1, dims - 1) // units


def _network(
    dims: int, hidden: tuple[int, ...], outputs: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Weights with zeros where the mask has them, so that a rival needs no mask of its own."""
    widths = (dims, *hidden, outputs * dims)
    degrees = [
        torch.arange(1, dims + 1),
        *(_degrees(units, dims) for units in hidden),
        torch.arange(1, dims + 1).repeat_interleave(outputs) - 1,
    ]
    layers = {}
    for i, ((width_in, width_out), (seen, degree)) in enumerate(
        zip(pairwise(widths), pairwise(degrees), strict=True), 1
    ):
        weight = normal(generator, width_out, width_in, scale=width_in**-0.5)
        layers[f"W{i}"] = torch.where(seen <= degree.unsqueeze(1), weight, 0.0)
        layers[f"b{i}"] = normal(generator, width_out, scale=0.1)
    return layers


def _inverse(transform: functional.ElementMap, z: Tensor, layers: dict[str, Tensor]) -> Tensor:
    count = len(layers) // 2
    network = functional.MaskedNetwork(
        tuple(layers[f"W{i}"] for i in range(1, count + 1)),
        tuple(layers[f"b{i}"] for i in range(1, count + 1)),
        tuple(_degrees(len(layers[f"W{i}"]), z.shape[1]) for i in range(1, count)),
    )
    x, log_abs_det = functional.autoregressive_inverse(network, transform, z)
    return x if log_abs_det is None else torch.cat([x, log_abs_det.unsqueeze(1)], 1)


def _made_sample(z: Tensor, **layers: Tensor) -> Tensor:
    return _inverse(functional.BernoulliDraw(), z, layers)


def _affine_flow(z: Tensor, **layers: Tensor) -> Tensor:
    return _inverse(functional.AffineMap(), z, layers)


def _maf(z: Tensor, **layers: Tensor) -> Tensor:
    return _inverse(functional.AffineMap("softplus", inverse=True), z, layers)


def _spline_flow(z: Tensor, **layers: Tensor) -> Tensor:
    return _inverse(functional.SplineMap(BINS, tail_bound=BOUND, inverse=True), z, layers)


def _peers(kind: str) -> dict[str, Callable[..., Any]]:
    """nflows' inversion, where it is installed, of the same network without a mask to apply."""
    try:
        transforms = importlib.import_module("nflows.transforms.autoregressive")
    except ImportError:
        return {}

    class Conditioner(torch.nn.Module):
        def __init__(self, layers: dict[str, Tensor], flip: bool) -> None:
            super().__init__()
            self.layers, self.flip = layers, flip

        def forward(self, x: Tensor, context: None) -> Tensor:
            params = plain.relu_network(x, self.layers)
            # nflows has the shift last.
            return params.unflatten(1, (-1, 2)).flip(2).flatten(1) if self.flip else params

    @functools.cache
    def transform_of(dims: int) -> Any:
        if kind == "maf":
            return transforms.MaskedAffineAutoregressiveTransform(dims, 1)
        return transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            dims, 1, num_bins=BINS, tails="linear", tail_bound=BOUND
        )

    def inverse(z: Tensor, **layers: Tensor) -> Tensor:
        transform = transform_of(z.shape[1])
        transform.autoregressive_net = Conditioner(layers, kind == "maf")
        x, log_det = transform.inverse(z)
        return torch.cat([x, log_det.unsqueeze(1)], 1)

    return {"nflows": inverse}


@case(
    "autoregressive_inverse",
    variant="made_sample",
    family="autoregressive",
    ours=_made_sample,
    eager=plain.made_sample,
    sizes={  # B, D, H
        "small": (4, 16, 16),
        "medium": (16, 784, 500),
        "large": (64, 784, 500),
        "odd": (3, 45, 29),
    },
    dtypes=SMALL_BFLOAT16,
    grads=(),
    # The loop over dimensions unrolls into a graph that compiles for minutes.
    compiled=False,
    # Half of the weights, a product and a sum each.
    flops_per_element=lambda shape: (2 * shape[2], 0),
)
def made_sample_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    batch, dims, hidden = shape
    z = torch.rand(batch, dims, generator=generator)
    layers = _network(dims, (hidden,), 1, generator)
    return {k: v.to(dtype) for k, v in ({"z": z} | layers).items()}


@case(
    "autoregressive_inverse",
    variant="affine_flow",
    family="autoregressive",
    ours=_affine_flow,
    eager=plain.affine_flow_inverse,
    sizes=FLOW_SIZES,
    dtypes=SMALL_BFLOAT16,
    grads=(),
    compiled=False,
    flops_per_element=lambda shape: (3 * shape[2] + shape[2] ** 2 // shape[1], 0),
)
def affine_flow_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    batch, dims, hidden = shape
    z = normal(generator, batch, dims)
    layers = _network(dims, (hidden, hidden), 2, generator)
    return {k: v.to(dtype) for k, v in ({"z": z} | layers).items()}


@case(
    "autoregressive_inverse",
    variant="maf",
    family="autoregressive",
    ours=_maf,
    eager=plain.maf_inverse,
    peers=_peers("maf"),
    sizes={size: FLOW_SIZES[size] for size in ("small", "medium", "odd")},
    grads=(),
    compiled=False,
    flops_per_element=lambda shape: (3 * shape[2] + shape[2] ** 2 // shape[1], 0),
)
def maf_inputs(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    return affine_flow_inputs(shape, dtype, generator)


@case(
    "autoregressive_inverse",
    variant="spline_flow",
    family="autoregressive",
    ours=_spline_flow,
    eager=plain.spline_flow_inverse,
    peers=_peers("spline"),
    sizes={size: FLOW_SIZES[size] for size in ("small", "medium", "odd")},
    grads=(),
    compiled=False,
    flops_per_element=lambda shape: (
        3 * BINS * shape[2] + shape[2] ** 2 // shape[1] + 60 + 2 * 14 * BINS,
        0,
    ),
)
def spline_flow_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    batch, dims, hidden = shape
    z = normal(generator, batch, dims, scale=1.5)
    layers = _network(dims, (hidden, hidden), 3 * BINS - 1, generator)
    return {k: v.to(dtype) for k, v in ({"z": z} | layers).items()}
