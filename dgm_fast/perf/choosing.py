"""What the commands have in common: options, and the cases that they choose."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click
import torch

from dgm_fast.perf.lines import numbered
from dgm_fast.perf.registry import BUILTIN_MODULES, Case, builtin_registry, compile_expression
from dgm_fast.perf.step import StepCase
from dgm_fast.perf.step_cases import STEPS

expression_option = click.option(
    "-k", "expression", default="", help="Cases whose names match: words, and, or, not, ()."
)
device_option = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads (default: PyTorch's)."
)
modules_option = click.option(
    "--cases",
    "modules",
    multiple=True,
    metavar="MODULE",
    help="Import a module that registers cases of your own, and take those instead (repeatable).",
)


def selected_device(name: str) -> torch.device:
    """The device, which must exist.

    Raises:
        click.UsageError: if it does not.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda: this machine has no usable CUDA device")
    return torch.device(name)


def choose(
    expression: str, *, quick: bool = False, modules: Sequence[str] = ()
) -> tuple[list[Case], list[StepCase]]:
    """The cases and training steps that a command is about.

    Raises:
        click.UsageError: if the expression is malformed, a module is missing, or nothing matches.
    """
    try:
        matches = compile_expression(expression)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    cases = builtin_registry().all()
    if modules:
        cases = users_cases(modules)
    cases = [c for c in cases if matches(c.name) and (c.quick or not quick)]
    steps = [s for s in STEPS if matches(s.name) and not modules]
    if not cases and not steps:
        raise click.UsageError(f"-k {expression!r} matches no benchmark case")
    return cases, steps


def users_cases(modules: Sequence[str]) -> list[Case]:
    """The cases that users' modules register, found from the working directory too.

    Raises:
        click.UsageError: if a module cannot be imported.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise click.UsageError(f"--cases {module}: {error}") from error
    return [c for c in builtin_registry().all() if c.build.__module__ not in BUILTIN_MODULES]


def progress_bar(describe: Callable[[Any], str] = lambda item: item.name) -> Callable[..., Any]:
    """A bar on a terminal, one line per case elsewhere, both on stderr."""

    def lines(items: Iterable[Any], total: int | None = None) -> Iterator[Any]:
        return numbered(items, _total(items, total), describe)

    if not sys.stderr.isatty():
        return lines
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
    except ImportError:
        return lines

    def bar(items: Iterable[Any], total: int | None = None) -> Iterable[Any]:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "{task.description}")
        with Progress(*columns, console=Console(stderr=True)) as shown:
            task = shown.add_task("", total=_total(items, total))
            for item in items:
                shown.update(task, description=describe(item))
                yield item
                shown.advance(task)

    return bar


def _total(items: Iterable[Any], total: int | None) -> int:
    return total if total is not None else len(items)  # type: ignore[arg-type]
