"""The A/B decision: silent on noise, loud on a slow-down; step changes in a series."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("scipy")

from dgm_fast.perf import changepoints, inject, selftest, stats
from dgm_fast.perf.results import ResultError
from dgm_fast.perf.stats import FASTER, SAME, SLOWER, UNCLEAR, Look, Rule

RULE = Rule()
NOISE = Path(__file__).parent / "data" / "perf_noise.jsonl"


def rounds(median: float, spread: float, generator: random.Random, count: int = 16) -> tuple:
    """Seconds with a long upper tail, as a shared host makes them."""
    return tuple(median * (1 + spread * generator.expovariate(1.0)) for _ in range(count))


def look(ratio: float, *, base: float = 1e-3, spread: float = 0.03, seed: int = 0) -> Look:
    generator = random.Random(seed)
    return Look(rounds(base, spread, generator), rounds(base * ratio, spread, generator))


def test_ratio_is_of_medians() -> None:
    one = Look((1.0, 2.0, 90.0), (3.0, 4.0, 5.0))
    assert one.ratio == 2.0 and one.change_s == 2.0
    assert one.best_ratio == 3.0


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.0, SAME), (1.02, SAME), (1.3, SLOWER), (0.75, FASTER)]
)
def test_verdicts(ratio: float, verdict: str) -> None:
    first, second = look(ratio), look(ratio, seed=1)
    assert stats.first_look(first, RULE) == (SAME if verdict == SAME else UNCLEAR)
    assert stats.decide([first, second], RULE).verdict == verdict
    # One look alone never accuses.
    assert stats.decide([first], RULE).verdict == (SAME if verdict == SAME else UNCLEAR)


def test_a_second_look_that_is_quiet_acquits() -> None:
    assert stats.decide([look(1.4), look(1.0, seed=1)], RULE).verdict == SAME
    assert stats.decide([look(1.4), look(0.7, seed=1)], RULE).verdict == SAME


def test_one_session_that_strays_neither_accuses_nor_acquits() -> None:
    same, slow = [look(1.0, seed=s) for s in range(3)], [look(1.3, seed=s) for s in range(3)]
    assert stats.decide([slow[0], same[1], same[2]], RULE).verdict == SAME
    assert stats.decide([same[0], slow[1], slow[2]], RULE).verdict == SLOWER


def test_a_noisy_first_look_is_not_quiet() -> None:
    noisy = look(1.0, spread=1.0)
    assert noisy.spread > RULE.noisy > look(1.0).spread
    assert stats.first_look(noisy, RULE) == UNCLEAR
    assert stats.decide([noisy, look(1.0, seed=1), look(1.0, seed=2)], RULE).verdict == SAME


def test_below_the_threshold_is_no_regression_however_significant() -> None:
    decision = stats.decide([look(1.07, spread=1e-4), look(1.07, spread=1e-4, seed=1)], RULE)
    assert decision.p < 1e-6 and decision.verdict == UNCLEAR


def test_below_the_floor_is_no_regression() -> None:
    small = [look(1.3, base=1e-6, seed=s) for s in range(2)]
    assert stats.decide(small, RULE).verdict == SAME
    assert stats.decide(small, Rule(floor_s=1e-7)).verdict == SLOWER


def test_a_change_that_is_not_significant_is_no_regression() -> None:
    few = Look((1e-3, 2e-3, 1e-3), (1.4e-3, 2.5e-3, 1.3e-3))
    decision = stats.decide([few], RULE)
    assert decision.p > RULE.alpha
    assert stats.decide([few, few], RULE).verdict == UNCLEAR


def test_interruptions_of_one_side_are_no_regression() -> None:
    quiet = tuple(1e-3 + 1e-6 * i for i in range(16))
    # Most rounds interrupted: the median moves, what an undisturbed round takes does not.
    disturbed = quiet[:6] + tuple(2e-3 for _ in range(10))
    one = Look(quiet, disturbed)
    assert one.ratio > 1.9
    assert stats.decide([one, one], RULE).verdict == SAME


def test_combined_p_grows_with_evidence_and_cancels_with_contradiction() -> None:
    slower, faster = look(1.05, seed=3), look(1 / 1.05, seed=4)
    assert stats.decide([slower, slower], RULE).p < slower.p_value()
    assert stats.decide([slower, faster], RULE).p > slower.p_value()
    # Complete separation, either way, is a finite score.
    far = Look((1.0,) * 8, (2.0,) * 8)
    assert 0 <= stats.decide([far, far], RULE).p < 1e-6


def test_no_look_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one look"):
        stats.decide([], RULE)


def test_rule_is_stricter_on_a_gpu() -> None:
    assert Rule.of_device("cuda").threshold == 0.05 < Rule.of_device("cpu").threshold == 0.10


TRIES = 200


@pytest.fixture(scope="module")
def noise() -> list[selftest.Looks]:
    """A/A sessions that were measured: fresh processes of the same code, rounds in turns."""
    if not NOISE.exists():
        pytest.skip("no noise was recorded yet")
    sessions = selftest.recorded_noise(selftest.load(NOISE))
    assert len(sessions) >= 15
    return sessions


def test_same_code_stays_silent(noise: list[selftest.Looks]) -> None:
    generator = random.Random(1)
    outcomes = [selftest.outcome(selftest.simulate(noise, RULE, generator)) for _ in range(TRIES)]
    assert outcomes.count("silent") >= 0.95 * TRIES, {o: outcomes.count(o) for o in set(outcomes)}


def test_a_slow_down_is_caught_and_named(noise: list[selftest.Looks]) -> None:
    generator = random.Random(2)
    cases = sorted({case for looks in noise for case, _ in looks})
    outcomes = []
    for number in range(TRIES):
        slowed = cases[number % len(cases)]
        record = selftest.simulate(noise, RULE, generator, slowed=slowed)
        outcomes.append(selftest.outcome(record))
    assert outcomes.count("caught") >= 0.95 * TRIES, {o: outcomes.count(o) for o in set(outcomes)}


def test_simulation_would_notice_a_blind_and_a_nervous_rule(noise: list[selftest.Looks]) -> None:
    generator = random.Random(3)
    blind, nervous = Rule(threshold=0.5), Rule(threshold=0.0, floor_s=0.0, alpha=1.1)
    case = next(case for case, _ in noise[0])
    missed = [selftest.simulate(noise, blind, generator, slowed=case) for _ in range(20)]
    assert {selftest.outcome(r) for r in missed} == {"missed"}
    alarms = [selftest.outcome(selftest.simulate(noise, nervous, generator)) for _ in range(20)]
    assert alarms.count("false alarm") >= 15


def test_outcomes() -> None:
    record = {"slowed": None, "slower": [], "faster": []}
    assert selftest.outcome(record) == "silent"
    assert selftest.outcome({**record, "slower": [["a", "both"]]}) == "false alarm"
    assert selftest.outcome({**record, "faster": [["a", "both"]]}) == "false alarm"
    record["slowed"] = "a"
    assert selftest.outcome(record) == "missed"
    assert selftest.outcome({**record, "slower": [["a", "both"], ["a", "forward"]]}) == "caught"
    assert selftest.outcome({**record, "slower": [["a", "both"], ["b", "both"]]}) == "false alarm"


def test_log_of_tries(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    record = {
        "schema": selftest.SCHEMA,
        "slowed": None,
        "slower": [],
        "faster": [],
        "looks_us": {"elbo/small/float32 both": [[[1.0, 2.0], [3.0, 4.0]]]},
    }
    selftest.append(log, record)
    selftest.append(log, {**record, "slowed": "elbo/small/float32"})
    assert selftest.summary(selftest.load(log)) == "A/A: 1 of 1 silent; slowed: 0 of 1 caught"
    (session,) = selftest.recorded_noise(selftest.load(log))
    assert session["elbo/small/float32", "both"].head == pytest.approx((3e-6, 4e-6))
    log.write_text(log.read_text() + '{"schema"')
    with pytest.raises(ResultError, match="line 3: not valid JSON, perhaps cut off"):
        selftest.load(log)
    log.write_text("{}\n")
    with pytest.raises(ResultError, match="line 1: not a try"):
        selftest.load(log)


def test_injected_slow_down_is_of_the_size_that_was_asked_for() -> None:
    pause = 4e-3

    class Pause(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            time.sleep(pause)
            return x * 2

        @staticmethod
        def backward(ctx, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            time.sleep(pause)
            return grad * 2

    x = torch.ones(3, requires_grad=True)

    def fastest(share: float) -> tuple[float, float]:
        function = inject.slowed(lambda x: Pause.apply(x), share)
        forward, backward = [], []
        for _ in range(5):
            begin = time.perf_counter()
            out = function(x=x)
            middle = time.perf_counter()
            (grad,) = torch.autograd.grad(out, x, torch.ones(3))
            forward.append(middle - begin)
            backward.append(time.perf_counter() - middle)
        assert torch.equal(grad, torch.full((3,), 2.0))
        return min(forward), min(backward)

    still, slow = fastest(0.0), fastest(0.5)
    # The clock of a loaded machine allows no more than a lower bound and a rough upper one.
    for before, after in zip(still, slow, strict=True):
        assert 1.5 * pause <= after
        assert before < 1.5 * pause < after < 4 * pause


def test_steps_are_found_where_they_are() -> None:
    generator = random.Random(0)
    level = [generator.gauss(1.0, 0.01) for _ in range(8)]
    values = level + [1.3 * v for v in level] + [0.9 * v for v in level]
    found = changepoints.steps(values)
    assert [step.index for step in found] == [8, 16]
    assert found[0].ratio == pytest.approx(1.3, rel=0.02)
    assert found[1].ratio == pytest.approx(0.9 / 1.3, rel=0.02)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1.0],
        [1.0, 1.2],
        [1.0, 1.01, 0.99, 1.0, 1.02, 1.0],
        [1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0],
        [1.0 + 0.01 * (i % 2) for i in range(20)] + [1.03] * 20,
    ],
)
def test_no_step_in_noise_outliers_and_small_changes(values: list[float]) -> None:
    assert changepoints.steps(values) == []


def test_steps_in_noise_are_rare() -> None:
    found = 0
    for seed in range(40):
        generator = random.Random(seed)
        found += bool(changepoints.steps([generator.lognormvariate(0, 0.03) for _ in range(25)]))
    assert found <= 4
