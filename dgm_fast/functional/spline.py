"""Monotone maps of one variable with their log-derivatives: splines, CDFs of logistic mixtures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dgm_fast import ops, reference
from dgm_fast.functional._checks import (
    check_floating,
    promoted,
    raise_unless_valid,
    unit_interval,
    values_visible,
)

TAILS = ("linear", "circular")


def rational_quadratic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *,
    inverse: bool = False,
    tails: str | Sequence[str] | None = "linear",
    tail_bound: float | Tensor = 1.0,
    left: float = 0.0,
    right: float = 1.0,
    bottom: float = 0.0,
    top: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    parameterization: str = "nflows",
    sum_log_det: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Monotone rational-quadratic spline of K bins, element by element.

    The domain [-B, B] (without tails: [left, right]) is divided into bins of widths
    :math:`w_k \propto m + (1 - K m)\,\mathrm{softmax}(\text{widths})_k`, its image likewise by ``heights``,
    with slopes :math:`d_k = m' + \mathrm{softplus}(\text{derivatives})_k` at the knots. Within bin k, with
    :math:`\theta = (x - x_k) / w_k` and :math:`\delta = h_k / w_k`,

    .. math:: y = y_k + \frac{h_k\,[\delta \theta^2 + d_k \theta (1 - \theta)]}
        {\delta + (d_k + d_{k+1} - 2 \delta)\,\theta (1 - \theta)}

    Bins are closed to the left. Knots are summed with compensation, so that float32 results are closer to
    those of float64 than knots that are themselves rounded.

    Args:
        x: floating point, any shape. With ``inverse`` a point of the image.
        widths, heights: [..., K], whose leading dimensions broadcast to the shape of x.
        derivatives: [..., K - 1] for linear tails, where the outermost slopes are 1; [..., K] for
            circular ones, where they are equal; [..., K + 1] without tails or for tails by feature. With
            K + 1 and ``tails="linear"`` slope 1 is put before them and the last left out, as in nflows: the
            last slope is then not 1.
        inverse: the inverse map, and its own log-derivative.
        tails: "linear" or "circular": the identity outside [-B, B] (circular: with equal slopes at both
            ends); a sequence of these, one for each entry of x's last dimension; None: x must lie in the
            domain.
        tail_bound: B, a number or a tensor that broadcasts to x (no gradient).
        left, right, bottom, top: the domain and its image, where ``tails`` is None.
        min_bin_width, min_bin_height: least share of the domain, m.
        min_derivative: least slope, m'.
        parameterization:
            "nflows": as above (also normflows, VITS, and the code of the paper);
            "zuko": softmax of u / (1 + abs(2 u / log m')) without a least share, and slopes
            exp(u / (1 + abs(u / log m')));
            "distrax": slopes m' + softplus(u + c), 1 at u = 0;
            "madnis": slopes (m' + softplus(u)) / (m' + log 2);
            "pyro": widths and heights are shares already (they sum to 1), slopes m' + u, outermost
            1 - m'.
        sum_log_det: sum the log-derivatives over all dimensions but the first.

    Returns:
        y like x, and log |dy/dx| of the shape of x (or [B]), float32 (float64 for float64 arguments).
        Differentiable in x, widths, heights and derivatives; only the arguments are kept for backward.

    Raises:
        TypeError: if an argument is not a floating-point tensor.
        ValueError: if shapes, devices or options do not match, if ``tail_bound`` requires grad, or without
            tails (on the CPU, or on CUDA under ``check_values(True)``) if x lies outside the domain;
            otherwise such an entry is NaN.

    Source: Durkan et al., "Neural Spline Flows" (2019), equations 4-8; Gregory and Delbourgo (1982).
    """
    check_floating(x=x, widths=widths, heights=heights, derivatives=derivatives)
    bins = _check_parameters(x, widths, heights)
    check_options(bins, min_bin_width, min_bin_height, min_derivative, parameterization)
    bound = None
    if tails is None:
        check_domain(left, right, bottom, top)
    elif isinstance(tail_bound, Tensor):
        bound = _check_bound(tail_bound, x)
    else:
        if not tail_bound > 0:
            raise ValueError(f"tail_bound must be positive, got {tail_bound}")
        left, right, bottom, top = -tail_bound, tail_bound, -tail_bound, tail_bound
    ends = "free"
    if tails is not None and not isinstance(tails, str):
        needed, derivatives = (
            bins + 1,
            _ends_by_feature(x, derivatives, bins, tails, min_derivative, parameterization),
        )
    elif tails is None:
        needed = bins + 1
    elif tails == "circular":
        needed, ends = bins, "periodic"
    elif tails != "linear":
        raise ValueError(f"tails must be one of {TAILS}, a sequence of them or None, got {tails!r}")
    elif derivatives.ndim > 0 and derivatives.shape[-1] == bins + 1:
        needed = bins + 1
        unit = derivatives.new_tensor(_unit_slope(min_derivative, parameterization))
        unit = unit.expand((*derivatives.shape[:-1], 1))
        derivatives = torch.cat([unit, derivatives[..., :-1]], -1)
    else:
        needed, ends = bins - 1, "fixed"
    if derivatives.ndim < 1 or derivatives.shape[-1] != needed:
        raise ValueError(
            f"derivatives must have shape [..., {needed}] for {bins} bins and tails={tails!r}, "
            f"got {tuple(derivatives.shape)}"
        )
    _check_leading("derivatives", derivatives, x)
    x, widths, heights, derivatives = promoted(x, widths, heights, derivatives)
    if sum_log_det and x.ndim == 0:
        raise ValueError("sum_log_det needs an x of at least one dimension, got a scalar")
    with_tails = tails is not None
    if not with_tails:
        low, high = (bottom, top) if inverse else (left, right)
        own_check = x.is_cpu and ops.use_kernel(x, "spline")
        if not own_check and (x.is_cpu or ops.values_checked()) and values_visible():
            raise_unless_valid(x, (x >= low) & (x <= high), f"values in [{low}, {high}]")
    if ops.use_kernel(x, "spline"):
        y, log_det = ops.rational_quadratic_spline(
            x,
            widths,
            heights,
            derivatives,
            bound,
            inverse,
            ops.SPLINE_ENDS[ends],
            with_tails,
            float(left),
            float(right),
            float(bottom),
            float(top),
            float(min_bin_width),
            float(min_bin_height),
            float(min_derivative),
            ops.PARAMETERIZATIONS[parameterization],
            sum_log_det,
        )
        return y, log_det
    return reference.rational_quadratic_spline(
        x,
        widths,
        heights,
        derivatives,
        inverse=inverse,
        ends=ends,
        tails=with_tails,
        bound=bound,
        domain=(left, right, bottom, top),
        min_bin_width=min_bin_width,
        min_bin_height=min_bin_height,
        min_derivative=min_derivative,
        parameterization=parameterization,
        sum_log_det=sum_log_det,
    )


def logistic_mixture_cdf(
    x: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    *,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""CDF of a mixture of M logistics, element by element, with its log-derivative, the log-density.

    .. math:: z = \sum_m \pi_m\, \sigma\!\left(\frac{x - \mu_m}{s_m}\right), \qquad
        \log \frac{dz}{dx} = \log \sum_m \frac{\pi_m}{s_m}\, \sigma\!\left(\frac{x - \mu_m}{s_m}\right)
        \sigma\!\left(-\frac{x - \mu_m}{s_m}\right), \qquad \pi = \mathrm{softmax}(\text{logits})

    The inverse is found by Newton's method on the logit of z, safeguarded by bisection, to the precision of
    the dtype; its derivatives are those of the implicit function.

    Args:
        x: floating point, any shape; with ``inverse`` z in [0, 1], whose ends give minus and plus infinity.
        logits: [..., M], the mixture on the last dimension; leading dimensions broadcast to the shape of x.
        means: [..., M].
        log_scales: log s, [..., M].
        inverse: the quantile function, and its own log-derivative.

    Returns:
        z (with ``inverse`` x) of the shape and dtype of x, and the log-derivative of each element, float32
        (float64 for float64 arguments). Differentiable in all arguments.

    Raises:
        TypeError: if an argument is not a floating-point tensor.
        ValueError: if shapes or devices do not match, or with ``inverse`` (on the CPU, or on CUDA under
            ``check_values(True)``) if an element lies outside [0, 1].

    Source: Ho et al., "Flow++" (2019), section 3.2.
    """
    check_floating(x=x, logits=logits, means=means, log_scales=log_scales)
    if logits.ndim < 1 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape [..., M] with M > 0, got {tuple(logits.shape)}")
    for name, value in (("logits", logits), ("means", means), ("log_scales", log_scales)):
        if value.ndim < 1 or value.shape[-1] != logits.shape[-1]:
            raise ValueError(
                f"{name} must have {logits.shape[-1]} components, as logits have, "
                f"got shape {tuple(value.shape)}"
            )
        _check_leading(name, value, x)
    x, logits, means, log_scales = promoted(x, logits, means, log_scales)
    with_kernel = ops.use_kernel(x, "spline")
    own_check = x.is_cpu and with_kernel
    if inverse and not own_check and (x.is_cpu or ops.values_checked()) and values_visible():
        raise_unless_valid(x, unit_interval(x), "values in [0, 1]")
    if with_kernel:
        y, log_det = ops.logistic_mixture_cdf(x, logits, means, log_scales, inverse)
        return y, log_det
    return reference.logistic_mixture_cdf(x, logits, means, log_scales, inverse=inverse)


def check_options(
    bins: int,
    min_bin_width: float,
    min_bin_height: float,
    min_derivative: float,
    parameterization: str,
) -> None:
    for name, value in (("min_bin_width", min_bin_width), ("min_bin_height", min_bin_height)):
        if not 0 <= value * bins <= 1:
            raise ValueError(
                f"{name} must be between 0 and 1 / {bins} for {bins} bins, got {value}"
            )
    if parameterization not in ops.PARAMETERIZATIONS:
        raise ValueError(
            f"parameterization must be one of {tuple(ops.PARAMETERIZATIONS)}, got {parameterization!r}"
        )
    if not 0 < min_derivative < 1:
        raise ValueError(f"min_derivative must be between 0 and 1, got {min_derivative}")


def check_domain(left: float, right: float, bottom: float, top: float) -> None:
    if not (left < right and bottom < top):
        raise ValueError(
            f"left < right and bottom < top are needed, got [{left}, {right}] and [{bottom}, {top}]"
        )


def _check_parameters(x: Tensor, widths: Tensor, heights: Tensor) -> int:
    """The number of bins."""
    if widths.ndim < 1 or widths.shape[-1] == 0:
        raise ValueError(f"widths must have shape [..., K] with K > 0, got {tuple(widths.shape)}")
    bins = widths.shape[-1]
    if heights.ndim < 1 or heights.shape[-1] != bins:
        raise ValueError(
            f"heights must have {bins} bins, as widths have, got shape {tuple(heights.shape)}"
        )
    _check_leading("widths", widths, x)
    _check_leading("heights", heights, x)
    return bins


def _check_leading(name: str, parameters: Tensor, x: Tensor) -> None:
    if parameters.shape[:-1] == x.shape:
        return
    try:
        fits = torch.broadcast_shapes(parameters.shape[:-1], x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} has shape {tuple(parameters.shape)}: all but its last dimension must broadcast to "
            f"x's {tuple(x.shape)}"
        )


def _check_bound(bound: Tensor, x: Tensor) -> Tensor:
    check_floating(x=x, tail_bound=bound)
    if bound.requires_grad:
        raise ValueError("tail_bound must not require grad: the spline has no gradient to it")
    try:
        fits = torch.broadcast_shapes(bound.shape, x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"tail_bound has shape {tuple(bound.shape)}, which does not broadcast to x's {tuple(x.shape)}"
        )
    return bound


def _ends_by_feature(
    x: Tensor,
    derivatives: Tensor,
    bins: int,
    tails: Sequence[str],
    min_derivative: float,
    parameterization: str,
) -> Tensor:
    """K + 1 derivatives whose outermost ones follow the tails of each feature."""
    unknown = [t for t in tails if t not in TAILS]
    if unknown or x.ndim < 1 or len(tails) != x.shape[-1]:
        raise ValueError(
            f"tails must name one of {TAILS} for each entry of x's last dimension, got {list(tails)} for x "
            f"of shape {tuple(x.shape)}"
        )
    if derivatives.ndim < 1 or derivatives.shape[-1] != bins + 1:
        raise ValueError(
            f"derivatives must have shape [..., {bins + 1}] for {bins} bins and tails by feature, "
            f"got {tuple(derivatives.shape)}"
        )
    linear = torch.tensor([t == "linear" for t in tails], device=x.device).unsqueeze(-1)
    unit = _unit_slope(min_derivative, parameterization)
    first = torch.where(linear, unit, derivatives[..., :1])
    return torch.cat([first, derivatives[..., 1:-1].expand(*first.shape[:-1], -1), first], -1)


def _unit_slope(min_derivative: float, parameterization: str) -> float:
    """The parameter whose slope is that of a linear tail."""
    if parameterization == "nflows":
        return math.log(math.expm1(1 - min_derivative))
    return 1 - 2 * min_derivative if parameterization == "pyro" else 0.0
