"""When a change is a change: ratio, absolute floor and rank test on interleaved rounds.

A first look at a case either is quiet or asks for further ones, measured by fresh processes. Only
what most looks show and none contradicts is called slower (or faster); see
docs/performance-tracking.md.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SAME, SLOWER, FASTER, UNCLEAR = "same", "slower", "faster", "unclear"


@dataclass(frozen=True)
class Rule:
    """What has to hold together for a verdict."""

    # Relative change of the median: 10% on shared CPU hosts, 5% on GPUs and quiet, pinned hosts.
    threshold: float = 0.10
    # Absolute change of the median: below it a relative change is a matter of the clock. The smallest ops
    # take 6 us; with a floor of 1 us a slow-down of theirs by 15% is not seen.
    floor_s: float = 5e-7
    # Of the Mann-Whitney U test, two-sided; over two looks, of their combined statistic.
    alpha: float = 0.002
    # Interquartile range over median from which a look cannot tell that nothing is there.
    noisy: float = 0.25

    @classmethod
    def of_device(cls, device_type: str) -> Rule:
        return cls(threshold=0.05, floor_s=2e-6) if device_type == "cuda" else cls()


@dataclass(frozen=True)
class Look:
    """Rounds of one case and mode in one session, seconds a call; base and head took turns."""

    base: tuple[float, ...]
    head: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median of head over median of base: above 1 is slower."""
        return statistics.median(self.head) / statistics.median(self.base)

    @property
    def change_s(self) -> float:
        return statistics.median(self.head) - statistics.median(self.base)

    @property
    def best_ratio(self) -> float:
        """The same of the lower quartiles: interruptions lengthen rounds, they shorten none."""
        return _lower_quartile(self.head) / _lower_quartile(self.base)

    @property
    def spread(self) -> float:
        """Interquartile range over median, of the worse side."""
        return max(_spread(self.base), _spread(self.head))

    def p_value(self) -> float:
        return p_value(self.base, self.head)


@dataclass(frozen=True)
class Decision:
    """The verdict on one case and mode, with what it rests on."""

    verdict: str
    ratio: float
    p: float
    looks: tuple[Look, ...]


def p_value(base: Sequence[float], head: Sequence[float]) -> float:
    """Two-sided Mann-Whitney U test of the raw rounds."""
    return float(_scipy_stats().mannwhitneyu(head, base, alternative="two-sided").pvalue)


def first_look(look: Look, rule: Rule) -> str:
    """SAME where nothing near the threshold is seen, and would be if it were there; else UNCLEAR."""
    return UNCLEAR if look.spread > rule.noisy or _direction(look, rule, part=0.5) else SAME


def decide(looks: Sequence[Look], rule: Rule) -> Decision:
    """The verdict on all looks at one case and mode.

    The ratio is the geometric mean over the looks, p their combined value (Stouffer). Slower or
    faster needs the whole threshold for the ratio, half of it in median and lower quartile of most
    looks, medians on the same side in all, the floor, and p below alpha. One look alone decides
    nothing but SAME.

    Raises:
        ValueError: without a look.
    """
    if not looks:
        raise ValueError("decide() needs at least one look")
    ratio = statistics.geometric_mean(look.ratio for look in looks)
    p = _combined(looks)
    sign = 1 if ratio > 1 else -1
    directions = [_direction(look, rule, part=0.5) for look in looks]
    verdict = SAME
    agree = all(sign * (look.ratio - 1) > 0 for look in looks)
    if 2 * directions.count(sign) > len(looks) and agree:
        beyond = abs(math.log(ratio)) > math.log1p(rule.threshold)
        sure = len(looks) > 1 and beyond and p < rule.alpha
        verdict = UNCLEAR if not sure else SLOWER if ratio > 1 else FASTER
    return Decision(verdict, ratio, p, tuple(looks))


def _direction(look: Look, rule: Rule, part: float) -> int:
    """1 slower, -1 faster by ``part`` of the threshold in median and lower quartile; 0 neither."""
    limit = math.log1p(part * rule.threshold)
    if abs(look.change_s) <= rule.floor_s:
        return 0
    changes = (math.log(look.ratio), math.log(look.best_ratio))
    if min(changes) > limit:
        return 1
    return -1 if max(changes) < -limit else 0


def _combined(looks: Sequence[Look]) -> float:
    """Stouffer's combination of the one-sided tests, made two-sided again."""
    if len(looks) == 1:
        return looks[0].p_value()
    tests = _scipy_stats()
    slower = [
        # A p of exactly 1 would be worth an infinite score against everything else.
        min(float(tests.mannwhitneyu(k.head, k.base, alternative="greater").pvalue), 1 - 1e-12)
        for k in looks
    ]
    one_sided = float(tests.combine_pvalues(slower, method="stouffer").pvalue)
    return min(1.0, 2 * min(one_sided, 1 - one_sided))


def _spread(rounds: Sequence[float]) -> float:
    q1, median, q3 = statistics.quantiles(rounds, n=4, method="inclusive")
    return (q3 - q1) / median


def _lower_quartile(rounds: Sequence[float]) -> float:
    return sorted(rounds)[(len(rounds) - 1) // 4]


def _scipy_stats():  # type: ignore[no-untyped-def]
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(
            "comparing rounds needs scipy: pip install 'dgm_fast[perf]'", name="scipy"
        ) from error
    return stats
