"""The gate: ours against the best rival, held against what is expected of every family.

Ratios of times measured together survive a change of machine, milliseconds do not. Expectations are
kept by architecture (device, instruction set, threads) in ``benchmarks/expectations.json``.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgm_fast.perf import table
from dgm_fast.perf.files import write_whole
from dgm_fast.perf.problem import COMPILE, OURS
from dgm_fast.perf.results import ResultError

SCHEMA_NAME = "dgm_fast.perf.expectations"
SCHEMA_VERSION = 1
PATH = Path("benchmarks") / "expectations.json"
# Of the geometric mean of a family.
BAND = 0.10
MODES = ("both", "step")


@dataclass(frozen=True)
class Ratios:
    """Times of the fastest rival over ours: above 1 we win."""

    best: float
    # Without torch.compile, for runs that leave it out.
    uncompiled: float


@dataclass
class Finding:
    """One family against its expectation, over the cases that both know."""

    family: str
    expected: float
    measured: float
    num_cases: int
    ok: bool
    # Cases below half of what is expected of them, by name.
    far_below: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a gate run says."""

    architecture: str
    findings: list[Finding]
    notes: list[str]
    # The run has fewer cases than are expected, or wrong ones.
    failures: list[str]

    @property
    def ok(self) -> bool:
        return not self.failures and all(finding.ok for finding in self.findings)


def architecture(facts: dict[str, Any]) -> str:
    """What ratios depend on most: "cpu-avx512-2t", or the GPU's name."""
    if facts["device"] == "cuda":
        return "cuda-" + facts["gpu"].lower().replace(" ", "-")
    return f"cpu-{facts['isa']}-{facts['threads']}t"


def ratios(result: dict[str, Any]) -> dict[str, dict[str, Ratios]]:
    """Family -> case -> ratios: forward and backward, forward alone of samplers, steps."""
    families = {r["case"]: r.get("family", "") for r in result["records"]}
    by_case = {r["case"]: r.get("modes", {}) for r in result["records"]}
    found: dict[str, dict[str, Ratios]] = {}
    for row in table.rows(result):
        modes = by_case[row.case]
        if row.mode not in MODES and set(modes) & set(MODES):
            continue
        if row.mode not in (*MODES, "forward"):
            continue
        times = {name: entry["ms"] for name, entry in modes[row.mode].items()}
        ours = times.pop(OURS)
        uncompiled = [ms for name, ms in times.items() if name != COMPILE]
        pair = Ratios(round(min(times.values()) / ours, 3), round(min(uncompiled) / ours, 3))
        found.setdefault(families[row.case], {})[row.case] = pair
    return found


def check(
    result: dict[str, Any], expectations: dict[str, Any], *, complete: bool = False
) -> Outcome:
    """Hold a result against the expectations of its architecture.

    A family fails when its geometric mean over the common cases falls below the expected one by more
    than the band. ``complete`` also fails where an expected case was not measured.

    Raises:
        ResultError: if the architecture has no expectations.
    """
    name = architecture(result["machine"])
    expected = expectations["architectures"].get(name)
    if expected is None:
        known = ", ".join(expectations["architectures"]) or "none"
        raise ResultError(
            f"no expectations for {name} (there are: {known}): enter them with gate --update"
        )
    compiled = result["settings"].get("compiled", True)
    measured = ratios(result)
    findings, notes, failures = [], [], []
    for record in result["records"]:
        failures += [f"{record['case']}: no figure: {f}" for f in record.get("failures", [])]
        notes += [
            f"{record['case']}: without {rival}, which is wrong: {error}"
            for rival, error in record.get("wrong", {}).items()
        ]
    for family, cases in expected["families"].items():
        here = measured.get(family, {})
        common = [case for case in cases if case in here]
        absent = [case for case in cases if case not in here]
        if complete and absent:
            failures.append(f"{family}: expected and not measured: {', '.join(absent)}")
        if common:
            before = {case: _chosen(Ratios(*cases[case]), compiled) for case in common}
            now = {case: _chosen(here[case], compiled) for case in common}
            findings.append(_finding(family, before, now, expectations["band"]))
    for family, here in measured.items():
        new = [c for c in here if c not in expected["families"].get(family, {})]
        if new:
            notes.append(f"{family}: nothing is expected of {', '.join(new)} yet")
    return Outcome(name, findings, notes, failures)


def _chosen(pair: Ratios, compiled: bool) -> float:
    return pair.best if compiled else pair.uncompiled


def _finding(family: str, before: dict[str, float], now: dict[str, float], band: float) -> Finding:
    expected = statistics.geometric_mean(before.values())
    measured = statistics.geometric_mean(now.values())
    far = {c: (before[c], now[c]) for c in before if now[c] < 0.5 * before[c]}
    return Finding(family, expected, measured, len(now), measured >= expected * (1 - band), far)


def text(outcome: Outcome) -> str:
    """The outcome as lines for a terminal."""
    lines = [f"{outcome.architecture}: time of the best rival over ours, geometric mean by family"]
    for f in outcome.findings:
        word = "ok" if f.ok else "BELOW"
        seen = f"{f.family:14} {f.measured:6.2f}x, expected {f.expected:6.2f}x"
        lines.append(f"  {seen}, {f.num_cases:3} cases  {word}")
        for case, (before, now) in f.far_below.items():
            lines.append(f"    {case}: {now:.2f}x, expected {before:.2f}x")
    lines += [f"  FAILED {failure}" for failure in outcome.failures]
    lines += [f"  note: {note}" for note in outcome.notes]
    return "\n".join(lines)


def update(
    result: dict[str, Any], expectations: dict[str, Any], reason: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Expectations with this result in them, and what changed in words.

    What the result does not measure stays. A family inside the band keeps its old numbers, so that
    nothing sinks by small steps; one above it rises. With a reason, every measured number is taken.

    Raises:
        ResultError: if a family would sink below its band without a reason, or results are wrong.
    """
    wrong = [r["case"] for r in result["records"] if r.get("failures")]
    if wrong:
        raise ResultError(f"nothing is expected of wrong results: {', '.join(wrong)}")
    if not result["settings"].get("compiled", True):
        raise ResultError("expectations need a run with torch.compile among the rivals")
    name = architecture(result["machine"])
    new = json.loads(json.dumps(expectations))
    of_arch = new["architectures"].setdefault(name, {"families": {}})
    changes, lowered = [], []
    for family, here in ratios(result).items():
        old = of_arch["families"].setdefault(family, {})
        common = [case for case in here if case in old]
        entries = {case: [pair.best, pair.uncompiled] for case, pair in here.items()}
        if common:
            before = {case: old[case][0] for case in common}
            f = _finding(family, before, {c: here[c].best for c in common}, new["band"])
            if not f.ok:
                lowered.append((family, f.expected, f.measured))
            elif not reason and f.measured <= f.expected:
                entries = {case: entry for case, entry in entries.items() if case not in old}
            if f.measured > f.expected or reason:
                changes.append(f"{family}: {f.expected:.2f}x to {f.measured:.2f}x")
        added = [case for case in entries if case not in old]
        if added:
            changes.append(f"{family}: {len(added)} new cases")
        old |= entries
    if lowered and not reason:
        named = "; ".join(f"{f}: {a:.2f}x to {b:.2f}x" for f, a, b in lowered)
        raise ResultError(f"this would lower what is expected ({named}): say why with --reason")
    facts = result["machine"]
    of_arch["source"] = {
        "created": result["created"],
        "commit": facts["commit"],
        "cpu": facts["cpu"],
        "gpu": facts["gpu"],
        "torch": facts["torch"],
    }
    new["lowered"] += [
        {
            "created": result["created"],
            "architecture": name,
            "family": family,
            "before": round(before, 3),
            "after": round(after, 3),
            "reason": reason,
        }
        for family, before, after in lowered
    ]
    return new, changes


def empty() -> dict[str, Any]:
    return {
        "schema": {"name": SCHEMA_NAME, "version": SCHEMA_VERSION},
        "band": BAND,
        "architectures": {},
        # See gate_quick.
        "quick": {},
        "lowered": [],
    }


def load(path: Path = PATH) -> dict[str, Any]:
    """The expectations.

    Raises:
        FileNotFoundError: if there is no such file.
        ResultError: if it is damaged, foreign or of another version.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        raise ResultError(f"{path} is not valid JSON, perhaps cut off: {error}") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if not isinstance(schema, dict) or schema.get("name") != SCHEMA_NAME:
        raise ResultError(f"{path} is not a file of {SCHEMA_NAME}")
    if schema.get("version") != SCHEMA_VERSION:
        raise ResultError(
            f"{path} has version {schema.get('version')}, this release reads {SCHEMA_VERSION}"
        )
    missing = [name for name in ("band", "architectures", "quick", "lowered") if name not in found]
    if missing:
        raise ResultError(f"{path} is damaged: it has no {', '.join(missing)}")
    return found


def save(expectations: dict[str, Any], path: Path = PATH) -> Path:
    """One case a line, so that a review sees what moves."""
    return write_whole(path, _layout(expectations) + "\n")


def _layout(value: Any, depth: int = 0) -> str:
    """JSON, indented; lists of numbers stay on one line."""
    pad = " " * (depth + 1)
    if isinstance(value, dict) and value:
        rows = (f"{pad}{json.dumps(k)}: {_layout(v, depth + 1)}" for k, v in value.items())
        return "{\n" + ",\n".join(rows) + f"\n{' ' * depth}}}"
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
        rows = (pad + _layout(v, depth + 1) for v in value)
        return "[\n" + ",\n".join(rows) + f"\n{' ' * depth}]"
    return json.dumps(value, allow_nan=False)
