"""Reference monotone maps of one variable: rational-quadratic splines, CDFs of logistic mixtures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast.reference._common import compute_dtype, log_sum_exp, log_weights

# Which slopes have parameters: those of the K - 1 inner knots, of K where the ends are equal, of all K + 1.
ENDS = ("fixed", "periodic", "free")

# softplus without PyTorch's switch to the identity, which float64 sees.
_SOFTPLUS_THRESHOLD = 40.0


def rational_quadratic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *,
    inverse: bool = False,
    ends: str = "fixed",
    tails: bool = True,
    bound: Tensor | None = None,
    domain: Sequence[float] = (0.0, 1.0, 0.0, 1.0),
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    parameterization: str = "nflows",
    sum_log_det: bool = False,
) -> tuple[Tensor, Tensor]:
    """(y, log |dy/dx|), or with ``inverse`` (x, log |dx/dy|), by the formulas of Durkan et al. (2019).

    ``ends``, one of ``ENDS``: which slopes have parameters, [..., K - 1], [..., K] or [..., K + 1].
    ``domain`` is (left, right, bottom, top); ``bound`` replaces it by [-bound, bound] in each. Outside the
    domain the map is the identity, or NaN without ``tails``.
    """
    out_dtype = x.dtype
    dtype = compute_dtype(x, widths, heights, derivatives)
    x, widths, heights, derivatives = (t.to(dtype) for t in (x, widths, heights, derivatives))
    left, right, bottom, top = (torch.as_tensor(v, dtype=dtype, device=x.device) for v in domain)
    if bound is not None:
        right = bound.to(dtype)
        left = -right
        bottom, top = left, right
    low, high = (bottom, top) if inverse else (left, right)
    inside = (x >= low) & (x <= high)
    # The branch that is not taken must stay finite, or its gradient would be NaN.
    at = torch.where(inside, x, low)

    if parameterization == "zuko":
        min_bin_width = min_bin_height = 0.0
        clip = 2 / abs(math.log(min_derivative))
        widths = widths / (1 + clip * widths.abs())
        heights = heights / (1 + clip * heights.abs())
    if parameterization != "pyro":
        widths, heights = torch.softmax(widths, -1), torch.softmax(heights, -1)
    x_knots = _knots(widths, min_bin_width, left, right)
    y_knots = _knots(heights, min_bin_height, bottom, top)
    slopes = _slopes(derivatives, ends, min_derivative, parameterization)

    knots = y_knots if inverse else x_knots
    shape = (*x.shape, widths.shape[-1] + 1)
    index = (knots[..., 1:-1] <= at.unsqueeze(-1)).sum(-1, keepdim=True)
    x0, x1, y0, y1, d0, d1 = (
        t.expand(shape).gather(-1, i).squeeze(-1)
        for t in (x_knots, y_knots, slopes)
        for i in (index, index + 1)
    )
    width, height = x1 - x0, y1 - y0
    delta = height / width
    if inverse:
        offset = at - y0
        bend = offset * (d0 + d1 - 2 * delta)
        a = height * (delta - d0) + bend
        b = height * d0 - bend
        c = -delta * offset
        theta = 2 * c / (-b - torch.sqrt(b.square() - 4 * a * c))
        out = x0 + theta * width
    else:
        theta = (at - x0) / width
    rest = theta * (1 - theta)
    denominator = delta + (d0 + d1 - 2 * delta) * rest
    if not inverse:
        out = y0 + height * (delta * theta.square() + d0 * rest) / denominator
    numerator = d1 * theta.square() + 2 * delta * rest + d0 * (1 - theta).square()
    log_det = 2 * torch.log(delta / denominator) + torch.log(numerator)
    out = torch.where(inside, out, x if tails else math.nan)
    log_det = torch.where(inside, -log_det if inverse else log_det, 0.0 if tails else math.nan)
    if sum_log_det:
        log_det = log_det.flatten(1).sum(1) if x.ndim > 1 else log_det
    return out.to(out_dtype), log_det


def _knots(fractions: Tensor, minimum: float, low: Tensor, high: Tensor) -> Tensor:
    """The K + 1 knots of K bins, the outermost ones exact."""
    fractions = minimum + (1 - minimum * fractions.shape[-1]) * fractions
    inner = torch.cumsum(fractions, -1)[..., :-1]
    low, high = low.unsqueeze(-1), high.unsqueeze(-1)
    inner = low + (high - low) * inner
    shape = (*inner.shape[:-1], 1)
    return torch.cat([low.expand(shape), inner, high.expand(shape)], -1)


def _slopes(derivatives: Tensor, ends: str, minimum: float, parameterization: str) -> Tensor:
    """Slopes at all knots; with fixed ends the outermost are 1 (pyro: 1 - minimum)."""
    if parameterization == "zuko":
        clip = 1 / abs(math.log(minimum))
        slopes = torch.exp(derivatives / (1 + clip * derivatives.abs()))
    elif parameterization == "pyro":
        slopes = minimum + derivatives
    else:
        offset = math.log(math.expm1(1 - minimum)) if parameterization == "distrax" else 0.0
        slopes = minimum + F.softplus(derivatives + offset, threshold=_SOFTPLUS_THRESHOLD)
        if parameterization == "madnis":
            slopes = slopes / (minimum + math.log(2.0))
    if ends == "fixed":
        return F.pad(slopes, (1, 1), value=1 - minimum if parameterization == "pyro" else 1.0)
    if ends == "periodic":
        return torch.cat([slopes, slopes[..., :1]], -1)
    return slopes


def logistic_mixture_cdf(
    x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """(F(x), log F'(x)) of a mixture of logistics, or with ``inverse`` (F^-1(x), its log-derivative)."""
    out_dtype = x.dtype
    dtype = compute_dtype(x, logits, means, log_scales)
    x, means, log_scales = x.to(dtype), means.to(dtype), log_scales.to(dtype)
    log_shares = log_weights(logits.to(dtype), -1)
    if inverse:
        z = x
        x = _quantile(z, log_shares, means, log_scales)
    scaled = (x.unsqueeze(-1) - means) * torch.exp(-log_scales)
    cdf = (log_shares.exp() * torch.sigmoid(scaled)).sum(-1)
    log_pdf = log_sum_exp(
        log_shares + F.logsigmoid(scaled) + F.logsigmoid(-scaled) - log_scales, -1
    )
    if not inverse:
        return cdf.to(out_dtype), log_pdf
    within = (z > 0) & (z < 1)
    # The ends of the real line, and NaN for what is no probability.
    ends = torch.where(z == 0, -math.inf, torch.where(z == 1, math.inf, math.nan)).to(dtype)
    return torch.where(within, x, ends).to(out_dtype), torch.where(within, -log_pdf, ends.abs())


def _quantile(z: Tensor, log_shares: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """x with F(x) = z, by bisection; two Newton steps at the root carry first and second derivatives."""
    inside = z.clamp(torch.finfo(z.dtype).tiny, 1 - torch.finfo(z.dtype).eps / 2)
    logit = torch.logit(inside)

    def excess_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
        """logit F(x) - logit z, and its derivative f / (F (1 - F))."""
        scaled = (x.unsqueeze(-1) - means) * torch.exp(-log_scales)
        log_cdf, log_rest = F.logsigmoid(scaled), F.logsigmoid(-scaled)
        below = torch.logsumexp(log_shares + log_cdf, -1)
        above = torch.logsumexp(log_shares + log_rest, -1)
        log_pdf = torch.logsumexp(log_shares + log_cdf + log_rest - log_scales, -1)
        return below - above - logit, torch.exp(log_pdf - below - above)

    with torch.no_grad():
        own = means + torch.exp(log_scales) * logit.unsqueeze(-1)
        low, high = own.amin(-1), own.amax(-1)
        for _ in range(60 if z.dtype == torch.float64 else 40):
            middle = 0.5 * (low + high)
            short = excess_and_slope(middle)[0] < 0
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        x = 0.5 * (low + high)
    for _ in range(2):
        excess, slope = excess_and_slope(x)
        x = x - excess / slope
    return x
