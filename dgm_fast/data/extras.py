"""Optional packages: imported where they are used, with a message that says how to get them."""

from __future__ import annotations

import importlib
from typing import Any

# torchvision has no extra: it must match the installed torch, so the user picks it.
_NO_EXTRA = {"torchvision"}


class MissingExtraError(ImportError):
    """An optional package is not installed; the message says what needs it and how to get it."""


def require(module: str, purpose: str, *, package: str | None = None, extra: str = "train") -> Any:
    """Import an optional module.

    Args:
        module: dotted name to import.
        purpose: what needs it, for the message.
        package: its name for pip, if that differs from the module's first part.
        extra: the extra of dgm_fast that brings it.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        # An installed package that fails inside must show its own error.
        if error.name is not None and error.name.partition(".")[0] != root:
            raise
        package = package or root
        how = (
            f"pip install {package} (a build that matches your torch)"
            if package in _NO_EXTRA
            else f"pip install 'dgm_fast[{extra}]'"
        )
        raise MissingExtraError(
            f"{purpose} needs {package}, which is not installed: {how}", name=root
        ) from error
