"""What users get: cases of their own, the pytest plugin, profiles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("click")

from click.testing import CliRunner

from dgm_fast import ops
from dgm_fast.perf import builtin_registry, gate, profiling
from dgm_fast.perf.command import perf

MODULE = """
import torch
from dgm_fast import perf

def ours(x):
    return SLOW * x.square().sum(-1) / SLOW

@perf.case("my_op", ours=ours, eager=lambda x: (x * x).sum(-1), sizes={"small": (40, 30)}, grads=["x"])
def inputs(shape, dtype, generator):
    return {"x": torch.randn(shape, generator=generator).to(dtype)}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "my_bench.py").write_text(MODULE.replace("SLOW", "1.0"))
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\ndgm_fast_cases = my_bench\ndgm_fast_expectations = expected.json\n"
    )
    (tmp_path / "test_other.py").write_text("def test_other():\n    pass\n")
    return tmp_path


def run_pytest(project: Path, *arguments: str) -> Any:
    """pytest in the user's project, in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "dgm_fast.perf.pytest_plugin"]
    command += ["-p", "no:cacheprovider", "--dgm-fast-no-compile", *arguments]
    env = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=project, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def expect(project: Path, ratio: float) -> None:
    facts_isa = ops.active_isa() or "reference"
    expectations = gate.empty()
    cases = {"my_op/small/float32": [ratio, ratio]}
    expectations["architectures"][f"cpu-{facts_isa}-1t"] = {"families": {"user": cases}}
    gate.save(expectations, project / "expected.json")


def test_plugin_passes_and_fails_by_the_users_expectations(project: Path) -> None:
    expect(project, 0.01)
    done = run_pytest(project, "--dgm-fast-gate")
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr
    expect(project, 100.0)
    done = run_pytest(project, "--dgm-fast-gate")
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout
    assert "my_op/small/float32" in done.stdout and "expected 100.00x" in done.stdout


def test_plugin_is_red_on_a_wrong_result_and_without_expectations(project: Path) -> None:
    done = run_pytest(project, "--dgm-fast-gate")
    assert done.returncode == 1 and "--dgm-fast-gate-update" in done.stdout
    expect(project, 0.01)
    module = project / "my_bench.py"
    module.write_text(module.read_text().replace("x.square()", "x.abs()"))
    done = run_pytest(project, "--dgm-fast-gate")
    assert done.returncode == 1 and "ours: value is off" in done.stdout


def test_plugin_does_nothing_unless_asked(project: Path) -> None:
    done = run_pytest(project)
    assert done.returncode == 0 and "1 passed" in done.stdout
    (project / "pytest.ini").write_text("[pytest]\n")
    done = run_pytest(project, "--dgm-fast-gate")
    assert done.returncode == 4 and "dgm_fast_cases" in done.stderr


def test_profile_of_a_case(tmp_path: Path) -> None:
    case = next(c for c in builtin_registry().all() if c.name == "gaussian_kl/small/float32")
    found = profiling.profile_case(case, "eager", torch.device("cpu"), tmp_path)
    assert found.ms > 0 and found.operators > 4 and found.launches == 0
    assert found.least_bytes == (8 * 64 * 2 + 8) * 4 + (8 + 8 * 64 * 4) * 4
    trace = json.loads(found.trace.read_text())
    assert any("aten::exp" in str(event.get("name")) for event in trace["traceEvents"])
    text = profiling.text(found)
    assert "aten::exp" in text and str(found.trace) in text and "GB/s" in text
    with pytest.raises(ValueError, match="no variant 'theirs', only eager, compile"):
        profiling.profile_case(case, "theirs", torch.device("cpu"), tmp_path)


def test_profile_command_wants_one_case(tmp_path: Path) -> None:
    many = CliRunner().invoke(perf, ["profile", "elbo", "--out", str(tmp_path)])
    assert many.exit_code == 2 and "must name one case" in many.output
    none = CliRunner().invoke(perf, ["profile", "no_such", "--out", str(tmp_path)])
    assert none.exit_code == 2 and "matches no benchmark case" in none.output


def test_ncu_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    case = builtin_registry().all()[0]
    monkeypatch.setenv("PATH", "")
    assert "not installed" in profiling.ncu(case, "ours")


def test_users_module_on_the_command_line(project: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(project)}
    command = [sys.executable, "-m", "dgm_fast.perf", "run", "--cases", "my_bench", "--list"]
    done = subprocess.run(
        command, cwd=project, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0 and done.stdout.split() == ["my_op/small/float32", "40x30"]
    missing = CliRunner().invoke(perf, ["run", "--cases", "no_such_module", "--list"])
    assert missing.exit_code == 2 and "--cases no_such_module" in missing.output
