"""Checks of samples against probabilities."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def every_vector(size: int, classes: int) -> Tensor:
    """All vectors of class indices, [classes ** size, size], the first entry slowest."""
    return torch.tensor(list(itertools.product(range(classes), repeat=size)))


def cell_index(x: Tensor, classes: int) -> Tensor:
    """The row of each vector [N, size] in :func:`every_vector`."""
    places = classes ** torch.arange(x.shape[-1] - 1, -1, -1)
    return (x.long() * places).sum(-1)


def chi_square(index: Tensor, log_prob: Tensor) -> float:
    """Of drawn cells, in standard deviations above its mean."""
    expected = log_prob.exp() * len(index)
    assert expected.min() > 5
    counts = torch.bincount(index, minlength=len(log_prob)).double()
    statistic = ((counts - expected).square() / expected).sum().item()
    freedom = len(log_prob) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)
