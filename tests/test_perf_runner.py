"""The runner: correctness before speed, fair order, right statistics, memory, steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgm_fast import perf
from dgm_fast.perf import ceiling, correctness, memory, results, step, step_cases, timing
from dgm_fast.perf.problem import make_problem, second_order
from dgm_fast.perf.registry import Case
from dgm_fast.perf.runner import Options, run_case, run_suite

CPU = torch.device("cpu")
PLAN = timing.Plan(min_round_s=0.0, min_rounds=3, max_rounds=4, budget_s=0.0, warm_up=0)
OPTIONS = Options(plan=PLAN, compiled=False)


def cube(x: Tensor) -> Tensor:
    return (x * x * x).sum(-1)


def build(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> dict:
    return {"x": torch.randn(shape, generator=generator).to(dtype)}


def make_case(ours: Callable[..., Tensor] = cube, **changes: Any) -> Case:
    arguments: dict[str, Any] = {
        "op": "cube",
        "variant": "",
        "family": "test",
        "size": "small",
        "shape": (6, 5),
        "dtype": torch.float32,
        "build": build,
        "ours": ours,
        "eager": cube,
        "grads": ("x",),
        "flops_per_element": (3, 4),
    }
    return Case(**{**arguments, **changes})


def test_record_of_a_correct_case() -> None:
    record = run_case(make_case(second_order=True), OPTIONS)
    assert record["status"] == "ok" and record["failures"] == []
    assert set(record["modes"]) == {"forward", "backward", "both", "second"}
    for by_variant in record["modes"].values():
        assert set(by_variant) == {"eager", "ours"}
        for entry in by_variant.values():
            assert len(entry["rounds"]) >= PLAN.min_rounds
            assert 0 < entry["q1"] <= entry["ms"] <= entry["q3"]
    assert set(record["errors"]["ours"]) == {"inference", "value", "grad.x", "second.x"}
    assert record["bytes"]["forward"] == (30 + 6) * 4
    assert record["flops"] == {"forward": 90, "backward": 120, "both": 210}


def wrong_value(x: Tensor) -> Tensor:
    return cube(x) * 1.001


class _HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return cube(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 1.5 * x * x * grad.unsqueeze(-1)


def wrong_without_graph(x: Tensor) -> Tensor:
    return cube(x) if torch.is_grad_enabled() else wrong_value(x)


def not_finite(x: Tensor) -> Tensor:
    return cube(x) + math.nan


def wrong_shape(x: Tensor) -> Tensor:
    return cube(x).unsqueeze(0).expand(2, -1).sum(0, keepdim=True).squeeze() * 0 + cube(x).sum()


def raises(x: Tensor) -> Tensor:
    raise RuntimeError("kernel fell over\nwith details")


@pytest.mark.parametrize(
    ("ours", "complaint"),
    [
        (wrong_value, "ours: value is off by 1.00e-03"),
        (_HalfGradient.apply, "ours: grad.x is off by 5.00e-01"),
        (wrong_without_graph, "ours: inference is off by"),
        (not_finite, "ours: value is off by inf"),
        (wrong_shape, "ours: value is off by"),
        (raises, "ours raised RuntimeError: kernel fell over"),
    ],
)
def test_no_figure_on_red(ours: Callable[..., Tensor], complaint: str) -> None:
    record = run_case(make_case(lambda x: ours(x)), OPTIONS)
    assert record["status"] == "failed"
    assert "modes" not in record and "memory" not in record
    assert any(complaint in failure for failure in record["failures"]), record["failures"]


def slightly_off_in_double(x: Tensor) -> Tensor:
    return cube(x) * 1.0001


def wrong_in_single(x: Tensor) -> Tensor:
    return cube(x) * (1.1 if x.dtype == torch.float32 else 1.0)


@pytest.mark.parametrize(
    ("rival", "complaint"),
    [
        (lambda x: cube(x) * 1.1, "is off by 1.00e-01, limit 1.00e-03"),
        # Within what float32 may do to a formula, but not in float64.
        (slightly_off_in_double, "is off by 1.00e-04, limit 1.00e-06, in float64"),
        # As a compiler's mistake: the formula is right, what runs is not.
        (wrong_in_single, "is off by 1.00e-01, limit 1.00e-03"),
        (_HalfGradient.apply, "grad.x is off by 5.00e-01, limit 1.00e-03"),
        (not_finite, "is off by inf, limit 1.00e-03"),
    ],
)
def test_a_rival_that_computes_something_else_loses_its_column(
    rival: Callable[..., Tensor], complaint: str
) -> None:
    case = make_case(peers={"other": lambda x: rival(x), "right": lambda x: cube(x) + 0.0})
    record = run_case(case, OPTIONS)
    assert record["status"] == "ok" and record["failures"] == []
    assert record["wrong"].keys() == {"other"} and "other" in record["errors"]
    assert complaint in record["wrong"]["other"]
    for by_variant in (*record["modes"].values(), record["memory"]):
        assert set(by_variant) == {"eager", "right", "ours"}


def test_a_rival_may_round_as_the_eager_form_does() -> None:
    # Both are far off in float32, the rival further than 1e-3, and exact in float64.
    def rounded(factor: float) -> Callable[[Tensor], Tensor]:
        return lambda x: cube(x) * (1 + factor) if x.dtype == torch.float32 else cube(x)

    case = make_case(eager=rounded(2e-3), peers={"as far": rounded(5e-3), "further": rounded(7e-3)})
    record = run_case(case, OPTIONS)
    assert record["status"] == "ok" and record["wrong"].keys() == {"further"}


def test_no_figure_when_the_eager_form_is_no_measure() -> None:
    bad = make_case(eager=lambda x: cube(x) * (1.1 if x.dtype == torch.float32 else 1.0))
    record = run_case(bad, OPTIONS)
    assert record["status"] == "failed"
    assert record["failures"][0].startswith("eager: ")


def test_a_rival_without_float64_is_judged_in_its_own_dtype() -> None:
    def single(x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise TypeError("float32 only")
        return cube(x)

    record = run_case(make_case(peers={"single": single}), OPTIONS)
    assert record["status"] == "ok" and record["wrong"] == {}
    assert record["unavailable"] == {"single in float64": "TypeError: float32 only"}
    assert "single" in record["modes"]["both"]


def test_a_rival_that_does_not_run_is_left_out_with_its_reason() -> None:
    record = run_case(make_case(peers={"other": raises}), OPTIONS)
    assert record["status"] == "ok"
    assert record["unavailable"] == {"other": "RuntimeError: kernel fell over"}
    assert set(record["modes"]["both"]) == {"eager", "ours"}


def test_error_while_timing_costs_one_case_only() -> None:
    calls = 0

    def gives_up(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise RuntimeError("out of memory")
        return cube(x)

    record = run_case(make_case(gives_up), OPTIONS)
    assert record["status"] == "failed" and "modes" not in record
    assert record["failures"] == ["RuntimeError: out of memory"]


def test_infinite_error_of_a_failed_case_can_be_written(tmp_path: Path, no_ceiling: None) -> None:
    result = run_suite([make_case(not_finite)], OPTIONS)
    path = results.save(result, tmp_path / "r.json")
    assert results.load(path)["records"][0]["status"] == "failed"


def test_wrong_second_derivative_is_red() -> None:
    class FirstOrderOnly(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return cube(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return 3 * x * x.detach() * grad.unsqueeze(-1)

    ours = make_case(lambda x: FirstOrderOnly.apply(x), second_order=True)
    verdict = correctness.check(make_problem(ours, CPU), {"eager": ours.eager, "ours": ours.ours})
    assert any("second.x is off by 5.00e-01" in failure for failure in verdict.failures)
    assert verdict.errors["ours"]["grad.x"] < 1e-6


def test_error_rule_follows_the_eager_error() -> None:
    # Eager in bfloat16 arithmetic is off by about its resolution: ours may be off twice as much,
    # not more.
    def rounded(x: Tensor) -> Tensor:
        return x.bfloat16().float().pow(3).sum(-1) if x.dtype == torch.float32 else cube(x)

    case = make_case(eager=rounded)
    problem = make_problem(case, CPU)
    base = correctness.check(problem, {"eager": rounded, "ours": cube})
    error = base.errors["eager"]["value"]
    assert error > 1e-4
    # Of the two, only the eager form passes its own looser limit or not; ours is judged by the
    # rule.
    assert not [f for f in base.failures if f.startswith("ours")]
    worse = correctness.check(
        problem, {"eager": rounded, "ours": lambda x: cube(x) * (1 + 3 * error)}
    )
    assert [f for f in worse.failures if f.startswith("ours: value")]


def test_gradients_do_not_accumulate() -> None:
    problem = make_problem(make_case(second_order=True), CPU)
    for make in (timing.forward_task, timing.training_task, timing.second_order_task):
        make(cube, problem)(3)
    assert problem.inputs["x"].grad is None


def test_second_order_is_a_hessian_vector_product() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    grad, vector = torch.randn(3).double(), torch.randn(3, 4).double()
    (product,) = second_order(cube, {"x": x}, [x], grad, [vector])
    torch.testing.assert_close(product, 6 * x.detach() * vector * grad.unsqueeze(-1))


def test_round_order_is_fair() -> None:
    names = ["a", "b", "c"]
    orders = [timing.round_order(names, number) for number in range(6)]
    assert all(sorted(order) == names for order in orders)
    for place in range(3):
        assert sorted(order[place] for order in orders) == ["a", "a", "b", "b", "c", "c"]
    followers = {(x, y) for order in orders for x, y in itertools.pairwise(order)}
    assert len(followers) == 6, "every variant must follow every other one"


def test_rounds_are_interleaved() -> None:
    calls: list[str] = []

    def task(name: str) -> timing.Task:
        def call(inner: int) -> dict[str, float]:
            calls.append(name)
            return {"forward": 1.0}

        return call

    plan = timing.Plan(min_round_s=0.0, min_rounds=4, max_rounds=4, budget_s=0.0, warm_up=1)
    timing.interleave({name: task(name) for name in "abc"}, plan)
    rounds = [calls[i : i + 3] for i in range(len(calls) - 12, len(calls), 3)]
    assert rounds == [timing.round_order(list("abc"), number) for number in range(4)]


def test_rounds_stop_at_the_budget_but_not_before_the_minimum() -> None:
    now = 0.0

    def clock() -> float:
        return now

    def task(inner: int) -> dict[str, float]:
        nonlocal now
        now += 1.0
        return {"forward": 1.0}

    plan = timing.Plan(min_round_s=0.0, min_rounds=2, max_rounds=50, budget_s=5.5, warm_up=0)
    rounds = timing.interleave({"a": task}, plan, clock=clock)["forward"]["a"].rounds
    assert len(rounds) == 6
    plan = timing.Plan(min_round_s=0.0, min_rounds=9, max_rounds=50, budget_s=5.5, warm_up=0)
    assert len(timing.interleave({"a": task}, plan, clock=clock)["forward"]["a"].rounds) == 9


def test_garbage_collection_is_restored_after_an_error() -> None:
    import gc

    count = 0

    def task(inner: int) -> dict[str, float]:
        nonlocal count
        count += 1
        if count > 1:
            raise RuntimeError("stop")
        return {"forward": 1.0}

    with pytest.raises(RuntimeError, match="stop"):
        timing.interleave({"a": task}, PLAN)
    assert gc.isenabled()


@pytest.mark.parametrize("per_call", [2e-7, 3e-5, 5e-3])
def test_calibration_fills_a_round(per_call: float) -> None:
    inner = timing.calibrate(lambda inner: {"backward": per_call, "both": 2 * per_call}, 1e-3)
    assert inner * per_call >= 1e-3
    assert inner * per_call < 3e-3 or inner == 1


def test_calibration_is_not_fooled_by_an_interruption() -> None:
    seconds = iter([20e-3])

    def task(inner: int) -> dict[str, float]:
        return {"forward": next(seconds, 1e-5)}

    assert timing.calibrate(task, 1e-3) >= 100


def test_statistics() -> None:
    summary = timing.summarize([5.0, 1.0, 2.0, 4.0, 3.0], 7)
    assert (summary.q1, summary.median, summary.q3) == (2.0, 3.0, 4.0)
    assert summary.rounds == (5.0, 1.0, 2.0, 4.0, 3.0) and summary.inner == 7
    single = timing.summarize([2.0], 1)
    assert (single.q1, single.median, single.q3) == (2.0, 2.0, 2.0)


def test_saved_bytes_counts_neither_inputs_nor_a_storage_twice() -> None:
    problem = make_problem(make_case(), CPU)
    # x * x * x saves x (an input) twice and x * x once.
    assert memory.saved_bytes(cube, problem) == 30 * 4
    assert memory.saved_bytes(lambda x: (2 * x).sum(-1), problem) == 0


def test_peak_is_what_is_alive_at_once() -> None:
    size = 1 << 20

    def call() -> None:
        first = torch.empty(size, dtype=torch.uint8)
        second = torch.empty(size, dtype=torch.uint8)
        del first, second
        torch.empty(size, dtype=torch.uint8)

    assert 2 * size <= memory.peak_of(call, CPU) < 2.1 * size


def test_roof_share() -> None:
    roof = {
        "copy": {"1": {"1000": 10.0, "1000000": 1.0}},
        "gemm": {"1": {"float32": 0.001}},
    }
    assert ceiling.copy_rate(roof, "1", 10) == 10.0
    assert ceiling.copy_rate(roof, "1", 10**9) == 1.0
    assert 1.0 < ceiling.copy_rate(roof, "1", 30_000) < 10.0
    # 10^9 bytes at 1 GB/s take a second: measured in two, half of the roof.
    assert ceiling.share(roof, "1", 10**9, 0, 2.0) == pytest.approx(0.5)
    # 10^9 operations at 0.001 TFLOP/s take a second as well.
    assert ceiling.share(roof, "1", 10, 10**9, 4.0) == pytest.approx(0.25)


def test_ceiling_measures_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "CPU_COPY_BYTES", (1 << 16, 1 << 20))
    threads = torch.get_num_threads()
    roof = ceiling.measure(CPU, quick=True)
    assert torch.get_num_threads() == threads
    assert str(threads) in roof["copy"] and "1" in roof["gemm"]
    rates = [rate for sizes in roof["copy"].values() for rate in sizes.values()]
    assert all(rate > 0 for rate in rates)


@pytest.fixture
def no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = str(torch.get_num_threads())
    fake = {"copy": {threads: {"1000": 10.0}}, "gemm": {threads: {"float32": 0.1}}}
    monkeypatch.setattr(ceiling, "measure", lambda device, quick: fake)


def test_suite_collects_failures_and_goes_on(no_ceiling: None) -> None:
    lines: list[str] = []
    cases = [make_case(wrong_value, op="bad"), make_case(op="good")]
    result = run_suite(cases, OPTIONS, suite="test", report=lines.append)
    assert [record["status"] for record in result["records"]] == ["failed", "ok"]
    assert lines and all(line.startswith("FAILED bad/small/float32: ours") for line in lines)
    text = perf.plain_text(result)
    assert "bad/small/float32: FAILED, no figure" in text
    assert "good/small/float32" in text


def test_suite_stops_in_time(no_ceiling: None) -> None:
    cases = [make_case(op="a"), make_case(op="b")]
    result = run_suite(cases, OPTIONS, stop_after_s=-1.0)
    assert [record["status"] for record in result["records"]] == ["skipped", "skipped"]
    assert "not run, time was up: a/small/float32, b/small/float32" in perf.plain_text(result)


def test_compile_is_timed_fresh_for_every_case() -> None:
    from dgm_fast.perf.problem import variants

    backend_calls = []

    def backend(graph: Any, example: Any) -> Any:
        backend_calls.append(graph)
        return graph.forward

    real = torch.compile
    problem = make_problem(make_case(), CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda f, **k: real(f, backend=backend, **k))
        for count in (1, 2, 3):
            with torch.no_grad():
                variants(make_case())["compile"](**problem.inputs)
            assert len(backend_calls) == count


KINDS = {
    "activations",
    "compiled code",
    "fused ops",
    "linear layers",
    "optimizer",
    "other ops",
    "random numbers",
}


@pytest.mark.parametrize(
    "tiny",
    [
        step_cases.iwae_step("tiny", 12, 3, (8,), 4, 5, "bernoulli", None),
        step_cases.gmvae_step("tiny", 12, 3, 7, 4, 5),
    ],
    ids=lambda case: case.op,
)
def test_step_record(tiny: step.StepCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "TRAINED_STEPS", 2)
    monkeypatch.setattr(step, "PROFILED_STEPS", 2)
    state = torch.get_rng_state()
    # A stall of the machine in one kind can push others below what is listed: then look again.
    for _ in range(3):
        record = step.run_step(tiny, OPTIONS)
        assert torch.equal(torch.get_rng_state(), state)
        if all("linear layers" in shares for shares in record["profile"].values()):
            break
    assert record["status"] == "ok", record["failures"]
    assert set(record["modes"]["step"]) == {"eager", "ours"}
    assert record["data"] == "synthetic"
    for shares in record["profile"].values():
        assert "linear layers" in shares
        assert set(shares) <= KINDS
        # Each share is rounded to three digits, so their sum may pass 1 by half a digit apiece.
        assert 0.9 <= sum(shares.values()) <= 1 + 0.0005 * len(shares) + 1e-9


def test_step_reads_packed_rows(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    bits = np.random.default_rng(0).integers(0, 2, (7, 16), dtype=np.uint8)
    np.savez(tmp_path / "rows.npz", train=np.packbits(bits, axis=1))
    tiny = step_cases.iwae_step("tiny", 16, 3, (8,), 4, 5, "bernoulli", None, "DGM_FAST_TEST_ROWS")
    monkeypatch.setenv("DGM_FAST_TEST_ROWS", str(tmp_path / "rows.npz"))
    x, source = tiny.data(torch.Generator())
    assert source == "file"
    assert torch.equal(x, torch.from_numpy(bits[:5]).float())
    wider = step_cases.iwae_step("wide", 24, 3, (8,), 4, 5, "bernoulli", None, "DGM_FAST_TEST_ROWS")
    record = step.run_step(wider, OPTIONS)
    assert record["status"] == "failed" and "rows of 24 packed bits" in record["failures"][0]
    assert "modes" not in record
