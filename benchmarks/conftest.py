"""Options of the pytest-benchmark suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dgm_fast benchmarks")
    group.addoption("--bench-device", default="cpu", choices=("cpu", "cuda"))
    group.addoption(
        "--bench-quick", action="store_true", help="few rounds, without large and odd cases"
    )
    group.addoption(
        "--bench-no-compile", action="store_true", help="leave out torch.compile of the eager form"
    )


def pytest_configure(config: pytest.Config) -> None:
    # A machine is compared with itself only; see dgm_fast.perf.machine.FINGERPRINT_FIELDS.
    from dgm_fast.perf.memory import quiet_profiler

    quiet_profiler()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    import torch

    from dgm_fast.perf import machine

    machine_info["dgm_fast"] = machine.describe(torch.device(config.getoption("--bench-device")))


def pytest_benchmark_compare_machine_info(
    config: pytest.Config, benchmarksession: object, machine_info: dict, compared_benchmark: dict
) -> None:
    from dgm_fast.perf import machine

    here = machine_info["dgm_fast"]
    there = compared_benchmark["machine_info"].get("dgm_fast", {})
    differences = machine.differences(there, here)
    if differences:
        raise pytest.UsageError(
            "results of different machines are not compared (" + "; ".join(differences) + ")"
        )
