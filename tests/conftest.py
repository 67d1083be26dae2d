"""Shared by all tests."""

from __future__ import annotations

from dgm_fast import ops


def pytest_report_header() -> str:
    return f"dgm_fast: {'; '.join(ops.missing()) or f'{ops.active_isa()} kernels'}"
