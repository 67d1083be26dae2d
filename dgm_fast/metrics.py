"""Distances between sets of samples that need no trained network and no download."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Rows of a distance matrix that are formed at a time.
_BLOCK = 1024


def sliced_wasserstein_distance(
    x: Tensor,
    y: Tensor,
    *,
    num_projections: int = 256,
    p: float = 2.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Sliced Wasserstein distance between two sets of samples, a scalar.

    .. math:: SW_p = \Big(E_{\theta} W_p^p(\theta^\top x, \theta^\top y)\Big)^{1/p}

    with theta uniform on the unit sphere, estimated with ``num_projections`` of them. In one dimension
    W_p compares sorted samples; sets of different sizes are compared at the quantiles of both.

    Args:
        x, y: [N, ...] and [M, ...], flattened to [N, D] and [M, D]; any real dtype.
        num_projections: directions.
        p: order, at least 1.
        generator: of the directions.

    Raises:
        ValueError: if the sets are empty or their dimensions differ, or p is below 1.

    Source: Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures" (2015).
    """
    x, y = _rows("x", x), _rows("y", y)
    _check_dims(x, y)
    if p < 1:
        raise ValueError(f"p must be at least 1, got {p}")
    if num_projections < 1:
        raise ValueError(f"num_projections must be at least 1, got {num_projections}")
    directions = torch.randn(
        x.shape[1], num_projections, generator=generator, dtype=x.dtype, device=x.device
    )
    directions = directions / torch.linalg.vector_norm(directions, dim=0)
    first = (x @ directions).sort(0).values  # [N, P]
    second = (y @ directions).sort(0).values
    if len(x) == len(y):
        return _power_mean(first - second, p)
    # Both quantile functions are steps: between two neighbouring jumps of either they are constant.
    jumps = torch.cat([_levels(len(x), x), _levels(len(y), y)]).unique()
    widths = jumps.diff(prepend=jumps.new_zeros(1))
    middle = jumps - widths / 2
    at_first = (middle * len(x)).long().clamp(max=len(x) - 1)
    at_second = (middle * len(y)).long().clamp(max=len(y) - 1)
    gaps = (first[at_first] - second[at_second]).abs().pow(p)
    return (gaps * widths.unsqueeze(1)).sum(0).mean().pow(1 / p)


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: of generated samples near the data, and of the data near generated samples."""

    precision: float
    recall: float


def precision_recall(real: Tensor, fake: Tensor, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall of generated samples, from nearest neighbours.

    A sample counts as covered by a set if it lies in the ball around a member of the set that reaches to
    the member's k-th nearest neighbour in that set. Precision: generated samples covered by the data;
    recall: data covered by generated samples. Takes samples, or features of them from any network.

    Args:
        real, fake: [N, ...] and [M, ...], flattened; more than k each.
        k: the neighbour that sets a ball's radius.

    Raises:
        ValueError: if a set has no more than k members or the dimensions differ.

    Source: Kynkaanniemi et al., "Improved precision and recall metric for assessing generative models"
    (2019), equations 1 and 2.
    """
    real, fake = _rows("real", real), _rows("fake", fake)
    _check_dims(real, fake)
    for name, rows in (("real", real), ("fake", fake)):
        if not 1 <= k < len(rows):
            raise ValueError(f"{name} must have more than k = {k} >= 1 samples, got {len(rows)}")
    return PrecisionRecall(_coverage(real, fake, k), _coverage(fake, real, k))


def _coverage(centers: Tensor, points: Tensor, k: int) -> float:
    """Share of the points that lie in the ball of some center."""
    # The nearest of all is the center itself.
    radii = torch.cat(
        [
            torch.cdist(block, centers).kthvalue(k + 1, dim=1).values
            for block in centers.split(_BLOCK)
        ]
    )
    covered = [(torch.cdist(block, centers) <= radii).any(1) for block in points.split(_BLOCK)]
    return torch.cat(covered).double().mean().item()


def _power_mean(gaps: Tensor, p: float) -> Tensor:
    return gaps.abs().pow(p).mean().pow(1 / p)


def _levels(count: int, like: Tensor) -> Tensor:
    return torch.arange(1, count + 1, dtype=torch.float64, device=like.device).div(count)


def _rows(name: str, t: Tensor) -> Tensor:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.ndim < 2 or len(t) == 0:
        raise ValueError(f"{name} must have shape [N, ...] with N >= 1, got {tuple(t.shape)}")
    t = t.flatten(1)
    return t if t.dtype == torch.float64 else t.float()


def _check_dims(x: Tensor, y: Tensor) -> None:
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"samples have {x.shape[1]} dimensions on one side and {y.shape[1]} on the other"
        )
