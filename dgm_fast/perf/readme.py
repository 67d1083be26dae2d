"""Writes README's benchmark section from a result file.

    python -m dgm_fast.perf.readme benchmarks/results/RESULT.json [--readme README.md] [--check]

The section lies between the comments ``<!-- bench:start -->`` and ``<!-- bench:end -->`` and names
its result file, so that a figure can be traced and a test can tell whether the two are in step.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dgm_fast.perf import results, table

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
# Ascending.
_SIZES = ("odd", "small", "medium", "large")
_NAMED = re.compile(r"\[result file\]\(([^)\s]+)\)")


def section(result: dict[str, Any], name: str) -> str:
    """The generated text between the markers; ``name`` is the result file as linked from README."""
    measured = table.main_rows(result)
    largest = _largest(row.case for row in measured)
    shown = [row for row in measured if row.case in largest]
    others = [row for row in measured if row.case not in largest]
    lines = [
        f"{table.headline(result)} ([result file]({name})).",
        "Forward and backward of one call, the forward alone of samplers; `step` rows are whole training "
        "steps. Below 1x we lose.",
        "",
        table.markdown(shown),
    ]
    if others:
        mean = statistics.geometric_mean(row.speed_up for row in others)
        lost = ", ".join(f"{r.case} {r.speed_up:.2f}x" for r in others if r.speed_up < 0.995)
        lines += [
            "",
            f"The {len(others)} other cases (smaller and odd sizes, bfloat16) are {mean:.2f}x the better "
            f"rival in the geometric mean. Lost among them: {lost or 'none'}.",
        ]
    profiles = table.step_profiles(result)
    if profiles:
        lines += ["", "Where a training step's time goes:", ""]
        lines += [f"- {line}" for line in profiles if line]
    notes = table.problems(result)
    if notes:
        lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines)


def _largest(cases: Iterable[str]) -> set[str]:
    """Of every op (and variant) the largest size in float32; what has no known size, such as steps, too."""
    best: dict[str, str] = {}
    for case in cases:
        op, size, dtype = case.split("/")
        if size not in _SIZES:
            best[case] = case
        elif dtype == "float32" and (
            op not in best or _SIZES.index(size) > _SIZES.index(best[op].split("/")[1])
        ):
            best[op] = case
    return set(best.values())


def named_result(readme: str) -> str | None:
    """The result file that README's section names; None without a (filled) section."""
    if START not in readme:
        return None
    match = _NAMED.search(_split(readme)[1])
    return match.group(1) if match else None


def rewrite(readme: str, body: str) -> str:
    """``readme`` with the text between the markers replaced.

    Raises:
        ValueError: unless each marker occurs once, in order.
    """
    before, _, after = _split(readme)
    return f"{before}{START}\n{body}\n{END}{after}"


def _split(readme: str) -> tuple[str, str, str]:
    if readme.count(START) != 1 or readme.count(END) != 1:
        raise ValueError(f"README needs the markers {START} and {END} once each")
    before, rest = readme.split(START)
    if END not in rest:
        raise ValueError(f"README has {END} before {START}")
    body, after = rest.split(END)
    return before, body, after


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dgm_fast.perf.readme", description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of step")
    options = parser.parse_args(arguments)
    try:
        result = results.load(options.result)
        old = options.readme.read_text()
        base = options.readme.resolve().parent
        name = options.result.resolve()
        linked = name.relative_to(base) if name.is_relative_to(base) else name
        new = rewrite(old, section(result, linked.as_posix()))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.check:
        return int(new != old)
    options.readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
