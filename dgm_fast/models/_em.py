"""Expectation-maximisation of Gaussian mixtures, in float64 whatever the model's dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgm_fast import functional

_LOG_2PI = math.log(2 * math.pi)

# Numbers that one chunk of rows may form, and so the bound on [rows, K] and [rows, K, D] temporaries:
# 32 MiB in float64.
_CHUNK_ELEMENTS = 1 << 22

# A component that explains less than this share of a single row is empty: its mean and covariance
# would be quotients of rounding errors.
_EMPTY = 1e-8


@dataclass(frozen=True)
class EMResult:
    """How a fit by EM went.

    Attributes:
        iterations: how many were run.
        log_likelihoods: mean log-likelihood of a row in nats before the first iteration and after
            each; it never falls.
        converged: whether the last gain was below the tolerance.
    """

    iterations: int
    log_likelihoods: tuple[float, ...]
    converged: bool


@dataclass(frozen=True)
class MixtureState:
    """Parameters of a mixture in float64.

    Attributes:
        log_weights: [K], normalised.
        means: [K, D].
        spread: log-variances [K, D] ("diagonal"), or the lower-triangular factors of the covariances
            [K, D, D] ("full").
    """

    log_weights: Tensor
    means: Tensor
    spread: Tensor

    @property
    def full(self) -> bool:
        return self.spread.ndim == 3


@dataclass(frozen=True)
class Statistics:
    """What the data say about each component under the present parameters.

    Attributes:
        counts: expected rows of each component, [K].
        means: their means, [K, D].
        moments: their second central moments, [K, D] or [K, D, D].
        log_likelihood: mean over the rows, a scalar.
        worst: (log-density, index) of the row that is explained least, scalars.
    """

    counts: Tensor
    means: Tensor
    moments: Tensor
    log_likelihood: Tensor
    worst: tuple[Tensor, Tensor]


def full_log_prob(x: Tensor, means: Tensor, scale_tril: Tensor) -> Tensor:
    """log N(x; mean_k, L_k L_k^T) of every component: [N, D] -> [N, K]."""
    diff = x.unsqueeze(0) - means.unsqueeze(1)  # [K, N, D]
    scaled = torch.linalg.solve_triangular(scale_tril, diff.mT, upper=False)  # [K, D, N]
    log_det = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)  # [K, 1]
    return (-0.5 * scaled.square().sum(1) - log_det - 0.5 * x.shape[1] * _LOG_2PI).T


def initial_state(
    x: Tensor,
    num_components: int,
    *,
    full: bool,
    min_variance: float,
    generator: torch.Generator | None,
) -> MixtureState:
    """Clusters around k-means++ centres, with their means, shares and one pooled covariance.

    The centres are rows, each drawn with a probability in proportion to its squared distance from the
    nearest centre so far. Pooling keeps clusters of few rows from starting with a tiny variance.

    Source: Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding" (2007).
    """
    size = x.shape[1]
    nearest = x.new_full((len(x),), math.inf, dtype=torch.float64)
    label = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for k in range(num_components):
        centre = x[_draw_row(nearest, generator)].double()
        distance = torch.cat(
            [(rows.double() - centre).square().sum(1) for rows in _chunks(x, size)]
        )
        label = torch.where(distance < nearest, k, label)
        nearest = torch.minimum(nearest, distance)
    ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
    counts = ones.new_zeros(num_components).index_add(0, label, ones)
    means = ones.new_zeros(num_components, size)
    for rows, labels in zip(_chunks(x, size), _chunks(label, size), strict=True):
        means.index_add_(0, labels, rows.double())
    # Of rows that occur twice, only one can be the nearest centre: such a cluster starts on the mean.
    means = torch.where(
        counts.unsqueeze(1) > 0, means / counts.clamp(min=1).unsqueeze(1), x.double().mean(0)
    )
    moments = ones.new_zeros((size, size) if full else (size,))
    for rows, labels in zip(_chunks(x, size), _chunks(label, size), strict=True):
        diff = rows.double() - means[labels]
        moments += diff.T @ diff if full else diff.square().sum(0)
    spread = _spread(moments.unsqueeze(0) / len(x), min_variance)
    weights = counts.clamp(min=1.0)
    return MixtureState(
        (weights / weights.sum()).log(), means, spread.repeat_interleave(num_components, 0)
    )


def expectation(x: Tensor, state: MixtureState) -> Statistics:
    """One pass over the data, in chunks of rows."""
    return _expectation_full(x, state) if state.full else _expectation_diagonal(x, state)


def maximization(
    x: Tensor, state: MixtureState, statistics: Statistics, min_variance: float
) -> tuple[MixtureState, bool]:
    """The parameters that maximise the expected log-likelihood, with every variance (or eigenvalue of
    a covariance) at least ``min_variance``.

    Where a component is empty, the step moves it to the row that is explained least instead, if that
    is certain to raise the log-likelihood; an empty component that stays keeps its place.

    Returns:
        The parameters, and whether a component was moved.
    """
    counts = statistics.counts
    empty = counts < _EMPTY
    if bool(empty.any()):
        moved = _move_empty(x, state, statistics, min_variance)
        if moved is not None:
            return moved, True
    keep = empty.view(-1, 1)
    spread = _spread(statistics.moments, min_variance)
    return (
        MixtureState(
            (counts / counts.sum()).log(),
            torch.where(keep, state.means, statistics.means),
            torch.where(keep.unsqueeze(-1) if state.full else keep, state.spread, spread),
        ),
        False,
    )


def fit(
    x: Tensor,
    state: MixtureState,
    *,
    max_iterations: int,
    tolerance: float,
    min_variance: float,
) -> tuple[MixtureState, EMResult]:
    """Iterate until the mean log-likelihood gains less than ``tolerance``."""
    statistics = expectation(x, state)
    history = [statistics.log_likelihood.item()]
    converged = False
    while not converged and len(history) <= max_iterations:
        state, moved = maximization(x, state, statistics, min_variance)
        statistics = expectation(x, state)
        history.append(statistics.log_likelihood.item())
        converged = not moved and history[-1] - history[-2] < tolerance
    return state, EMResult(len(history) - 1, tuple(history), converged)


def _expectation_diagonal(x: Tensor, state: MixtureState) -> Statistics:
    r"""The statistics are read off the gradients of the fused density, so that no responsibility is
    ever stored. With :math:`r_k` the responsibilities of all rows and :math:`v = e^\lambda`,

    .. math:: \partial_{\log w_k} = \sum r_k - N w_k, \quad
        v\, \partial_{\mu_k} = \sum r_k (x - \mu_k), \quad
        2 v\, \partial_{\lambda_k} = \sum r_k \left[(x - \mu_k)^2 - v\right]
    """
    parameters = [
        t.detach().requires_grad_() for t in (state.means, state.spread, state.log_weights)
    ]
    sums = [torch.zeros_like(p) for p in parameters]
    total, worst = _no_rows(state)
    first = 0
    for rows in _chunks(x, state.means.numel()):
        with torch.enable_grad():
            log_prob = functional.gaussian_mixture_log_prob(rows.double(), *parameters)
            gradients = torch.autograd.grad(log_prob.sum(), parameters)
        for s, gradient in zip(sums, gradients, strict=True):
            s += gradient
        total, worst = _gather(total, worst, log_prob.detach(), first)
        first += len(rows)
    to_means, to_spread, to_weights = sums
    counts = (to_weights + len(x) * state.log_weights.exp()).clamp(min=0)
    divisor = counts.clamp(min=_EMPTY).unsqueeze(1)
    variance = state.spread.exp()
    shift = variance * to_means / divisor
    moments = variance * (2 * to_spread / divisor + 1) - shift.square()
    return Statistics(counts, state.means + shift, moments, total / len(x), worst)


def _expectation_full(x: Tensor, state: MixtureState) -> Statistics:
    num_components, size = state.means.shape
    counts = torch.zeros_like(state.log_weights)
    sums, products = torch.zeros_like(state.means), torch.zeros_like(state.spread)
    total, worst = _no_rows(state)
    # Moments about a point amid the data: about a far origin their difference would cancel.
    centre = state.log_weights.exp() @ state.means
    means = state.means - centre
    first = 0
    for rows in _chunks(x, num_components * size):
        rows = rows.double() - centre
        log_joint = full_log_prob(rows, means, state.spread) + state.log_weights
        log_prob = torch.logsumexp(log_joint, 1)
        weights = torch.exp(log_joint - log_prob.unsqueeze(1)).T  # [K, n]
        counts += weights.sum(1)
        sums += weights @ rows
        products += (weights.unsqueeze(2) * rows).mT @ rows
        total, worst = _gather(total, worst, log_prob, first)
        first += len(rows)
    divisor = counts.clamp(min=_EMPTY).view(-1, 1)
    mean = sums / divisor
    moments = products / divisor.unsqueeze(2) - mean.unsqueeze(2) * mean.unsqueeze(1)
    return Statistics(counts, centre + mean, moments, total / len(x), worst)


def _no_rows(state: MixtureState) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    zero = state.log_weights.new_zeros(())
    return zero, (zero + math.inf, zero.long())


def _gather(
    total: Tensor, worst: tuple[Tensor, Tensor], log_prob: Tensor, first: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    lowest, index = log_prob.min(0)
    lower = lowest < worst[0]
    worst = (torch.where(lower, lowest, worst[0]), torch.where(lower, index + first, worst[1]))
    return total + log_prob.sum(), worst


def _move_empty(
    x: Tensor, state: MixtureState, statistics: Statistics, min_variance: float
) -> MixtureState | None:
    """The emptiest component with the data's variances around the row that is explained least.

    It takes the share 1 / N of the weight. That costs all N rows at most N log(1 - 1 / N), which is
    above -1.39 for N > 1, and gains at that row what its density there exceeds the present one: None
    if this is not more.
    """
    rows = len(x)
    density, index = statistics.worst
    point = x[index].double()
    variance = x.double().var(0, correction=0).clamp(min=min_variance)
    peak = -0.5 * (variance.log() + _LOG_2PI).sum() - math.log(rows)
    if rows < 2 or not bool(peak - density > 1.39):
        return None
    k = int(statistics.counts.argmin())
    log_weights = state.log_weights + math.log1p(-1 / rows)
    means, spread = state.means.clone(), state.spread.clone()
    log_weights[k], means[k] = -math.log(rows), point
    spread[k] = torch.diag(variance.sqrt()) if state.full else variance.log()
    # The weight that the component had before is left over.
    return replace(state, log_weights=torch.log_softmax(log_weights, 0), means=means, spread=spread)


def _spread(moments: Tensor, min_variance: float) -> Tensor:
    """Log-variances [K, D] or triangular factors [K, D, D] of second central moments.

    Variances below the floor are raised to it, of a covariance its eigenvalues: the maximum of the
    expected log-likelihood under that constraint.
    """
    if moments.ndim == 2:
        return moments.clamp(min=min_variance).log()
    values, vectors = torch.linalg.eigh(0.5 * (moments + moments.mT))
    root = vectors * values.clamp(min=min_variance).sqrt().unsqueeze(-2)  # [K, D, D]
    return triangular(root)


def triangular(root: Tensor) -> Tensor:
    """The lower-triangular L of positive diagonal with L L^T = root root^T, [..., D, D] each.

    By orthogonal transformations of the root: forming the product would square its condition.
    """
    lower = torch.linalg.qr(root.mT, mode="r").R.mT
    sign = torch.where(lower.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(lower.dtype)
    return lower * sign.unsqueeze(-2)


def _chunks(rows: Tensor, per_row: int) -> tuple[Tensor, ...]:
    return rows.split(max(1, _CHUNK_ELEMENTS // max(1, per_row)))


def _draw_row(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """A row's index, in proportion to non-negative weights; of equal ones where none is positive."""
    # torch.multinomial takes no more than 2^24 weights.
    weights = torch.where(weights.isinf(), 1.0, weights)
    weights = torch.where(weights.sum() > 0, weights, 1.0)
    cdf = weights.cumsum(0)
    uniform = torch.rand((), dtype=cdf.dtype, device=cdf.device, generator=generator)
    index = torch.searchsorted(cdf, (uniform * cdf[-1]).view(1), right=True)
    return index.clamp(max=len(cdf) - 1).squeeze(0)
