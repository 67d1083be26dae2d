"""Cases of the mixture family."""

from __future__ import annotations

import torch
from helpers.cases_likelihood import _generator, _randn
from helpers.op_checks import OpCase
from torch import Tensor

from dgm_fast import functional, reference


def logistic_inputs(
    batch: int,
    channels: int,
    height: int,
    width: int,
    mixtures: int,
    levels: int = 256,
    x_shape: tuple[int, ...] | None = None,
    log_scale: float = -2.0,
):
    """(params, x): components near the data, some of them narrow, and pixels in the outermost bins."""
    rows = (10 if channels == 3 else 3) * mixtures
    shape = (batch, channels, height, width) if x_shape is None else x_shape

    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        params = _randn((batch, rows, height, width), torch.float64, 0.5, generator)
        # Which rows are log-scales depends on the packing; a shift of the later half suits both.
        params[:, rows // 2 :] += log_scale
        x = torch.randint(0, levels, shape, generator=generator)
        x[..., 0, 0], x[..., -1, -1] = 0, levels - 1
        return params.to(dtype), (x.double() * (2 / (levels - 1)) - 1).to(
            torch.float64 if dtype == torch.float64 else torch.float32
        )

    return build


def _logistic(id: str, build, **options) -> OpCase:
    return OpCase(
        f"logistic-{id}",
        "discretized_logistic_mixture_log_prob",
        lambda params, x: functional.discretized_logistic_mixture_log_prob(params, x, **options),
        lambda params, x: reference.discretized_logistic_mixture_log_prob(params, x, **options),
        build,
        (0,),
    )


def gaussian_mixture_inputs(
    z_shape: tuple[int, ...], components: int, logits: bool, spread: float = 1.0
):
    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        size = z_shape[-1]
        tensors = [
            _randn(z_shape, dtype, 1.5, generator),
            _randn((components, size), dtype, spread, generator),
            _randn((components, size), dtype, 0.5, generator),
        ]
        if logits:
            tensors.append(_randn((components,), dtype, 1.0, generator))
        return tuple(tensors)

    return build


def _gaussian_mixture(id: str, z_shape: tuple[int, ...], components: int, logits: bool) -> OpCase:
    return OpCase(
        f"gaussian_mixture-{id}",
        "gaussian_mixture_log_prob",
        functional.gaussian_mixture_log_prob,
        reference.gaussian_mixture_log_prob,
        gaussian_mixture_inputs(z_shape, components, logits),
        tuple(range(4 if logits else 3)),
    )


# Sizes below, at and across vector lanes, tiles of rows and blocks of components.
CASES = [
    _logistic("colour", logistic_inputs(2, 3, 2, 3, 3), num_mixtures=3),
    _logistic("grey", logistic_inputs(2, 1, 3, 5, 4), num_mixtures=4),
    _logistic(
        "parameter-major",
        logistic_inputs(2, 3, 2, 9, 2),
        num_mixtures=2,
        packing="parameter",
    ),
    _logistic("one", logistic_inputs(1, 1, 1, 1, 1), num_mixtures=1),
    _logistic("16-levels", logistic_inputs(2, 1, 3, 3, 2, levels=16), num_mixtures=2, levels=16),
    _logistic("binary", logistic_inputs(2, 1, 3, 3, 2, levels=2), num_mixtures=2, levels=2),
    _logistic("1024-levels", logistic_inputs(1, 3, 3, 3, 2, 1024), num_mixtures=2, levels=1024),
    _logistic("shared-data", logistic_inputs(3, 3, 2, 2, 2, x_shape=(1, 3, 2, 2)), num_mixtures=2),
    _logistic("event-data", logistic_inputs(3, 1, 2, 2, 2, x_shape=(1, 2, 2)), num_mixtures=2),
    _logistic("wide", logistic_inputs(2, 1, 3, 3, 2, log_scale=3.0), num_mixtures=2),
    _gaussian_mixture("rows", (5, 3), 4, True),
    _gaussian_mixture("uniform", (5, 3), 4, False),
    _gaussian_mixture("samples", (3, 4, 6), 19, True),
    _gaussian_mixture("one-component", (4, 5), 1, True),
    _gaussian_mixture("one-dimension", (9, 1), 3, True),
    _gaussian_mixture("single", (2,), 3, False),
    _gaussian_mixture("one", (1, 1), 1, False),
]

LARGE = [
    _logistic("large", logistic_inputs(4, 3, 19, 21, 10), num_mixtures=10),
    _logistic("large-grey", logistic_inputs(3, 1, 40, 40, 5), num_mixtures=5),
    _gaussian_mixture("large", (400, 10), 130, True),
    _gaussian_mixture("thousand-components", (70, 7), 1100, True),
    _gaussian_mixture("long", (33, 301), 9, False),
]
