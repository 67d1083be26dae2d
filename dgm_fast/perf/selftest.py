"""Does the A/B decision stay silent on noise and catch a slow-down? Measured, and simulated on record."""

from __future__ import annotations

import datetime
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dgm_fast.perf import ab, machine, pairs, stats
from dgm_fast.perf.files import write_whole
from dgm_fast.perf.results import ResultError

SCHEMA = "dgm_fast.perf.selftest/1"
SLOW_DOWN = 0.15
# Small enough for many tries, of several kinds: launch-bound, vectorised, threaded.
CASES = (
    "gaussian_kl/small/float32",
    "bernoulli_log_prob/medium/float32",
    "elbo/medium/float32",
    "nade_log_prob/small/float32",
)

Looks = dict[tuple[str, str], stats.Look]


def run_try(
    number: int,
    cases: Sequence[str],
    setup: pairs.Setup,
    rule: stats.Rule,
    *,
    slow: bool,
    share: float = SLOW_DOWN,
) -> dict[str, Any]:
    """One A/B run of the installed package against itself; ``slow`` slows one case of head down.

    Both sides carry the wrapper that slows down, so that its own cost is no difference.
    """
    target = cases[number % len(cases)] if slow else None
    still = dict.fromkeys(cases, 0.0)
    base = pairs.Side("A", slow=still)
    head = pairs.Side("A again", slow=still)
    if target is not None:
        head = replace(head, slow={**still, target: share})
    load = os.getloadavg()[0]
    result = ab.compare(base, head, cases, setup, rule)
    if result.failed or result.left_out:
        raise pairs.WorkerError(f"cannot be timed: {result.failed or result.left_out}")
    facts = machine.describe(torch.device(setup.device))
    return {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": facts["commit"],
        "fingerprint": facts["fingerprint"],
        "load": round(load, 2),
        "slowed": target,
        "share": share if slow else 0.0,
        "slower": [list(key) for key in result.of(stats.SLOWER)],
        "faster": [list(key) for key in result.of(stats.FASTER)],
        "looked_again": [list(key) for key in result.looked_again],
        "looks_us": {
            f"{case} {mode}": [[_microseconds(side) for side in (k.base, k.head)] for k in d.looks]
            for (case, mode), d in result.decisions.items()
        },
    }


def outcome(record: dict[str, Any]) -> str:
    """ "silent", "caught", "missed" or "false alarm" (also: an innocent case was named)."""
    named = {case for case, _ in record["slower"]}
    if named - {record["slowed"]} or record["faster"]:
        return "false alarm"
    if record["slowed"] is None:
        return "silent"
    return "caught" if named else "missed"


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a try to a log, which is whole before and after."""
    before = path.read_text() if path.exists() else ""
    write_whole(path, before + json.dumps(record) + "\n")


def load(path: Path) -> list[dict[str, Any]]:
    """The tries of a log.

    Raises:
        ResultError: if a line is not a try, with its number.
    """
    records = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ResultError(f"{path}, line {number}: not valid JSON, perhaps cut off") from error
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise ResultError(f"{path}, line {number}: not a try of {SCHEMA}")
        records.append(record)
    return records


def summary(records: Sequence[dict[str, Any]]) -> str:
    """How many tries went right."""
    lines = []
    for kind, wanted in (("A/A", "silent"), ("slowed", "caught")):
        outcomes = [outcome(r) for r in records if (r["slowed"] is None) == (kind == "A/A")]
        if outcomes:
            lines.append(f"{kind}: {outcomes.count(wanted)} of {len(outcomes)} {wanted}")
    return "; ".join(lines)


def recorded_noise(records: Sequence[dict[str, Any]]) -> list[Looks]:
    """The looks of A/A tries: what this machine does when nothing changed."""
    sessions: list[Looks] = []
    for record in records:
        if record["slowed"] is not None:
            continue
        for number in range(1 + ab.FURTHER_LOOKS):
            looks = {}
            for key, by_look in record["looks_us"].items():
                if number < len(by_look):
                    base, head = ([1e-6 * us for us in side] for side in by_look[number])
                    case, mode = key.rsplit(" ", 1)
                    looks[case, mode] = stats.Look(tuple(base), tuple(head))
            if looks:
                sessions.append(looks)
    return sessions


def simulate(
    sessions: Sequence[Looks],
    rule: stats.Rule,
    generator: random.Random,
    *,
    slowed: str | None = None,
    share: float = SLOW_DOWN,
) -> dict[str, Any]:
    """One A/B run with rounds drawn from recorded sessions, as :func:`outcome` judges it."""
    keys = sorted({key for looks in sessions for key in looks})

    def look(base: Any, head: Any, cases: Sequence[str], *rest: Any) -> tuple:
        found = {}
        for key in keys:
            if key[0] in cases:
                drawn = generator.choice([looks for looks in sessions if key in looks])[key]
                factor = 1 + share if key[0] == slowed else 1.0
                found[key] = _redraw(drawn, factor, generator)
        return found, {}, {}

    cases = sorted({case for case, _ in keys})
    nothing = pairs.Side("A")
    result = ab.compare(nothing, nothing, cases, pairs.Setup(threads=1), rule, look=look)
    return {
        "slowed": slowed,
        "slower": result.of(stats.SLOWER),
        "faster": result.of(stats.FASTER),
    }


def _redraw(look: stats.Look, factor: float, generator: random.Random) -> stats.Look:
    """Rounds drawn with replacement within each side, sides exchanged at random, head times factor."""
    first, second = look.base, look.head
    if generator.random() < 0.5:
        first, second = second, first
    base = generator.choices(first, k=len(first))
    head = generator.choices(second, k=len(second))
    return stats.Look(tuple(base), tuple(factor * s for s in head))


def _microseconds(rounds: Sequence[float]) -> list[float]:
    return [float(f"{1e6 * s:.4g}") for s in rounds]


def tries(
    wanted: int,
    cases: Sequence[str],
    setup: pairs.Setup,
    rule: stats.Rule,
    log: Path,
    report: Callable[[str], None],
) -> list[dict[str, Any]]:
    """``wanted`` A/A tries and as many slowed ones, logged one by one; returns the whole log."""
    done = len(load(log)) if log.exists() else 0
    for number in range(done, done + 2 * wanted):
        record = run_try(number // 2, cases, setup, rule, slow=bool(number % 2))
        append(log, record)
        kind = f"{record['slowed']} slowed" if record["slowed"] else "A/A"
        report(f"try {number + 1}: {kind}: {outcome(record)} (load {record['load']:.1f})")
    return load(log)
