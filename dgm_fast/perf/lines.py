"""Progress as plain lines, where there is no terminal to draw a bar on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def numbered(
    items: Iterable[Any], total: int, describe: Callable[[Any], str] = lambda item: item.name
) -> Iterator[Any]:
    """The items, announcing each by number and name on stderr."""
    for number, item in enumerate(items, 1):
        print(f"[{number}/{total}] {describe(item)}", file=sys.stderr, flush=True)
        yield item
