"""Command-line options of ``dgm-fast train`` that follow from the model kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dgm_fast.train.options import Option, declared
from dgm_fast.train.registry import kinds


class _Sizes(click.ParamType):
    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        if isinstance(value, list | tuple):
            return list(value)
        try:
            sizes = [int(part) for part in str(value).split(",")]
        except ValueError:
            sizes = []
        if not sizes or min(sizes) < 1:
            self.fail(f"{value!r} is not a list of positive whole numbers such as 200,200", param)
        return sizes


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command every option that a kind takes; None where the user gave none."""
    for option in reversed(declared()):
        text = f"{option.help} [{_defaults(option)}]"
        reading: dict[str, Any] = (
            {"is_flag": True} if option.type is bool else {"type": _click_type(option)}
        )
        command = click.option(option.flag, default=None, help=text, **reading)(command)
    return command


def run_default(name: str, common: str) -> str:
    """The default of a run's option for the help: ``common``, and those of kinds with their own."""
    own = {kind.name: kind.defaults[name] for kind in kinds() if name in kind.defaults}
    others = {kind: value for kind, value in own.items() if _shown(value) != common}
    return "; ".join([common, *_by_value(others)])


def _click_type(option: Option) -> click.ParamType:
    if option.type is str:
        return click.Choice(option.choices)
    if option.type is list:
        return _Sizes()
    if option.type is int:
        return click.IntRange(None if option.minimum is None else int(option.minimum))
    return click.FloatRange(
        option.minimum, option.below, min_open=option.above, max_open=option.below is not None
    )


def _defaults(option: Option) -> str:
    """Which kinds take the option, with their defaults."""
    taking = [kind for kind in kinds() if option.name in kind.options]
    if option.type is bool:
        return ", ".join(kind.name for kind in taking)
    values = {}
    for kind in taking:
        value = kind.options[option.name]
        values[kind.name] = kind.stands_for.get(option.name) if value is None else value
    return "; ".join(_by_value(values))


def _by_value(values: dict[str, Any]) -> list[str]:
    """ "a, b 5" for each value, of the names that have it."""
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault(_shown(value), []).append(name)
    return [f"{', '.join(group)} {value}" for value, group in names.items()]


def _shown(value: Any) -> str:
    if value is None:
        return "what fits"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
