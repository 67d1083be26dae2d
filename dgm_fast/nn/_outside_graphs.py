"""Keeps a method out of compiled graphs without importing the compiler for it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch


def outside_graphs(function: Callable) -> Callable:
    """As ``torch.compiler.disable``, which as a decorator imports all of the compiler, and Triton."""
    disabled: list[Callable] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    # What the compiler looks for where it would enter the function.
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return call
