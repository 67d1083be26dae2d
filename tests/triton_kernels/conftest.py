"""Tests of the Triton kernels. Those marked ``interpreter`` run in a child process."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from helpers.interpreter import (  # noqa: F401
    pytest_collection_finish,
    pytest_pyfunc_call,
    pytest_runtest_logreport,
    pytest_unconfigure,
)

if importlib.util.find_spec("triton") is not None:
    from helpers.offline_gpu import pytest_terminal_summary  # noqa: F401


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks as on a large problem: many rows per program, and loops over chunks of them.

    Without it the small problems of these tests get one row per program.
    """
    from dgm_fast.kernels import _layout

    monkeypatch.setattr(_layout, "_FEW_PROGRAMS", 1)
    monkeypatch.setattr(_layout, "_PROGRAMS", 1)


@pytest.fixture(params=["grouped", "spread"])
def blocks(request: pytest.FixtureRequest) -> None:
    """Both kinds of blocks."""
    if request.param == "grouped":
        request.getfixturevalue("grouped")
