"""Every registered case under pytest-benchmark.

    python -m pytest benchmarks -k "iwae and large" --benchmark-save-data --benchmark-autosave

The benchmarked function is ours. Its rivals are timed in the set-up of every round, so that all of
them see the same drift of the machine; their rounds are in ``extra_info["rivals_ms"]``. One
benchmark round makes ``extra_info["inner"]`` calls: divide by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dgm_fast.perf import builtin_registry, correctness, memory, timing
from dgm_fast.perf.problem import OURS, Problem, first_order, make_problem, variants
from dgm_fast.perf.registry import Case, Outputs
from dgm_fast.perf.runner import Options

Prepared = tuple[Problem, dict[str, Any]]


@pytest.fixture(scope="module", params=builtin_registry().all(), ids=lambda case: case.name)
def prepared(request: pytest.FixtureRequest) -> Iterator[Prepared]:
    """A case and its variants, once for all its modes: compiled, and checked against float64."""
    case: Case = request.param
    if not case.quick and request.config.getoption("--bench-quick"):
        pytest.skip("not part of a quick run")
    name = request.config.getoption("--bench-device")
    if name == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--bench-device cuda: this machine has no usable CUDA device")
    options = Options(device=torch.device(name))
    problem = make_problem(case, options.device, cold_bytes=options.cold_bytes())
    functions = variants(case, compiled=not request.config.getoption("--bench-no-compile"))
    verdict = correctness.check(problem, functions)
    assert verdict.ok, "no figure for a wrong result: " + "; ".join(verdict.failures)
    yield problem, {name: f for name, f in functions.items() if name in verdict.errors}


def _bench(
    benchmark: Any, request: pytest.FixtureRequest, prepared: Prepared, mode: str
) -> dict[str, list[float]]:
    problem, functions = prepared
    if mode != "forward" and not problem.case.grads:
        pytest.skip("is not differentiated")
    quick = request.config.getoption("--bench-quick")
    plan = timing.QUICK if quick else timing.FULL
    make = timing.forward_task if mode == "forward" else timing.training_task
    tasks = {name: make(function, problem) for name, function in functions.items()}
    inner = {name: timing.calibrate(task, plan.min_round_s) for name, task in tasks.items()}
    rivals: dict[str, list[float]] = {name: [] for name in tasks if name != OURS}
    names = list(rivals)

    def rivals_first() -> None:
        for name in timing.round_order(names, len(rivals[names[0]])):
            rivals[name].append(1e3 * tasks[name](inner[name])[mode])

    ours, wanted = functions[OURS], problem.wanted()
    graphs: list[Outputs] = []

    def prepare() -> None:
        rivals_first()
        if mode == "backward":
            graphs.extend(ours(**problem.inputs) for _ in range(inner[OURS]))
        _synchronize(problem)

    def inference() -> None:
        with torch.no_grad():
            for _ in range(inner[OURS]):
                ours(**problem.inputs)
        _synchronize(problem)

    def backward() -> None:
        while graphs:
            torch.autograd.grad(graphs.pop(), wanted, problem.grad_out)
        _synchronize(problem)

    def training() -> None:
        for _ in range(inner[OURS]):
            first_order(ours, problem.inputs, wanted, problem.grad_out)
        _synchronize(problem)

    rounds = plan.min_rounds if quick or problem.case.heavy else plan.max_rounds
    benchmark.pedantic(
        {"forward": inference, "backward": backward, "both": training}[mode],
        setup=prepare,
        rounds=rounds,
        warmup_rounds=plan.warm_up,
    )
    # The set-up also runs before warm-up rounds.
    rivals = {name: measured[-rounds:] for name, measured in rivals.items()}
    benchmark.group = f"{problem.case.op} {mode}"
    num_bytes, flops = problem.cost.of(mode)
    benchmark.extra_info.update(
        case=problem.case.name,
        mode=mode,
        inner=inner[OURS],
        bytes=num_bytes,
        flops=flops,
        threads=torch.get_num_threads(),
        rivals_ms={n: [float(f"{ms:.5g}") for ms in rounds] for n, rounds in rivals.items()},
    )
    return rivals


def test_forward(benchmark: Any, request: pytest.FixtureRequest, prepared: Prepared) -> None:
    rivals = _bench(benchmark, request, prepared, "forward")
    assert all(rivals.values())


def test_backward(benchmark: Any, request: pytest.FixtureRequest, prepared: Prepared) -> None:
    rivals = _bench(benchmark, request, prepared, "backward")
    assert all(rivals.values())


def test_both(benchmark: Any, request: pytest.FixtureRequest, prepared: Prepared) -> None:
    problem, functions = prepared
    rivals = _bench(benchmark, request, prepared, "both")
    benchmark.extra_info["memory"] = {
        name: {
            "saved_bytes": memory.saved_bytes(function, problem),
            "peak_bytes": memory.peak_bytes(function, problem),
        }
        for name, function in functions.items()
    }
    assert all(rivals.values())


def _synchronize(problem: Problem) -> None:
    if problem.device.type == "cuda":
        torch.cuda.synchronize()
