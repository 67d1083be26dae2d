"""The gate: expectations by family and architecture, what may lower them, and the quick form here."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("click")

from click.testing import CliRunner
from helpers.perf_results import make_result, variant

from dgm_fast.perf import builtin_registry, gate, gate_quick, results, timing
from dgm_fast.perf.command import perf
from dgm_fast.perf.results import ResultError

ROOT = Path(__file__).parents[1]


def measured(speed_up: float, **facts: Any) -> dict[str, Any]:
    """A result whose one case beats torch.compile by ``speed_up`` and eager by twice that."""
    result = make_result(**facts)
    result["settings"] = {"compiled": True}
    result["records"][0]["modes"]["both"] = {
        "eager": variant(2.0 * speed_up),
        "compile": variant(speed_up),
        "ours": variant(1.0),
    }
    return result


def expecting(speed_up: float) -> dict[str, Any]:
    return gate.update(measured(speed_up), gate.empty())[0]


def test_architecture() -> None:
    assert gate.architecture(measured(1.0)["machine"]) == "cpu-avx2-2t"
    gpu = measured(1.0, device="cuda", gpu="NVIDIA H100 80GB")["machine"]
    assert gate.architecture(gpu) == "cuda-nvidia-h100-80gb"


def test_ratios_take_the_fastest_rival_in_the_main_mode() -> None:
    assert gate.ratios(measured(3.0)) == {
        "latent": {"elbo/medium/float32": gate.Ratios(best=3.0, uncompiled=6.0)}
    }
    sampler = measured(3.0)
    del sampler["records"][0]["modes"]["both"]
    assert gate.ratios(sampler)["latent"]["elbo/medium/float32"].best == 0.5


@pytest.mark.parametrize(("now", "ok"), [(3.5, True), (3.0, True), (2.71, True), (2.69, False)])
def test_a_family_may_sink_within_its_band(now: float, ok: bool) -> None:
    outcome = gate.check(measured(now), expecting(3.0))
    assert outcome.ok == ok
    (finding,) = outcome.findings
    assert (finding.expected, finding.measured) == (pytest.approx(3.0), pytest.approx(now))
    assert ("BELOW" in gate.text(outcome)) != ok


def test_case_far_below_is_named() -> None:
    outcome = gate.check(measured(1.2), expecting(3.0))
    assert "elbo/medium/float32: 1.20x, expected 3.00x" in gate.text(outcome)


def test_without_the_compiler_the_other_rivals_count() -> None:
    result = measured(3.0)
    del result["records"][0]["modes"]["both"]["compile"]
    result["settings"]["compiled"] = False
    (finding,) = gate.check(result, expecting(3.0)).findings
    assert finding.expected == pytest.approx(6.0) and finding.measured == pytest.approx(6.0)


def test_a_wrong_or_absent_case_is_red() -> None:
    result = measured(3.0)
    result["records"][0]["failures"] = ["ours: value is off"]
    assert not gate.check(result, expecting(3.0)).ok
    empty = measured(3.0)
    empty["records"] = []
    assert gate.check(empty, expecting(3.0)).ok
    outcome = gate.check(empty, expecting(3.0), complete=True)
    assert outcome.failures == ["latent: expected and not measured: elbo/medium/float32"]


def test_a_wrong_rival_is_noted_and_does_not_count() -> None:
    result = measured(3.0)
    del result["records"][0]["modes"]["both"]["compile"]
    result["records"][0]["wrong"] = {"compile": "value is off by 7.00e-01"}
    outcome = gate.check(result, expecting(3.0))
    assert outcome.ok and outcome.findings[0].measured == pytest.approx(6.0)
    assert outcome.notes == [
        "elbo/medium/float32: without compile, which is wrong: value is off by 7.00e-01"
    ]


def test_a_new_case_is_noted() -> None:
    result = measured(3.0)
    result["records"].append({**copy.deepcopy(result["records"][0]), "case": "new/small/float32"})
    assert gate.check(result, expecting(3.0)).notes == [
        "latent: nothing is expected of new/small/float32 yet"
    ]


def test_another_architecture_is_refused() -> None:
    with pytest.raises(
        ResultError, match=r"no expectations for cpu-avx512-8t \(there are: cpu-avx2-2t\)"
    ):
        gate.check(measured(3.0, isa="avx512", threads=8), expecting(3.0))


def test_update_raises_but_does_not_lower_without_a_reason() -> None:
    raised, changes = gate.update(measured(4.0), expecting(3.0))
    assert changes == ["latent: 3.00x to 4.00x"] and raised["lowered"] == []
    with pytest.raises(ResultError, match=r"would lower.*latent: 4.00x to 2.00x.*--reason"):
        gate.update(measured(2.0), raised)
    lowered, _ = gate.update(measured(2.0), raised, "the rival of torch 2.14 is faster")
    (entry,) = lowered["lowered"]
    assert (entry["family"], entry["before"], entry["after"]) == ("latent", 4.0, 2.0)
    assert entry["reason"] == "the rival of torch 2.14 is faster"
    assert gate.check(measured(2.0), lowered).ok


def test_expectations_do_not_sink_by_small_steps() -> None:
    expected = expecting(3.0)
    for now in (2.9, 2.8, 2.75):
        expected, changes = gate.update(measured(now), expected)
        assert changes == []
    assert not gate.check(measured(2.6), expected).ok


def test_update_refuses_wrong_and_uncompiled_results() -> None:
    wrong = measured(3.0)
    wrong["records"][0]["failures"] = ["ours: value is off"]
    with pytest.raises(ResultError, match="wrong results: elbo/medium/float32"):
        gate.update(wrong, gate.empty())
    uncompiled = measured(3.0)
    uncompiled["settings"]["compiled"] = False
    with pytest.raises(ResultError, match=r"torch\.compile among the rivals"):
        gate.update(uncompiled, gate.empty())


def test_file_round_trip_and_damage(tmp_path: Path) -> None:
    path = gate.save(expecting(3.0), tmp_path / "e.json")
    assert gate.load(path) == expecting(3.0)
    # A case a line: a review sees which one moved.
    assert '"elbo/medium/float32": [3.0, 6.0]' in path.read_text()
    for content, message in (
        ("{", "not valid JSON"),
        ("[]", "not a file of"),
        ('{"schema": {"name": "dgm_fast.perf.expectations", "version": 9}}', "version 9"),
        ('{"schema": {"name": "dgm_fast.perf.expectations", "version": 1}}', "has no band"),
    ):
        path.write_text(content)
        with pytest.raises(ResultError, match=message):
            gate.load(path)


def test_command(tmp_path: Path) -> None:
    expectations = tmp_path / "e.json"
    good = str(results.save(measured(3.0), tmp_path / "good.json"))
    bad = str(results.save(measured(2.0), tmp_path / "bad.json"))

    def invoke(*arguments: str) -> Any:
        return CliRunner().invoke(perf, ["gate", *arguments, "--expectations", str(expectations)])

    missing = invoke(good)
    assert missing.exit_code == 1 and "gate --update" in missing.output
    assert invoke(good, "--update").exit_code == 0
    assert invoke(good).exit_code == 0
    refused = invoke(bad, "--update")
    assert refused.exit_code == 1 and "--reason" in refused.output
    failed = invoke(bad)
    assert failed.exit_code == 1 and "BELOW" in failed.output
    assert invoke(bad, "--update", "--reason", "because").exit_code == 0
    assert gate.load(expectations)["lowered"][0]["reason"] == "because"
    assert invoke(bad).exit_code == 0
    assert invoke(good, "--quick").exit_code == 2


CASE = next(c for c in builtin_registry().all() if c.name == "elbo/medium/float32")
QUICK = {**gate.empty(), "quick": {"cpu-avx2": {CASE.name: 6.0}}}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Facts of the machine that the quick gate believes to run on."""
    facts = measured(1.0)["machine"]
    monkeypatch.setattr(gate_quick.machine, "describe", lambda device: facts)
    return facts


def quick(*seen: float, failures: Any = ()) -> tuple[gate_quick.QuickOutcome, int]:
    """The outcome when the case is measured with these ratios in turn, and how often it was."""
    waiting = list(seen)

    def measure(case: Any) -> tuple[float, list[str]]:
        assert torch.get_num_threads() == 1
        return waiting.pop(0), list(failures)

    return gate_quick.run(QUICK, [CASE], measure=measure), len(seen) - len(waiting)


def test_quick_gate_is_red_below_half_and_only_twice(here: dict[str, Any]) -> None:
    threads = torch.get_num_threads()
    outcome, measurements = quick(3.1, 0.0)
    assert outcome.failures == [] and measurements == 1
    outcome, measurements = quick(1.0, 3.1)
    assert outcome.failures == [] and measurements == 2
    outcome, measurements = quick(1.0, 2.9)
    assert measurements == 2
    assert outcome.failures == [
        "elbo/medium/float32: 1.00x and again 2.90x as fast as eager, expected 6.00x"
    ]
    assert torch.get_num_threads() == threads


def test_quick_gate_is_red_at_once_where_a_result_is_wrong(here: dict[str, Any]) -> None:
    outcome, measurements = quick(9.0, 9.0, failures=["ours: value is off"])
    assert outcome.failures == ["elbo/medium/float32: ours: value is off"] and measurements == 1


def test_quick_gate_expects_nothing_of_a_foreign_machine(here: dict[str, Any]) -> None:
    here["isa"] = "neon"
    assert quick(0.0)[0].notes == ["nothing is expected of cpu-neon"]
    here["ours"], here["ours_reason"] = "reference", "no extension"
    assert quick(0.0)[0].notes == ["the kernels do not run here (no extension)"]


def test_quick_gate_stops_in_time(here: dict[str, Any]) -> None:
    ticks = iter([0.0, 100.0])
    outcome = gate_quick.run(QUICK, [CASE], clock=lambda: next(ticks))
    assert outcome.measured == {} and "40 s were up" in outcome.notes[0]


def test_quick_update(here: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = iter([7.0, 3.0, 3.0, 0.0])
    monkeypatch.setattr(gate_quick, "PLAN", timing.Plan(1e-5, 1, 1, 0.0, 0))
    real = gate_quick.run
    monkeypatch.setattr(
        gate_quick,
        "run",
        lambda e, c, **k: real(e, c, measure=lambda case: (next(ratios), []), **k),
    )
    raised, changes = gate_quick.update(QUICK, [CASE])
    assert raised["quick"]["cpu-avx2"] == {CASE.name: 7.0} and changes
    with pytest.raises(ResultError, match=r"7.00x to 3.00x.*--reason"):
        gate_quick.update(raised, [CASE])
    lowered, _ = gate_quick.update(raised, [CASE], "fewer bytes in eager")
    assert lowered["quick"]["cpu-avx2"] == {CASE.name: 3.0}
    assert lowered["lowered"][0]["reason"] == "fewer bytes in eager"
    assert QUICK["lowered"] == []


def test_quick_measurement_refuses_a_wrong_result() -> None:
    wrong = dataclasses.replace(CASE, ours=lambda **inputs: 2 * CASE.eager(**inputs))
    ratio, failures = gate_quick.measure(wrong)
    assert ratio == 0.0 and failures[0].startswith("ours: ")


EXPECTED = gate.load(ROOT / gate.PATH)


@pytest.mark.parametrize("name", sorted(EXPECTED["architectures"]))
def test_every_expectation_is_of_a_case_there_is(name: str) -> None:
    from dgm_fast.perf.step_cases import STEPS

    known = {case.name for case in builtin_registry().all()} | {step.name for step in STEPS}
    for family, cases in EXPECTED["architectures"][name]["families"].items():
        gone = set(cases) - known
        assert not gone, f"{family}: expectations of cases that are gone: {sorted(gone)}"


def test_kernels_keep_half_of_their_speed_here() -> None:
    """The quick gate on this machine, part of every test run; see `dgm-fast perf gate`."""
    outcome = gate_quick.run(EXPECTED, builtin_registry().all())
    assert not outcome.failures, "\n".join(outcome.failures)
    if not outcome.measured:
        pytest.skip("; ".join(outcome.notes))
