"""A/B: which cases of one revision are slower than those of another, on this machine, now."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from dgm_fast.perf import pairs, stats
from dgm_fast.perf.table import MODE_NAMES

FURTHER_LOOKS = 2

Progress = Callable[[Iterable[str]], Iterable[str]]


@dataclass
class Comparison:
    """The outcome of an A/B run."""

    base: str
    head: str
    rule: stats.Rule
    threads: int
    decisions: dict[tuple[str, str], stats.Decision] = field(default_factory=dict)
    # Wrong results: no times of these cases.
    failed: dict[str, list[str]] = field(default_factory=dict)
    # Cases that one of the revisions lacks.
    left_out: dict[str, str] = field(default_factory=dict)
    # (case, mode) that needed further looks.
    looked_again: list[tuple[str, str]] = field(default_factory=list)

    def of(self, verdict: str) -> list[tuple[str, str]]:
        """(case, mode) with a verdict, largest change first."""
        found = [key for key, d in self.decisions.items() if d.verdict == verdict]
        return sorted(
            found, key=lambda key: -max(self.decisions[key].ratio, 1 / self.decisions[key].ratio)
        )

    @property
    def ok(self) -> bool:
        """No case is slower and none is wrong."""
        return not self.failed and not self.of(stats.SLOWER)


def compare(
    base: pairs.Side,
    head: pairs.Side,
    cases: Sequence[str],
    setup: pairs.Setup,
    rule: stats.Rule,
    *,
    progress: Progress = iter,
    look: Callable[..., tuple] = pairs.look_at_all,
) -> Comparison:
    """Look at every case, and twice more, in fresh processes, at those that are not quiet.

    Two processes of the very same code can differ by some percent for as long as they live (where
    their memory lies): further pairs are what tells that from a change.
    """
    result = Comparison(base.name, head.name, rule, setup.threads)
    first, result.failed, result.left_out = look(base, head, cases, setup, progress)
    unclear = [key for key, one in first.items() if stats.first_look(one, rule) != stats.SAME]
    further: list[dict[tuple[str, str], stats.Look]] = []
    again = list(dict.fromkeys(case for case, _ in unclear))
    for _ in range(FURTHER_LOOKS if unclear else 0):
        looks, failed, _ = look(base, head, again, setup, progress)
        result.failed |= failed
        further.append(looks)
    for key, one in first.items():
        if key[0] not in result.failed:
            more = [looks[key] for looks in further] if key in unclear else []
            result.decisions[key] = stats.decide([one, *more], rule)
    result.looked_again = unclear
    return result


def markdown(result: Comparison) -> str:
    """A table for a pull request: what changed first, the rest folded."""
    slower, faster = result.of(stats.SLOWER), result.of(stats.FASTER)
    rule = result.rule
    lines = [f"### Speed of {result.head} against {result.base}", "", _summary(result), ""]
    for case, failures in result.failed.items():
        lines += [f"- **{case}: wrong result, not timed**: {failure}" for failure in failures]
    if result.failed:
        lines.append("")
    if slower or faster:
        lines += [*_table(result, [*slower, *faster]), ""]
    rest = [key for key in result.decisions if key not in {*slower, *faster}]
    if rest:
        lines += [f"<details><summary>{len(rest)} without a verdict of change</summary>", ""]
        lines += [*_table(result, rest), "", "</details>", ""]
    if result.left_out:
        lines += [f"- not compared: {case} ({why})" for case, why in result.left_out.items()]
        lines.append("")
    lines.append(
        f"{result.threads} threads; rounds interleaved in one session; a change counts beyond "
        f"{100 * rule.threshold:.0f}% and {1e6 * rule.floor_s:g} µs of the median, "
        f"p < {rule.alpha:g} (Mann-Whitney U), in most of {1 + FURTHER_LOOKS} sessions of fresh processes."
    )
    return "\n".join(lines) + "\n"


def _summary(result: Comparison) -> str:
    slower, faster = result.of(stats.SLOWER), result.of(stats.FASTER)
    head = f"**{len(result.failed)} cases compute something else.** " if result.failed else ""
    if slower:
        named = ", ".join(f"`{case}` {MODE_NAMES[mode]}" for case, mode in slower[:5])
        more = f" and {len(slower) - 5} more" if len(slower) > 5 else ""
        return f"{head}**{len(slower)} slower**: {named}{more}. {len(faster)} faster."
    return f"{head}No regression in {len(result.decisions)} measurements. {len(faster)} faster."


def _table(result: Comparison, keys: Sequence[tuple[str, str]]) -> list[str]:
    lines = [
        "| case | mode | base ms (IQR) | head ms (IQR) | base min | head min | head / base | p | |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for case, mode in keys:
        decision = result.decisions[case, mode]
        last = decision.looks[-1]
        cells = (
            case,
            MODE_NAMES[mode],
            _spread(last.base),
            _spread(last.head),
            f"{1e3 * min(last.base):.4g}",
            f"{1e3 * min(last.head):.4g}",
            f"{decision.ratio:.3f}",
            f"{decision.p:.1g}",
            decision.verdict
            + (f", {len(decision.looks)} looks" if len(decision.looks) > 1 else ""),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _spread(rounds: Sequence[float]) -> str:
    q1, median, q3 = statistics.quantiles(rounds, n=4, method="inclusive")
    return f"{1e3 * median:.4g} ({1e3 * (q3 - q1):.2g})"
