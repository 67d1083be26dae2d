"""Registration of the spline family: monotone maps of one variable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgm_fast import reference
from dgm_fast.ops._registry import OpSpec, register, registered
from dgm_fast.reference._common import compute_dtype
from dgm_fast.reference.spline import ENDS

# The integer codes of the op's ``ends`` and ``parameterization`` arguments.
SPLINE_ENDS = {name: code for code, name in enumerate(ENDS)}
PARAMETERIZATIONS = {"nflows": 0, "zuko": 1, "distrax": 2, "madnis": 3, "pyro": 4}
PARAMETERIZATION_NAMES = tuple(PARAMETERIZATIONS)


def _spline_reference(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    bound: Tensor | None,
    inverse: bool,
    ends: int,
    tails: bool,
    left: float,
    right: float,
    bottom: float,
    top: float,
    min_bin_width: float,
    min_bin_height: float,
    min_derivative: float,
    parameterization: int,
    sum_log_det: bool,
) -> tuple[Tensor, Tensor]:
    return reference.rational_quadratic_spline(
        x,
        widths,
        heights,
        derivatives,
        inverse=inverse,
        ends=ENDS[ends],
        tails=tails,
        bound=bound,
        domain=(left, right, bottom, top),
        min_bin_width=min_bin_width,
        min_bin_height=min_bin_height,
        min_derivative=min_derivative,
        parameterization=PARAMETERIZATION_NAMES[parameterization],
        sum_log_det=sum_log_det,
    )


def _spline_fake(
    x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    shape = x.shape[:1] if options[-1] else x.shape
    return x.new_empty(x.shape), x.new_empty(shape, dtype=compute_dtype(x))


def _spline_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    parameters = normal(6, 5, 8), normal(6, 5, 8), normal(6, 5, 7)
    domain = (-3.0, 3.0, -3.0, 3.0)
    return (
        1.5 * normal(6, 5),
        *parameters,
        None,
        False,
        0,
        True,
        *domain,
        1e-3,
        1e-3,
        1e-3,
        0,
        True,
    )


register(
    OpSpec(
        "rational_quadratic_spline",
        "spline",
        reference=_spline_reference,
        fake=_spline_fake,
        example=_spline_example,
    )
)


def _cdf_reference(
    x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    return reference.logistic_mixture_cdf(x, logits, means, log_scales, inverse=inverse)


def _cdf_fake(
    x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=compute_dtype(x))


def _cdf_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x, *parameters = (
        torch.randn(shape, device=device, dtype=dtype) for shape in ((6, 5), *(3 * [(6, 5, 4)]))
    )
    return (x, *parameters, False)


register(
    OpSpec(
        "logistic_mixture_cdf",
        "spline",
        reference=_cdf_reference,
        fake=_cdf_fake,
        example=_cdf_example,
    )
)

rational_quadratic_spline = registered("rational_quadratic_spline")
logistic_mixture_cdf = registered("logistic_mixture_cdf")
