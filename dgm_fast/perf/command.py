"""Commands: ``dgm-fast perf`` and ``python -m dgm_fast.perf``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import torch

from dgm_fast.perf import ceiling, results, table, timing
from dgm_fast.perf.lines import numbered
from dgm_fast.perf.registry import Case, builtin_registry, compile_expression
from dgm_fast.perf.runner import Options, run_suite
from dgm_fast.perf.step import StepCase
from dgm_fast.perf.step_cases import STEPS


def selected_device(name: str) -> torch.device:
    """The device, which must exist.

    Raises:
        click.UsageError: if it does not.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda: this machine has no usable CUDA device")
    return torch.device(name)


@click.command("bench")
@click.option(
    "-k", "expression", default="", help="Cases whose names match: words, and, or, not, ()."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--quick", is_flag=True, help="Few rounds, without large and odd cases (about 2 minutes)."
)
@click.option(
    "--no-compile", is_flag=True, help="Leave out torch.compile, which compiles for minutes."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads (default: PyTorch's).")
@click.option("--list", "list_only", is_flag=True, help="Print the cases and stop.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Result file (default: benchmarks/results/<date>-<machine>-<suite>.json).",
)
def bench(
    expression: str,
    device: str,
    quick: bool,
    no_compile: bool,
    threads: int | None,
    list_only: bool,
    out: Path | None,
) -> None:
    """Time every op against eager PyTorch and torch.compile; print a table, write a result file.

    Every variant is checked against float64 first: what is wrong gets no figure, and the command
    then ends with exit code 1.
    """
    try:
        matches = compile_expression(expression)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    cases = [c for c in builtin_registry().all() if matches(c.name) and (c.quick or not quick)]
    steps = [s for s in STEPS if matches(s.name)]
    if not cases and not steps:
        raise click.UsageError(f"-k {expression!r} matches no benchmark case")
    if list_only:
        everything: list[Case | StepCase] = [*cases, *steps]
        for case in everything:
            click.echo(f"{case.name:55} {'x'.join(map(str, case.shape))}")
        return
    if threads is not None:
        torch.set_num_threads(threads)
    options = Options(
        device=selected_device(device),
        plan=timing.QUICK if quick else timing.FULL,
        compiled=not no_compile,
    )
    count = torch.get_num_threads()
    click.echo(
        f"{len(cases) + len(steps)} cases on {device}, {count} CPU threads; "
        "each is checked against float64, then timed in turns with its rivals",
        err=True,
    )
    result = run_suite(
        cases,
        options,
        steps=steps,
        progress=progress_bar(),
        report=lambda line: click.echo(line, err=True),
    )
    path = results.save(result, out or results.default_path(result))
    table.show(result)
    click.echo(f"result file: {path}", err=True)
    if any(record["status"] == "failed" for record in result["records"]):
        sys.exit(1)


@click.command("ceiling")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def show_ceiling(device: str) -> None:
    """Measure this machine's copy bandwidth and multiply-add rate."""
    roof = ceiling.measure(selected_device(device))
    for threads, rates in roof["copy"].items():
        for size, rate in rates.items():
            click.echo(f"copy  {threads:>3} threads  {int(size):>12,} bytes  {rate:8.1f} GB/s")
    for threads, by_dtype in roof["gemm"].items():
        for dtype, rate in by_dtype.items():
            click.echo(f"gemm  {threads:>3} threads  {dtype:>12}        {rate:8.3f} TFLOP/s")


@click.command("show")
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def show_result(result: Path) -> None:
    """Print the table of a result file."""
    try:
        table.show(results.load(result))
    except results.ResultError as error:
        raise click.ClickException(str(error)) from error


@click.command("compare")
@click.argument("before", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def compare_results(before: Path, after: Path) -> None:
    """Times of our ops in two result files of the same machine."""
    try:
        changes = results.compare(results.load(before), results.load(after))
    except results.ResultError as error:
        raise click.ClickException(str(error)) from error
    for change in changes:
        if change.variant == "ours":
            click.echo(
                f"{change.case:50} {change.mode:9} {change.before_ms:10.4f} "
                f"{change.after_ms:10.4f} ms  {change.ratio:6.2f}x"
            )


@click.group()
def perf() -> None:
    """Benchmarks of dgm_fast."""


perf.add_command(bench, "run")
perf.add_command(show_ceiling)
perf.add_command(show_result)
perf.add_command(compare_results)


def progress_bar() -> Callable[[Iterable[Any], int], Iterable[Any]]:
    """A bar on a terminal, one line per case elsewhere, both on stderr."""

    if not sys.stderr.isatty():
        return numbered
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
    except ImportError:
        return numbered

    def bar(items: Iterable[Any], total: int) -> Iterable[Any]:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "{task.description}")
        with Progress(*columns, console=Console(stderr=True)) as shown:
            task = shown.add_task("", total=total)
            for item in items:
                shown.update(task, description=item.name)
                yield item
                shown.advance(task)

    return bar
