"""The history file: appended whole, damage named, machines kept apart, step changes found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")

from click.testing import CliRunner
from helpers.perf_results import make_result, variant

from dgm_fast.perf import history, results
from dgm_fast.perf.command import perf
from dgm_fast.perf.results import ResultError

CASE, MODE = "elbo/medium/float32", "both"


def accepted(
    commit: str, ms: float, created: str = "2026-01-31T10:00:00+00:00", **facts: Any
) -> dict:
    result = make_result(commit=commit * 40, **facts)
    result["created"] = created
    result["records"][0]["modes"][MODE]["ours"] = variant(ms, spread=0.01 * ms)
    return result


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Five commits on one machine, the last two slower, and one on another machine."""
    path = tmp_path / "history.jsonl"
    for commit, ms in zip("abcde", (1.0, 1.01, 0.99, 1.3, 1.3), strict=True):
        history.add(accepted(commit, ms), path)
    history.add(accepted("f", 5.0, threads=64), path)
    return path


def test_a_run_is_appended_and_read_back(path: Path) -> None:
    runs = history.load(path)
    assert [run.commit[0] for run in runs] == list("abcdef")
    entry = runs[0].cases[CASE][MODE]
    assert entry == {"ms": 1.0, "q1": 0.99, "q3": 1.01, "rival_ms": 2.0}
    before = path.read_text()
    history.add(accepted("g", 1.0), path)
    # Appended: a diff has added lines only, and those name the case.
    assert path.read_text().startswith(before)
    assert sum(CASE in line for line in path.read_text()[len(before) :].splitlines()) == 1


def test_the_same_run_is_not_entered_twice(path: Path) -> None:
    with pytest.raises(ResultError, match="already"):
        history.add(accepted("a", 1.0), path)
    history.add(accepted("a", 1.0, created="2026-02-01T10:00:00+00:00"), path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dirty": True}, "changes that no commit holds"),
        ({"commit": None}, "commit is unknown"),
        ({"ours": "reference", "ours_reason": "not built"}, r"kernels did not run \(not built\)"),
    ],
)
def test_what_is_not_accepted(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ResultError, match=reason):
        history.add(make_result(**change), tmp_path / "h.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_wrong_results_are_not_accepted(tmp_path: Path) -> None:
    result = make_result()
    result["records"].append({"case": "bad/small/float32", "status": "failed", "failures": ["x"]})
    with pytest.raises(ResultError, match="failed cases: bad/small/float32"):
        history.add(result, tmp_path / "h.jsonl")
    result["records"] = []
    with pytest.raises(ResultError, match="nothing was measured"):
        history.add(result, tmp_path / "h.jsonl")


def test_interrupted_append_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        history.add(accepted("g", 1.0), path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text[:-5], r"line 13: not valid JSON, perhaps cut off"),
        (
            lambda text: text.replace('"version": 1', '"version": 7'),
            "version 7, this release reads 1",
        ),
        (lambda text: '{"schema": {"name": "other"}}\n', "not a file of"),
        (lambda text: "", "not a file of"),
        (lambda text: "[]\n", "line 1: not an object"),
        (lambda text: text + '{"of": "nowhere", "case": "a", "modes": {}}\n', "line 14: neither"),
    ],
)
def test_damaged_files_say_where(path: Path, edit: Any, message: str) -> None:
    path.write_text(edit(path.read_text()))
    with pytest.raises(ResultError, match=message):
        history.load(path)


def test_series_are_of_one_machine(path: Path) -> None:
    runs = history.load(path)
    first, second = history.machines(runs)
    assert [p.ms for p in history.series(runs, first)[CASE, MODE]] == [1.0, 1.01, 0.99, 1.3, 1.3]
    assert [p.ms for p in history.series(runs, second)[CASE, MODE]] == [5.0]


def test_step_change_is_marked(path: Path) -> None:
    runs = history.load(path)
    points = history.series(runs, next(iter(history.machines(runs))))[CASE, MODE]
    (step,) = history.step_changes(points)
    assert step.index == 3 and step.ratio == pytest.approx(1.3, rel=0.01)
    done = CliRunner().invoke(perf, ["history", "show", "--file", str(path)])
    assert done.exit_code == 0 and "1.30x at dddddddddd" in done.output


def test_commits_are_compared_on_one_machine_only(path: Path) -> None:
    runs = history.load(path)
    assert (CASE, MODE, 1.0, 1.3) in history.between(runs, "aaa", "ddd")
    with pytest.raises(
        ResultError, match=r"never measured on the same machine.*threads: 2 against 64"
    ):
        history.between(runs, "aaa", "fff")
    with pytest.raises(ResultError, match="no run of commit 999"):
        history.between(runs, "aaa", "999")
    done = CliRunner().invoke(perf, ["history", "diff", "aaa", "fff", "--file", str(path)])
    assert done.exit_code == 1 and "different ones are not compared" in done.output


def test_commands_add_and_plot(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = results.save(accepted("g", 1.3), tmp_path / "r.json")
    done = CliRunner().invoke(perf, ["history", "add", str(result), "--file", str(path)])
    assert done.exit_code == 0 and "1 cases" in done.output
    again = CliRunner().invoke(perf, ["history", "add", str(result), "--file", str(path)])
    assert again.exit_code == 1 and "already" in again.output
    out = tmp_path / "plots" / "h.png"
    done = CliRunner().invoke(perf, ["history", "plot", "--file", str(path), "--out", str(out)])
    assert done.exit_code == 0, done.output
    # One figure a machine: they are never drawn as one series.
    pictures = sorted(out.parent.iterdir())
    assert len(pictures) == 2 and all(p.read_bytes()[:4] == b"\x89PNG" for p in pictures)
