"""Accepted runs over commits: a file of lines that grows, and what changed in it.

``benchmarks/history.jsonl``: a header, then for every run a line with its machine and commit and a
line per case with median and quartiles of ours and the best rival's median, in milliseconds. A
case's numbers stand on one line, so that a diff names what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgm_fast.perf import machine
from dgm_fast.perf.changepoints import Step, steps
from dgm_fast.perf.files import write_whole
from dgm_fast.perf.problem import OURS
from dgm_fast.perf.results import ResultError

SCHEMA_NAME = "dgm_fast.perf.history"
SCHEMA_VERSION = 1
PATH = Path("benchmarks") / "history.jsonl"
HEADER = {"schema": {"name": SCHEMA_NAME, "version": SCHEMA_VERSION}}
RUN_FIELDS = ("run", "created", "commit", "fingerprint", "machine")
CASE_FIELDS = ("of", "case", "modes")


@dataclass(frozen=True)
class Point:
    """One case and mode in one run; milliseconds."""

    created: str
    commit: str
    ms: float
    q1: float
    q3: float
    rival_ms: float | None


@dataclass(frozen=True)
class Run:
    """One accepted run: where and what, and its cases."""

    key: str
    created: str
    commit: str
    fingerprint: str
    machine: dict[str, Any]
    cases: dict[str, dict[str, dict[str, float | None]]]


def reasons_against(result: dict[str, Any]) -> list[str]:
    """Why a run does not belong into the history."""
    facts = result["machine"]
    against = []
    if not facts["commit"]:
        against.append("its commit is unknown")
    if facts["dirty"]:
        against.append("the sources had changes that no commit holds")
    if facts["ours"] == "reference":
        against.append(f"the kernels did not run ({facts['ours_reason']})")
    wrong = [r["case"] for r in result["records"] if r["status"] == "failed"]
    if wrong:
        against.append(f"wrong or failed cases: {', '.join(wrong)}")
    if not any(r.get("modes") for r in result["records"]):
        against.append("nothing was measured")
    return against


def add(result: dict[str, Any], path: Path = PATH) -> Run:
    """Append a run; the file is complete before and after.

    Raises:
        ResultError: if the run is not acceptable or is there already, or the file is damaged.
    """
    against = reasons_against(result)
    if against:
        raise ResultError(f"this run is not accepted: {'; '.join(against)}")
    facts = result["machine"]
    key = f"{facts['commit'][:10]}-{facts['fingerprint']}-{result['created']}"
    runs = load(path) if path.exists() else []
    if any(run.key == key for run in runs):
        raise ResultError(f"{path} has the run {key} already")
    shown = {name: facts.get(name) for name in machine.FINGERPRINT_FIELDS}
    lines: list[dict[str, Any]] = [
        {
            "run": key,
            "created": result["created"],
            "commit": facts["commit"],
            "fingerprint": facts["fingerprint"],
            "machine": shown,
        }
    ]
    for record in result["records"]:
        modes = {m: _entry(by) for m, by in record.get("modes", {}).items() if OURS in by}
        if modes:
            lines.append({"of": key, "case": record["case"], "modes": modes})
    before = path.read_text() if path.exists() else json.dumps(HEADER) + "\n"
    write_whole(path, before + "".join(json.dumps(line) + "\n" for line in lines))
    return load(path)[-1]


def _entry(by_variant: dict[str, Any]) -> dict[str, float | None]:
    ours = by_variant[OURS]
    rivals = [entry["ms"] for name, entry in by_variant.items() if name != OURS]
    best = min(rivals) if rivals else None
    return {"ms": ours["ms"], "q1": ours["q1"], "q3": ours["q3"], "rival_ms": best}


def load(path: Path = PATH) -> list[Run]:
    """The runs, oldest first.

    Raises:
        FileNotFoundError: if there is no such file.
        ResultError: if it is not a history of this version, or a line is damaged.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    parsed = [_parse(path, number, line) for number, line in enumerate(lines, 1)]
    schema = parsed[0].get("schema") if parsed else None
    if not isinstance(schema, dict) or schema.get("name") != SCHEMA_NAME:
        raise ResultError(f"{path} is not a file of {SCHEMA_NAME}")
    if schema.get("version") != SCHEMA_VERSION:
        raise ResultError(
            f"{path} has version {schema.get('version')}, this release reads {SCHEMA_VERSION}"
        )
    runs: dict[str, Run] = {}
    for number, line in enumerate(parsed[1:], 2):
        if all(name in line for name in RUN_FIELDS):
            rest = {name: line[name] for name in RUN_FIELDS[1:]}
            runs[line["run"]] = Run(line["run"], cases={}, **rest)
        elif all(name in line for name in CASE_FIELDS) and line["of"] in runs:
            runs[line["of"]].cases[line["case"]] = line["modes"]
        else:
            raise ResultError(f"{path}, line {number}: neither a run nor a case of one before it")
    return list(runs.values())


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ResultError(f"{path}, line {number}: not valid JSON, perhaps cut off") from error
    if not isinstance(value, dict):
        raise ResultError(f"{path}, line {number}: not an object")
    return value


def series(runs: Iterable[Run], fingerprint: str) -> dict[tuple[str, str], list[Point]]:
    """(case, mode) -> points of one machine, in the order of the file."""
    found: dict[tuple[str, str], list[Point]] = {}
    for run in runs:
        if run.fingerprint != fingerprint:
            continue
        for case, modes in run.cases.items():
            for mode, entry in modes.items():
                point = Point(run.created, run.commit, **entry)  # type: ignore[arg-type]
                found.setdefault((case, mode), []).append(point)
    return found


def step_changes(points: list[Point]) -> list[Step]:
    return steps([point.ms for point in points])


def machines(runs: Iterable[Run]) -> dict[str, dict[str, Any]]:
    """Fingerprint -> machine facts, in the order in which they appear."""
    return {run.fingerprint: run.machine for run in runs}


def between(runs: Iterable[Run], before: str, after: str) -> list[tuple[str, str, float, float]]:
    """(case, mode, ms before, ms after) of two commits, the last run of each on a common machine.

    Raises:
        ResultError: if a commit was not measured, or the two never on one machine.
    """
    chosen: list[dict[str, Run]] = []
    for commit in (before, after):
        of_commit = {run.fingerprint: run for run in runs if run.commit.startswith(commit)}
        if not of_commit:
            raise ResultError(f"the history has no run of commit {commit}")
        chosen.append(of_commit)
    common = [f for f in chosen[0] if f in chosen[1]]
    if not common:
        first, second = next(iter(chosen[0].values())), next(iter(chosen[1].values()))
        differences = machine.differences(first.machine, second.machine)
        raise ResultError(
            f"{before} and {after} were never measured on the same machine and software, and results "
            f"of different ones are not compared ({'; '.join(differences)})"
        )
    old, new = chosen[0][common[-1]], chosen[1][common[-1]]
    return [
        (case, mode, old.cases[case][mode]["ms"], entry["ms"])  # type: ignore[misc]
        for case, modes in new.cases.items()
        for mode, entry in modes.items()
        if mode in old.cases.get(case, {})
    ]
