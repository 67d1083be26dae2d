"""The commands and the GPU script: what they print, write and refuse."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("click")

from click.testing import CliRunner

from dgm_fast.perf import ceiling, results, runner
from dgm_fast.perf.command import perf
from dgm_fast.perf.registry import Case
from dgm_fast.perf.runner import Options

ROOT = Path(__file__).parents[1]


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine known beforehand: measuring takes seconds."""
    fake = {
        "copy": {str(n): {"1000": 10.0} for n in range(1, 65)},
        "gemm": {str(n): {"float32": 0.1} for n in range(1, 65)},
    }
    monkeypatch.setattr(ceiling, "measure", lambda device, quick=False: fake)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(perf, arguments)


def test_run_prints_the_table_and_writes_the_result(instant: None, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    done = invoke("run", "-k", "gaussian_kl/small", "--quick", "--no-compile", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "gaussian_kl/small/float32" in done.output and "speed-up" in done.output
    result = results.load(out)
    assert [record["status"] for record in result["records"]] == ["ok"]
    assert set(result["records"][0]["modes"]) == {"forward", "backward", "both"}
    assert result["settings"]["compiled"] is False
    shown = invoke("show", str(out))
    assert shown.exit_code == 0 and "gaussian_kl/small/float32" in shown.output
    compared = invoke("compare", str(out), str(out))
    assert compared.exit_code == 0 and "1.00x" in compared.output


def test_wrong_result_fails_the_command(
    instant: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runner.run_case

    def broken(case: Case, options: Options) -> dict[str, Any]:
        functions = {"eager": case.eager, "ours": lambda **inputs: case.eager(**inputs) * 2}
        return real(case, options, functions)

    monkeypatch.setattr(runner, "run_case", broken)
    out = tmp_path / "r.json"
    done = invoke("run", "-k", "gaussian_kl/small", "--quick", "--out", str(out))
    assert done.exit_code == 1
    assert "FAILED gaussian_kl/small/float32: ours: value" in done.output
    assert "modes" not in results.load(out)["records"][0]


def test_interruption_leaves_no_file(
    instant: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(case: Case, options: Options) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_case", interrupted)
    done = invoke("run", "-k", "gaussian_kl/small", "--out", str(tmp_path / "r.json"))
    assert done.exit_code != 0
    assert list(tmp_path.iterdir()) == []


def test_list_runs_nothing() -> None:
    done = invoke("run", "--list", "--quick")
    assert done.exit_code == 0
    assert "iwae_step/mnist/float32" in done.output
    assert "iwae_bound.bernoulli/large/bfloat16" in done.output
    assert "categorical_log_prob/large" not in done.output
    assert "categorical_log_prob/large" in invoke("run", "--list").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-k", "no_such_op"), "matches no benchmark case"),
        (("-k", "elbo and"), "ends too early"),
        (("--threads", "0"), "--threads"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], message: str) -> None:
    done = invoke("run", *arguments)
    assert done.exit_code == 2 and message in done.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_no_cuda_device() -> None:
    done = invoke("run", "--device", "cuda", "-k", "elbo")
    assert done.exit_code == 2 and "no usable CUDA device" in done.output


def test_damaged_result_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{")
    done = invoke("show", str(tmp_path / "r.json"))
    assert done.exit_code == 1 and "not valid JSON" in done.output


def gpu_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_script", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_gpu_script_says_what_is_missing() -> None:
    script = ROOT / "benchmarks" / "gpu.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.startswith("make gpu: no usable CUDA device")


def test_staged_package_has_its_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = gpu_script()
    monkeypatch.setattr(script, "STAGE", tmp_path / "stage")
    script.stage()
    script.stage()
    code = "import dgm_fast.kernels, dgm_fast.perf; print(dgm_fast.__file__)"
    env = script.environment()
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
    assert "TRITON_INTERPRET" not in env
    assert not (tmp_path / "stage" / "pyproject.toml").exists()
    assert os.path.islink(tmp_path / "stage" / "csrc")


def test_gpu_script_stops_what_runs_too_long(tmp_path: Path) -> None:
    script = gpu_script()
    log = tmp_path / "log.txt"
    code = "import time; print('begun', flush=True); time.sleep(60)"
    assert script.run([sys.executable, "-c", code], 2.0, cwd=tmp_path, log=log) == 124
    assert "begun" in log.read_text() and "stopped after 2 s" in log.read_text()


def test_gpu_script_keeps_under_eight_minutes() -> None:
    script = gpu_script()
    assert script.TOTAL_LIMIT < 480
    # The slowest build and tests still leave time for benchmarks.
    assert script.TOTAL_LIMIT - script.BUILD_LIMIT - script.TEST_LIMIT - script.GRACE >= 60
