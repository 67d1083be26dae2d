"""Commands that judge: ``dgm-fast perf ab``, ``selftest``, ``gate``."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import click
import torch

from dgm_fast.perf import (
    ab,
    changed,
    gate,
    gate_quick,
    machine,
    pairs,
    results,
    selftest,
    stats,
    timing,
    worktrees,
)
from dgm_fast.perf.choosing import (
    choose,
    device_option,
    expression_option,
    modules_option,
    progress_bar,
    selected_device,
    threads_option,
)
from dgm_fast.perf.registry import Case
from dgm_fast.perf.results import ResultError
from dgm_fast.perf.runner import Options, run_suite

FILE = click.Path(dir_okay=False, path_type=Path)
READABLE = click.Path(exists=True, dir_okay=False, path_type=Path)
STILL = "A/A again and again: silent? 15% slower: caught?"


def _say(line: str) -> None:
    click.echo(line, err=True)


@click.command("ab")
@click.argument("base")
@click.argument("head", default="HEAD")
@expression_option
@click.option("--changed", "only_changed", is_flag=True, help="Cases that the diff can touch.")
@click.option("--quick", is_flag=True, help="Without large and odd cases.")
@click.option("--threshold", type=float, help="Relative change (default: 0.10; 0.05 on a GPU).")
@click.option("--floor-us", type=float, help="Absolute change, microseconds (default: 0.5; 2).")
@click.option("--markdown", "out", type=FILE, help="Write the table there as well.")
@click.option("--repo", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--build", help="Command that builds a worktree of --repo.")
@device_option
@threads_option
@modules_option
def compare_revisions(
    base: str,
    head: str,
    expression: str,
    only_changed: bool,
    quick: bool,
    threshold: float | None,
    floor_us: float | None,
    out: Path | None,
    repo: Path | None,
    build: str | None,
    device: str,
    threads: int | None,
    modules: tuple[str, ...],
) -> None:
    """Time two revisions against each other, in turns; exit code 1 if HEAD is slower or wrong.

    Both are checked out into throw-away worktrees and built (a build is kept under build/ab). A case
    is slower beyond a relative threshold and an absolute floor, with a significant rank test, in most
    of three sessions. Prints a Markdown table.
    """
    project = worktrees.Project(repo or machine.ROOT, build)
    cases, steps = choose(expression, quick=quick, modules=modules)
    names = [*(case.name for case in cases), *(step.name for step in steps)]
    rule = _rule(device, threshold, floor_us)
    count = threads or torch.get_num_threads()
    setup = pairs.Setup(count, selected_device(device).type, modules)
    try:
        if head == "HEAD" and worktrees.is_dirty(project.root):
            _say("note: the work tree has changes that HEAD does not hold; they are not measured")
        if only_changed:
            files = worktrees.changed_files(project.root, base, head)
            names = changed.touched(files, cases, steps, project.root)
            if not names:
                click.echo(f"No case is touched by the {len(files)} changed files.")
                return
        _say(f"{len(names)} cases, {count} threads")
        with worktrees.sides(project, base, head, _say) as (old, new):
            result = ab.compare(old, new, names, setup, rule, progress=progress_bar(str))
    except (worktrees.RevisionError, pairs.WorkerError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    text = ab.markdown(result)
    click.echo(text)
    if out:
        out.write_text(text)
    if not result.ok:
        sys.exit(1)


def _rule(device: str, threshold: float | None, floor_us: float | None) -> stats.Rule:
    usual = stats.Rule.of_device(device)
    return stats.Rule(
        usual.threshold if threshold is None else threshold,
        usual.floor_s if floor_us is None else 1e-6 * floor_us,
    )


@click.command("selftest", help=STILL)
@click.option("--tries", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--log", type=FILE, default=Path("build/perf-selftest.jsonl"), show_default=True)
@click.option("--simulate", is_flag=True, help="Draw the tries from the log's A/A rounds instead.")
@expression_option
@threads_option
def run_selftest(
    tries: int, log: Path, simulate: bool, expression: str, threads: int | None
) -> None:
    """Tries are added to the log one by one; exit code 1 if fewer than 19 of 20 in it are right."""
    setup = pairs.Setup(threads or torch.get_num_threads())
    rule = stats.Rule()
    cases: tuple[str, ...] = selftest.CASES
    if expression:
        cases = tuple(case.name for case in choose(expression)[0])
    try:
        records: list[dict[str, Any]]
        if simulate:
            records = simulated(selftest.recorded_noise(selftest.load(log)), tries, rule)
        else:
            records = selftest.tries(tries, cases, setup, rule, log, _say)
    except (OSError, ResultError, pairs.WorkerError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(selftest.summary(records))
    right = sum(selftest.outcome(r) in ("silent", "caught") for r in records)
    if right < 0.95 * len(records):
        sys.exit(1)


def simulated(
    sessions: list[selftest.Looks], tries: int, rule: stats.Rule, seed: int = 0
) -> list[dict[str, Any]]:
    """``tries`` A/A and as many slowed tries on recorded noise."""
    generator = random.Random(seed)
    cases = sorted({case for looks in sessions for case, _ in looks})
    records = []
    for number in range(tries):
        for slowed in (None, cases[number % len(cases)]):
            records.append(selftest.simulate(sessions, rule, generator, slowed=slowed))
    return records


@click.command("gate")
@click.argument("result", type=READABLE, required=False)
@click.option("--expectations", type=FILE, default=gate.PATH, show_default=True)
@click.option("--update", is_flag=True, help="Enter this result as what is expected.")
@click.option("--reason", help="Why less may be expected than before; recorded.")
@click.option("--quick", is_flag=True, help="A case a family, eager, one thread; half is enough.")
@expression_option
@device_option
@threads_option
@modules_option
def run_gate(
    result: Path | None,
    expectations: Path,
    update: bool,
    reason: str | None,
    quick: bool,
    expression: str,
    device: str,
    threads: int | None,
    modules: tuple[str, ...],
) -> None:
    """Hold the speed-up over the best rival against what is expected of every family.

    Takes RESULT, or measures now. Exit code 1 if a family falls below its noise band.
    """
    if quick and (result or device != "cpu"):
        raise click.UsageError("--quick measures for itself, on the CPU")
    cases, steps = choose(expression, modules=modules)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        expected = gate.load(expectations) if expectations.exists() or not update else gate.empty()
        if quick and update:
            expected, changes = gate_quick.update(expected, cases, reason)
            gate.save(expected, expectations)
            click.echo("\n".join(changes) or "nothing rose")
            return
        if quick:
            _quick(expected, cases)
            return
        if result is not None:
            run = results.load(result)
        else:
            options = Options(device=selected_device(device), plan=timing.FULL)
            run = run_suite(cases, options, steps=steps, progress=progress_bar(), report=_say)
        if update:
            expected, changes = gate.update(run, expected, reason)
            gate.save(expected, expectations)
            click.echo("\n".join(changes) or "nothing rose, nothing new")
            return
        outcome = gate.check(run, expected, complete=result is None and not expression)
    except FileNotFoundError as error:
        raise click.ClickException(f"{error}: enter expectations with gate --update") from error
    except ResultError as error:
        raise click.ClickException(str(error)) from error
    click.echo(gate.text(outcome))
    if not outcome.ok:
        sys.exit(1)


def _quick(expected: dict[str, Any], cases: list[Case]) -> None:
    outcome = gate_quick.run(expected, cases)
    for case, (wanted, seen) in outcome.measured.items():
        click.echo(f"{case:50} {seen:6.2f}x, expected {wanted:6.2f}x")
    for note in outcome.notes:
        click.echo(f"note: {note}")
    for failure in outcome.failures:
        click.echo(f"FAILED {failure}")
    if outcome.failures:
        sys.exit(1)
