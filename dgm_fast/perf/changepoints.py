"""Step changes in a series of times: where a level begins that differs from the one before."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# A level that differs less from its neighbour is the same one.
LEAST_CHANGE = 0.05
# Of a new level, in units of the noise of a single value; a lone outlier is no level.
PENALTY = 6.0
LEAST_LENGTH = 2


@dataclass(frozen=True)
class Step:
    """From the value at ``index`` on the level is ``ratio`` times the one before."""

    index: int
    ratio: float


def steps(values: Sequence[float]) -> list[Step]:
    """Step changes of a series of positive values.

    The best sequence of constant levels in log space under absolute error plus a price for every
    level, found exactly (dynamic programming over all segmentations); neighbours closer than
    LEAST_CHANGE are merged.
    """
    logs = [math.log(v) for v in values]
    bounds = _segments(logs, PENALTY * _noise(logs))
    levels = [(b, statistics.median(logs[b:e])) for b, e in bounds]
    found: list[Step] = []
    last = levels[0][1] if levels else 0.0
    for begin, level in levels[1:]:
        if abs(level - last) >= math.log1p(LEAST_CHANGE):
            found.append(Step(begin, math.exp(level - last)))
            last = level
    return found


def _noise(logs: Sequence[float]) -> float:
    """Typical distance of neighbours; at least half a percent: clocks and medians are no better."""
    if len(logs) < 2:
        return 0.005
    differences = [abs(b - a) for a, b in itertools.pairwise(logs)]
    return max(0.005, statistics.median(differences))


def _segments(logs: Sequence[float], price: float) -> list[tuple[int, int]]:
    """[begin, end) of the levels."""
    count = len(logs)
    if count == 0:
        return []
    best = [0.0] + [math.inf] * count
    begin_of = [0] * (count + 1)
    for end in range(1, count + 1):
        for begin in range(end):
            if end - begin < LEAST_LENGTH and count >= LEAST_LENGTH:
                continue
            cost = best[begin] + price + _deviation(logs[begin:end])
            if cost < best[end]:
                best[end], begin_of[end] = cost, begin
    bounds = []
    end = count
    while end > 0:
        bounds.append((begin_of[end], end))
        end = begin_of[end]
    return bounds[::-1]


def _deviation(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    return sum(abs(v - middle) for v in values)
