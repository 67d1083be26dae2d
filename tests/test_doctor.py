"""``dgm-fast doctor``: verdicts, exit status, and that a wrong op does not pass."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dgm_fast import ops, selfcheck
from dgm_fast.doctor import doctor
from dgm_fast.health import TORCH_FUNC_NOTE, Report, run_doctor
from dgm_fast.selfcheck import check_op, relative_error

EXPECTED_STATUS = "degraded" if ops.missing() else "healthy"


@pytest.fixture(scope="module")
def report() -> Report:
    return run_doctor()


def with_reference(name: str, change: Any) -> ops.OpSpec:
    """The spec of an op whose reference is ``change`` of the right one: as if the op were wrong."""
    spec = ops.SPECS[name]
    reference = spec.reference

    def wrong(*args: Any) -> Any:
        return change(reference(*args))

    wrong.__signature__ = inspect.signature(reference)  # type: ignore[attr-defined]
    return dataclasses.replace(spec, reference=wrong)


def test_this_installation_passes(report: Report) -> None:
    assert report.problems == []
    assert report.status == EXPECTED_STATUS
    assert all(check.passed for check in report.checks)


def test_every_op_is_checked_in_value_and_gradients(report: Report) -> None:
    for name in ops.SPECS:
        for dtype in ("float32", "float64"):
            checks = [c for c in report.checks if (c.op, c.dtype) == (name, dtype)]
            sampler = name.endswith(("_sample", "autoregressive_inverse")) or name == "interpolate"
            assert any(c.is_gradient for c in checks) != sampler, (name, dtype)
            assert any(not c.is_gradient for c in checks), (name, dtype)
    quantities = {c.quantity for c in report.checks if c.op == "iwae_bound" and c.is_gradient}
    assert {"out", "z", "mean", "log_var"} <= quantities


def test_every_op_has_a_choice_for_every_device(report: Report) -> None:
    assert {(c.op, c.device) for c in report.choices} == {
        (name, device) for name in ops.SPECS for device in report.devices
    }
    assert all(c.implementation and c.reason for c in report.choices)


def test_report_names_versions_isa_and_environment(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report.versions["torch"] == torch.__version__
    assert report.versions["dgm_fast"] and report.versions["numpy"] and report.versions["python"]
    assert report.isa["machine"] in ops.ISA_LEVELS
    assert report.isa["active"] in (*report.isa["built"], None)
    monkeypatch.setenv("DGM_FAST_ISA", "baseline")
    text = str(run_doctor({}))
    assert "DGM_FAST_ISA = 'baseline'" in text
    assert "TRITON_INTERPRET" in text
    assert TORCH_FUNC_NOTE in text


def test_text_shows_the_measured_error_of_every_op(report: Report) -> None:
    text = str(report)
    assert text.startswith(f"dgm_fast is {EXPECTED_STATUS}")
    table = text[text.index("self-check") :]
    for name in ops.SPECS:
        assert name in table
    assert "FAILED" not in table


def test_missing_parts_are_said(report: Report) -> None:
    for sentence in ops.missing():
        assert sentence in str(report)


def test_wrong_value_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = with_reference("gaussian_kl", lambda out: out * (1 + 1e-5))
    monkeypatch.setitem(ops.SPECS, "gaussian_kl", spec)
    report = run_doctor()
    assert report.status == "broken"
    assert any("gaussian_kl" in problem for problem in report.problems)
    failed = {c.op for c in report.checks if not c.passed}
    assert failed == {"gaussian_kl"}
    result = CliRunner().invoke(doctor)
    assert result.exit_code == 1
    assert "FAILED" in result.output


def test_wrong_gradient_alone_is_broken() -> None:
    # The same value, twice the gradient.
    spec = with_reference("log_mean_exp", lambda out: 2 * out - out.detach())
    checks = check_op(spec, implementation(), torch.device("cpu"), torch.float32)
    assert {c.passed for c in checks if not c.is_gradient} == {True}
    assert {c.passed for c in checks if c.is_gradient} == {False}


def test_wrong_shape_or_number_of_outputs_fails() -> None:
    for change in (lambda out: out.unsqueeze(0), lambda out: (out, out)):
        spec = with_reference("gaussian_kl", change)
        checks = check_op(spec, implementation(), torch.device("cpu"), torch.float32)
        assert not all(c.passed for c in checks)


def test_an_op_that_raises_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise RuntimeError("kernel launch failed")

    monkeypatch.setattr(selfcheck, "_implementation", lambda spec, name: fails)
    report = run_doctor({"elbo": ops.SPECS["elbo"]})
    assert report.status == "broken"
    assert "kernel launch failed" in str(report)
    json.dumps(report.to_dict(), allow_nan=False)


def test_backend_that_serves_no_device_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def explain(device: str, family: str) -> tuple[str, str]:
        raise RuntimeError(f"nothing serves {device}")

    monkeypatch.setattr(ops, "explain", explain)
    report = run_doctor({"elbo": ops.SPECS["elbo"]})
    assert report.status == "broken"
    assert "nothing serves cpu" in str(report)
    assert all(c.passed for c in report.checks)


def test_random_state_and_backend_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with ops.backend("reference"):
        report = run_doctor()
        assert ops.get_backend() == "reference"
    assert report.backend == "reference"
    assert {c.implementation for c in report.choices} == {"reference"}
    assert torch.equal(torch.rand(4), expected)


def test_json_output_and_exit_status() -> None:
    result = CliRunner().invoke(doctor, ["--json"])
    assert result.exit_code == 0
    report = json.loads(result.output)
    assert report["status"] == EXPECTED_STATUS
    assert {c["op"] for c in report["checks"]} == set(ops.SPECS)
    assert all(c["passed"] and c["error"] <= c["limit"] for c in report["checks"])


def test_strict_turns_degraded_into_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "missing", lambda: ["the C++ extension is not built"])
    assert CliRunner().invoke(doctor).exit_code == 0
    assert CliRunner().invoke(doctor, ["--strict"]).exit_code == 1


def test_relative_error() -> None:
    truth = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 4.5]), truth) == pytest.approx(0.1)
    assert relative_error(torch.tensor([0.0, 0.5]), torch.zeros(2)) == pytest.approx(0.5)
    assert relative_error(torch.empty(0), torch.empty(0)) == 0
    nan = relative_error(torch.tensor([float("nan"), 4.0]), truth)
    assert nan != nan
    assert relative_error(torch.zeros(3), truth) != 0  # NaN: shapes differ


def implementation() -> str:
    return "cpp" if ops.active_isa() else "reference"
