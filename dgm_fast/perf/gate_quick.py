"""The quick gate: seconds, any machine, any load; red only where a kernel has lost most of its speed.

One case a family, eager against ours, on one thread and by the fastest of many short rounds: on a busy
machine medians and threads measure the neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from dgm_fast.perf import correctness, machine, timing
from dgm_fast.perf.problem import EAGER, OURS, make_problem
from dgm_fast.perf.registry import Case
from dgm_fast.perf.results import ResultError

# Of the expected ratio.
LEAST_SHARE = 0.5
LIMIT_S = 40.0
PLAN = timing.Plan(min_round_s=3e-4, min_rounds=20, max_rounds=60, budget_s=1.0)
DTYPE, SIZE = torch.float32, "medium"


@dataclass
class QuickOutcome:
    """What a quick run saw."""

    architecture: str
    # case -> (expected, measured) time of eager over ours.
    measured: dict[str, tuple[float, float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def architecture(facts: dict[str, Any]) -> str:
    """As for the whole gate, without the threads: it is always one."""
    return f"cpu-{facts['isa']}"


def choice(cases: Iterable[Case]) -> list[Case]:
    """The first medium float32 case of every family."""
    chosen: dict[str, Case] = {}
    for case in cases:
        if case.size == SIZE and case.dtype == DTYPE and not case.heavy:
            chosen.setdefault(case.family, case)
    return list(chosen.values())


def measure(case: Case) -> tuple[float, list[str]]:
    """(fastest round of eager over fastest of ours, what is wrong: then there is no ratio)."""
    problem = make_problem(case, torch.device("cpu"))
    functions = {EAGER: case.eager, OURS: case.ours}
    verdict = correctness.check(problem, functions)
    if not verdict.ok:
        return 0.0, verdict.failures
    make, mode = (timing.training_task, "both") if case.grads else (timing.forward_task, "forward")
    tasks = {name: make(function, problem) for name, function in functions.items()}
    rounds = timing.interleave(tasks, PLAN)[mode]
    return min(rounds[EAGER].rounds) / min(rounds[OURS].rounds), []


def run(
    expectations: dict[str, Any],
    cases: Iterable[Case],
    *,
    measure: Callable[[Case], tuple[float, list[str]]] = measure,
    clock: Callable[[], float] = time.perf_counter,
) -> QuickOutcome:
    """Red: a wrong result, or less than half of the expected ratio, twice.

    A machine of an architecture without expectations has nothing to fall short of: that is a note.
    """
    facts = machine.describe(torch.device("cpu"))
    outcome = QuickOutcome(architecture(facts))
    expected = expectations["quick"].get(outcome.architecture, {})
    if facts["ours"] == "reference":
        outcome.notes.append(f"the kernels do not run here ({facts['ours_reason']})")
        return outcome
    if not expected:
        outcome.notes.append(f"nothing is expected of {outcome.architecture}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        begin = clock()
        for case in cases:
            if case.name not in expected:
                continue
            if clock() - begin > LIMIT_S:
                outcome.notes.append(f"{case.name}: not measured, {LIMIT_S:.0f} s were up")
                continue
            _judge(case, expected[case.name], outcome, measure)
    finally:
        torch.set_num_threads(threads)
    return outcome


def _judge(
    case: Case,
    expected: float,
    outcome: QuickOutcome,
    measure: Callable[[Case], tuple[float, list[str]]],
) -> None:
    seen: list[float] = []
    while len(seen) < 2:
        ratio, failures = measure(case)
        if failures:
            outcome.failures += [f"{case.name}: {failure}" for failure in failures]
            return
        seen.append(ratio)
        outcome.measured[case.name] = (expected, max(seen))
        if ratio >= LEAST_SHARE * expected:
            return
    outcome.failures.append(
        f"{case.name}: {seen[0]:.2f}x and again {seen[1]:.2f}x as fast as eager, "
        f"expected {expected:.2f}x"
    )


def update(
    expectations: dict[str, Any], cases: Iterable[Case], reason: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Measure every chosen case here and enter it; lower than before by the band only for a reason.

    Raises:
        ResultError: if a case is wrong, or would sink without a reason.
    """
    name = architecture(machine.describe(torch.device("cpu")))
    new = {**expectations, "quick": dict(expectations["quick"])}
    entries = dict(new["quick"].get(name, {}))
    chosen = choice(cases)
    nothing_yet = {**expectations, "quick": {name: dict.fromkeys((c.name for c in chosen), 0.0)}}
    outcome = run(nothing_yet, chosen, clock=lambda: 0.0)
    if outcome.failures:
        raise ResultError(f"nothing is expected of wrong results: {'; '.join(outcome.failures)}")
    changes, lowered = [], []
    for case, (_, ratio) in outcome.measured.items():
        old, ratio = entries.get(case, 0.0), round(ratio, 3)
        if ratio < old * (1 - expectations["band"]):
            lowered.append(
                {
                    "architecture": name,
                    "case": case,
                    "before": old,
                    "after": ratio,
                    "reason": reason,
                }
            )
        if ratio > old or reason:
            entries[case] = ratio
            changes.append(f"{case}: {old:.2f}x to {ratio:.2f}x")
    if lowered and not reason:
        named = "; ".join(f"{e['case']}: {e['before']:.2f}x to {e['after']:.2f}x" for e in lowered)
        raise ResultError(f"this would lower what is expected ({named}): say why with --reason")
    new["quick"][name] = entries
    new["lowered"] = [*expectations["lowered"], *lowered]
    return new, changes
