"""Cases of the spline family."""

from __future__ import annotations

from typing import Any

import torch
from helpers.cases_likelihood import _generator, _randn
from helpers.op_checks import OpCase
from torch import Tensor

from dgm_fast import functional, reference


def spline_inputs(
    shape: tuple[int, ...],
    bins: int,
    slopes: int,
    shared: tuple[int, ...] | None = None,
    spread: float = 1.0,
    unit: bool = False,
):
    """(x, widths, heights, derivatives): x reaches beyond [-1, 1], or lies within [0, 1]."""

    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        x = _randn(shape, torch.float64, 0.7, generator)
        leading = shape if shared is None else shared
        return (
            (torch.sigmoid(x) if unit else x).to(dtype),
            _randn((*leading, bins), dtype, spread, generator),
            _randn((*leading, bins), dtype, spread, generator),
            _randn((*leading, slopes), dtype, spread, generator),
        )

    return build


def pyro_inputs(shape: tuple[int, ...], bins: int):
    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, widths, heights, derivatives = spline_inputs(shape, bins, bins - 1)(torch.float64)
        shares = (widths.softmax(-1), heights.softmax(-1), derivatives.exp())
        return tuple(t.to(dtype) for t in (x, *shares))

    return build


def _reference(x: Tensor, *parameters: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The reference under the names of the public function."""
    tails = options.pop("tails", "linear")
    bound = options.pop("tail_bound", 1.0)
    if tails is None:
        options["domain"] = (0.0, 1.0, 0.0, 1.0)
    elif isinstance(bound, Tensor):
        options["bound"] = bound
    else:
        options["domain"] = (-bound, bound, -bound, bound)
    ends = {"linear": "fixed", "circular": "periodic", None: "free"}[tails]
    return reference.rational_quadratic_spline(
        x, *parameters, ends=ends, tails=tails is not None, **options
    )


def both(y: Tensor, log_det: Tensor) -> Tensor:
    """The two results as one tensor, each entry with a gradient of its own."""
    return torch.cat([y.flatten().to(log_det.dtype), log_det.flatten()])


def _case(id: str, build, pick=both, **options: Any) -> OpCase:
    return OpCase(
        f"spline-{id}",
        "rational_quadratic_spline",
        lambda *t: pick(*functional.rational_quadratic_spline(*t, **options)),
        lambda *t: pick(*_reference(*t, **options)),
        build,
        (0, 1, 2, 3),
    )


def _value(y: Tensor, log_det: Tensor) -> Tensor:
    return y


def _log_det(y: Tensor, log_det: Tensor) -> Tensor:
    return log_det


def _each_way(id: str, build, **options: Any) -> list[OpCase]:
    return [
        _case(f"{id}-forward", build, **options),
        _case(f"{id}-inverse", build, inverse=True, **options),
    ]


def _cdf_inputs(
    shape: tuple[int, ...],
    components: int,
    shared: tuple[int, ...] | None = None,
    unit: bool = False,
    log_scale: float = -0.5,
):
    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        x = _randn(shape, torch.float64, 1.0, generator)
        # No quantile is so close to the edge that float16 rounds it there.
        x = 0.02 + 0.96 * torch.sigmoid(1.5 * x) if unit else x
        leading = shape if shared is None else shared
        logits, means, log_scales = (
            _randn((*leading, components), torch.float64, s, generator) for s in (1.0, 1.5, 0.5)
        )
        return tuple(t.to(dtype) for t in (x, logits, means, log_scales + log_scale))

    return build


def _cdf(id: str, shape: tuple[int, ...], components: int, pick=both, **options: Any) -> OpCase:
    inverse = options.pop("inverse", False)
    return OpCase(
        f"cdf-{id}",
        "logistic_mixture_cdf",
        lambda *t: pick(*functional.logistic_mixture_cdf(*t, inverse=inverse)),
        lambda *t: pick(*reference.logistic_mixture_cdf(*t, inverse=inverse)),
        _cdf_inputs(shape, components, unit=inverse, **options),
        (0, 1, 2, 3),
    )


# Elements below, at and across vector lanes; K below and across them too.
CASES = [
    *_each_way("rows", spline_inputs((9, 7), 4, 3)),
    _case("value", spline_inputs((9, 7), 4, 3), _value),
    _case("log-det", spline_inputs((9, 7), 4, 3), _log_det),
    _case("inverse-log-det", spline_inputs((9, 7), 4, 3), _log_det, inverse=True),
    *_each_way("summed", spline_inputs((5, 3, 4), 4, 3), sum_log_det=True),
    *_each_way("circular", spline_inputs((4, 3), 5, 5), tails="circular"),
    *_each_way("no-tails", spline_inputs((4, 3), 5, 6, unit=True), tails=None),
    *_each_way("shared", spline_inputs((3, 4, 2), 5, 4, shared=(4, 1))),
    _case("shared-by-all", spline_inputs((9,), 5, 4, shared=())),
    *_each_way("zuko", spline_inputs((4, 3), 5, 4), parameterization="zuko"),
    _case(
        "distrax", spline_inputs((4, 3), 3, 4, unit=True), tails=None, parameterization="distrax"
    ),
    _case("madnis", spline_inputs((4, 3), 3, 4, unit=True), tails=None, parameterization="madnis"),
    *_each_way("pyro", pyro_inputs((4, 3), 5), parameterization="pyro"),
    _case("wide-minima", spline_inputs((5, 3), 4, 3), min_bin_width=0.2, min_derivative=0.5),
    OpCase(
        "spline-bound-by-feature",
        "rational_quadratic_spline",
        lambda *t: both(*functional.rational_quadratic_spline(*t[:-1], tail_bound=t[-1])),
        lambda *t: both(*_reference(*t[:-1], tail_bound=t[-1])),
        lambda dtype: (
            *spline_inputs((5, 3), 4, 3)(dtype),
            torch.tensor([0.5, 1.0, 2.0]).to(dtype),
        ),
        (0, 1, 2, 3),
    ),
    _case("17-bins", spline_inputs((3, 2), 17, 16)),
    _case("one-bin", spline_inputs((5,), 1, 0)),
    _case("one-bin-circular", spline_inputs((5,), 1, 1), tails="circular"),
    _case("one", spline_inputs((1, 1), 2, 1)),
    _cdf("rows", (5, 3), 4),
    _cdf("value", (5, 3), 4, _value),
    _cdf("log-density", (5, 3), 4, _log_det),
    _cdf("inverse", (5, 3), 4, inverse=True),
    _cdf("inverse-value", (5, 3), 4, _value, inverse=True),
    _cdf("shared", (3, 4, 2), 5, shared=(4, 1)),
    _cdf("inverse-shared", (3, 4, 2), 5, shared=(4, 1), inverse=True),
    _cdf("narrow", (5, 3), 3, log_scale=-2.0),
    _cdf("17-components", (3, 2), 17),
    _cdf("one-component", (4,), 1),
    _cdf("two-components", (17, 1), 2, inverse=True),
]

LARGE = [
    *_each_way("large", spline_inputs((129, 33), 8, 7, spread=1.5), tail_bound=1.5),
    _case("large-summed", spline_inputs((3, 2100), 10, 9), sum_log_det=True),
    _cdf("large", (129, 33), 10),
    _cdf("large-inverse", (65, 17), 32, inverse=True),
    _case("large-zuko", spline_inputs((700, 3), 32, 31), parameterization="zuko"),
]
