"""Commands that show: ``dgm-fast perf report``, ``profile``."""

from __future__ import annotations

from pathlib import Path

import click

from dgm_fast.perf import history, profiling, report, results
from dgm_fast.perf.choosing import choose, device_option, modules_option, selected_device
from dgm_fast.perf.files import write_whole

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("report")
@click.argument(
    "result", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False
)
@click.option("--out", type=FILE, default=Path("out/perf-report.html"), show_default=True)
@click.option("--history", "history_path", type=FILE, default=history.PATH, show_default=True)
def make_report(result: Path | None, out: Path, history_path: Path) -> None:
    """Write one HTML page about RESULT (default: the newest file in benchmarks/results)."""
    if result is None:
        found = list(results.RESULTS.glob("*.json"))
        if not found:
            raise click.UsageError(f"no result file in {results.RESULTS}: run `perf run` first")
        result = max(found, key=lambda path: path.stat().st_mtime)
    try:
        runs = history.load(history_path) if history_path.exists() else []
        text = report.page(results.load(result), runs)
    except (results.ResultError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{write_whole(out, text)} ({len(text) / 1e6:.1f} MB), from {result}")


@click.command("profile")
@click.argument("case")
@click.option(
    "--variant", default="ours", show_default=True, help="ours, eager, compile or a peer."
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out/profile")
)
@device_option
@modules_option
def show_profile(case: str, variant: str, out: Path, device: str, modules: tuple[str, ...]) -> None:
    """Where the time of CASE goes: operators, launches, bytes, and a trace file for a viewer.

    CASE is a name as `perf run --list` prints it. On a GPU with Nsight Compute, its counters too.
    """
    cases, _ = choose(case, modules=modules)
    named = [c for c in cases if c.name == case] or cases
    if len(named) != 1:
        names = ", ".join(c.name for c in named[:8]) or "a training step"
        raise click.UsageError(f"{case!r} must name one case, and matches {names}")
    try:
        found = profiling.profile_case(named[0], variant, selected_device(device), out)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(profiling.text(found))
    if device == "cuda":
        click.echo(profiling.ncu(named[0], variant))
