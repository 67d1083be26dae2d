"""Commands that measure (``dgm-fast perf run``, ``ceiling``, ``show``, ``compare``), and their group."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch

from dgm_fast.perf import ceiling, history, results, table, timing
from dgm_fast.perf.choosing import (
    choose,
    device_option,
    expression_option,
    modules_option,
    progress_bar,
    selected_device,
    threads_option,
)
from dgm_fast.perf.command_history import history_group
from dgm_fast.perf.command_report import make_report, show_profile
from dgm_fast.perf.command_tracking import compare_revisions, run_gate, run_selftest
from dgm_fast.perf.registry import Case
from dgm_fast.perf.runner import Options, run_suite
from dgm_fast.perf.step import StepCase


@click.command("bench")
@expression_option
@device_option
@click.option(
    "--quick", is_flag=True, help="Few rounds, without large and odd cases (about 2 minutes)."
)
@click.option(
    "--no-compile", is_flag=True, help="Leave out torch.compile, which compiles for minutes."
)
@threads_option
@modules_option
@click.option("--list", "list_only", is_flag=True, help="Print the cases and stop.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Result file (default: benchmarks/results/<date>-<machine>-<suite>.json).",
)
@click.option("--accept", is_flag=True, help="Append the run to benchmarks/history.jsonl.")
def bench(
    expression: str,
    device: str,
    quick: bool,
    no_compile: bool,
    threads: int | None,
    modules: tuple[str, ...],
    list_only: bool,
    out: Path | None,
    accept: bool,
) -> None:
    """Time every op against eager PyTorch and torch.compile; print a table, write a result file.

    Every variant is checked against float64 first: what is wrong gets no figure, and the command
    then ends with exit code 1.
    """
    cases, steps = choose(expression, quick=quick, modules=modules)
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
    if accept:
        try:
            history.add(result)
        except results.ResultError as error:
            raise click.ClickException(str(error)) from error


@click.command("ceiling")
@device_option
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
for command in (
    make_report,
    compare_revisions,
    run_gate,
    history_group,
    show_profile,
    show_ceiling,
    show_result,
    compare_results,
    run_selftest,
):
    perf.add_command(command)
