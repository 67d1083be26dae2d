"""Commands over the history: ``dgm-fast perf history add``, ``show``, ``plot``, ``diff``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from dgm_fast.perf import history, machine, results
from dgm_fast.perf.choosing import expression_option
from dgm_fast.perf.registry import compile_expression
from dgm_fast.perf.results import ResultError

FILE = click.Path(dir_okay=False, path_type=Path)
READABLE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group("history")
def history_group() -> None:
    """Accepted runs over commits: add one, draw them, compare two commits."""


PATH_OPTION = click.option("--file", "path", type=FILE, default=history.PATH, show_default=True)


@history_group.command("add")
@click.argument("result", type=READABLE)
@PATH_OPTION
def history_add(result: Path, path: Path) -> None:
    """Accept a result file: append it. Wrong results and uncommitted sources are refused."""
    try:
        run = history.add(results.load(result), path)
    except ResultError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{run.key}: {len(run.cases)} cases")


@history_group.command("show")
@expression_option
@PATH_OPTION
def history_show(expression: str, path: Path) -> None:
    """Step changes of every case, machine by machine."""
    matches = _matcher(expression)
    runs = _runs(path)
    for fingerprint, facts in history.machines(runs).items():
        click.echo(f"{machine.slug(facts)} ({fingerprint})")
        for (case, mode), points in history.series(runs, fingerprint).items():
            if not matches(case):
                continue
            line = f"  {case:50} {mode:9} {len(points):3} runs, last {points[-1].ms:.4g} ms"
            for step in history.step_changes(points):
                line += f"; {step.ratio:.2f}x at {points[step.index].commit[:10]}"
            click.echo(line)


@history_group.command("plot")
@expression_option
@click.option("--mode", default="both", show_default=True)
@click.option("--out", type=FILE, default=Path("out/history.png"), show_default=True)
@PATH_OPTION
def history_plot(expression: str, mode: str, out: Path, path: Path) -> None:
    """Draw cases over commits: a figure a machine (OUT-<machine>), step changes marked."""
    from dgm_fast.perf import plots

    matches = _matcher(expression)
    runs = _runs(path)
    for fingerprint, facts in history.machines(runs).items():
        chosen = {
            case: points
            for (case, m), points in history.series(runs, fingerprint).items()
            if matches(case) and (m == mode or m == "step")
        }
        if chosen:
            name = f"{out.stem}-{machine.slug(facts)}-{fingerprint}{out.suffix}"
            out.parent.mkdir(parents=True, exist_ok=True)
            plots.history_figure(chosen).savefig(out.with_name(name), dpi=120)
            click.echo(str(out.with_name(name)))


@history_group.command("diff")
@click.argument("before")
@click.argument("after")
@PATH_OPTION
def history_diff(before: str, after: str, path: Path) -> None:
    """Times of two commits on a machine that measured both; others are refused."""
    try:
        rows = history.between(_runs(path), before, after)
    except ResultError as error:
        raise click.ClickException(str(error)) from error
    for case, mode, old, new in rows:
        click.echo(f"{case:50} {mode:9} {old:10.4f} {new:10.4f} ms  {new / old:6.2f}x")


def _matcher(expression: str) -> Callable[[str], bool]:
    try:
        return compile_expression(expression)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _runs(path: Path) -> list[history.Run]:
    try:
        return history.load(path)
    except (FileNotFoundError, ResultError) as error:
        raise click.ClickException(str(error)) from error
