"""What a user sees while a large sample is drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable

# (rows done, rows).
Progress = Callable[[int, int], None]
_WIDTH = 30


def progress_callback(progress: bool | Progress) -> Progress:
    """The function that is called after each row of pixels.

    Raises:
        TypeError: if ``progress`` is neither a bool nor callable.
    """
    if callable(progress):
        return progress
    if not isinstance(progress, bool):
        raise TypeError(f"progress must be a bool or callable, got {type(progress).__name__}")
    return _bar if progress else _nothing


def _nothing(done: int, total: int) -> None:
    """Shows nothing."""


def _bar(done: int, total: int) -> None:
    """A bar on standard error, on the same line each time."""
    filled = _WIDTH * done // total
    end = "\n" if done == total else ""
    line = f"\rsampling [{'#' * filled}{'.' * (_WIDTH - filled)}] {done}/{total} rows{end}"
    sys.stderr.write(line)
    sys.stderr.flush()
