"""Runs cases: correctness, then memory, then interleaved timing; makes a result's records."""

from __future__ import annotations

import datetime
import gc
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from dgm_fast.perf import ceiling, correctness, machine, memory, timing
from dgm_fast.perf.problem import (
    EAGER,
    OURS,
    Function,
    Problem,
    make_problem,
    variants,
)
from dgm_fast.perf.registry import Case, dtype_name
from dgm_fast.perf.results import SCHEMA_NAME, SCHEMA_VERSION

if TYPE_CHECKING:
    from dgm_fast.perf.step import StepCase

Record = dict[str, Any]
# Several times what launching an op takes.
LAUNCH_BOUND_MS = 0.2


@dataclass(frozen=True)
class Options:
    """How to run a suite."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    plan: timing.Plan = timing.FULL
    compiled: bool = True
    # Fill the compiler's cache from several processes first.
    precompile: bool = True
    # CUDA only: rotate copies of the inputs that together exceed the L2 cache.
    cold_cache: bool = True
    seed: int = 0

    @property
    def quick(self) -> bool:
        return self.plan == timing.QUICK

    def cold_bytes(self) -> int:
        if self.device.type != "cuda" or not self.cold_cache:
            return 0
        return 3 * torch.cuda.get_device_properties(self.device).L2_cache_size


def run_case(case: Case, options: Options, functions: dict[str, Function] | None = None) -> Record:
    """The record of one case. ``functions`` replaces the variants (for tests of the runner).

    Ours or eager wrong, or raising where it must not, makes the record "failed", without times. Another
    rival that is wrong is named under "wrong" and has no times of its own.
    """
    record: Record = {
        "case": case.name,
        "op": case.op,
        "variant": case.variant,
        "family": case.family,
        "size": case.size,
        "shape": list(case.shape),
        "dtype": dtype_name(case.dtype),
        "status": "failed",
    }
    try:
        _fill(record, case, options, functions)
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        # One case that, say, does not fit into memory must not cost the others their figures.
        record["failures"] = [f"{type(error).__name__}: {error}"]
        record.pop("modes", None)
    return record


def _fill(
    record: Record, case: Case, options: Options, functions: dict[str, Function] | None
) -> None:
    problem = make_problem(case, options.device, seed=options.seed, cold_bytes=options.cold_bytes())
    if functions is None:
        functions = variants(case, compiled=options.compiled)
    verdict = correctness.check(problem, functions)
    record["errors"] = {
        name: {key: error_record(error) for key, error in errors.items()}
        for name, errors in verdict.errors.items()
    }
    record["unavailable"] = verdict.unavailable
    record["wrong"] = verdict.wrong
    record["failures"] = verdict.failures
    if not verdict.ok:
        return
    functions = {name: functions[name] for name in verdict.right()}
    record["bytes"] = {mode: problem.cost.of(mode)[0] for mode in ("forward", "backward", "both")}
    record["flops"] = {mode: problem.cost.of(mode)[1] for mode in ("forward", "backward", "both")}
    record["copies"] = len(problem.copies)
    record["memory"] = {
        name: {
            "saved_bytes": memory.saved_bytes(function, problem),
            "peak_bytes": memory.peak_bytes(function, problem),
        }
        for name, function in functions.items()
    }
    record["modes"] = measure_modes(problem, functions, options.plan)
    if options.device.type == "cuda":
        alone = kernel_alone(problem, functions[OURS], record, options.plan)
        if alone is not None:
            record["kernel"] = alone
    record["status"] = "ok"


def kernel_alone(
    problem: Problem, ours: Function, record: Record, plan: timing.Plan
) -> dict[str, Any] | None:
    """Our forward from a CUDA graph, where a call is short enough for its launch to matter."""
    if record["modes"]["forward"][OURS]["ms"] > LAUNCH_BOUND_MS:
        return None
    try:
        task = timing.graph_task(ours, problem)
    except RuntimeError as error:
        record["unavailable"]["graph of ours"] = str(error).split("\n")[0]
        return None
    return summary_record(timing.interleave({OURS: task}, plan)["graph"][OURS])


def measure_modes(
    problem: Problem, functions: dict[str, Function], plan: timing.Plan
) -> dict[str, Any]:
    """Times of every mode and variant, as a result file holds them."""
    measured = timing.interleave(
        {name: timing.forward_task(f, problem) for name, f in functions.items()}, plan
    )
    if problem.case.grads:
        measured |= timing.interleave(
            {name: timing.training_task(f, problem) for name, f in functions.items()}, plan
        )
    if problem.case.second_order:
        # torch.compile does not differentiate twice; peers are not asked to.
        twice = {n: f for n, f in functions.items() if n in (OURS, EAGER)}
        tasks = {name: timing.second_order_task(f, problem) for name, f in twice.items()}
        measured |= timing.interleave(tasks, plan)
    return {
        mode: {name: summary_record(summary) for name, summary in by_name.items()}
        for mode, by_name in measured.items()
    }


def summary_record(summary: timing.Summary) -> dict[str, Any]:
    """Milliseconds, rounded to what the clock and the noise bear."""
    return {
        "ms": _round(summary.median * 1e3),
        "q1": _round(summary.q1 * 1e3),
        "q3": _round(summary.q3 * 1e3),
        "inner": summary.inner,
        "rounds": [_round(s * 1e3) for s in summary.rounds],
    }


def error_record(error: float) -> float | None:
    """A relative error as a result file holds it: None where it is not finite (JSON has no inf)."""
    return _round(error, 3) if math.isfinite(error) else None


def run_suite(
    cases: Sequence[Case],
    options: Options,
    *,
    steps: Sequence[StepCase] = (),
    suite: str = "",
    stop_after_s: float = math.inf,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure the ceiling, then every case, then the training steps; returns a complete result.

    ``progress`` wraps the iteration over cases; ``report`` gets lines about failures and what is
    under way. No case begins later than ``stop_after_s``: what is left is recorded as skipped.
    """
    from dgm_fast.perf.precompile import precompile
    from dgm_fast.perf.step import run_step

    begin = time.perf_counter()
    facts = machine.describe(options.device)
    everything: list[Case | StepCase] = [*cases, *steps]
    if options.compiled and options.precompile:
        report("filling the compiler's cache")
        for name in precompile(everything, options.device):
            report(f"compiled {name}")
            if time.perf_counter() - begin > 0.5 * stop_after_s:
                break
    roof = ceiling.measure(options.device, quick=options.quick)
    records = []
    for item in progress(everything, len(everything)) if progress else everything:
        if time.perf_counter() - begin > stop_after_s:
            record = {"case": item.name, "shape": list(item.shape), "status": "skipped"}
        elif isinstance(item, Case):
            record = run_case(item, options)
        else:
            record = run_step(item, options)
        for failure in record.get("failures", []):
            report(f"FAILED {item.name}: {failure}")
        records.append(record)
        gc.collect()
    return {
        "schema": {"name": SCHEMA_NAME, "version": SCHEMA_VERSION},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "suite": suite or f"{options.device.type}{'-quick' if options.quick else ''}",
        "machine": facts,
        "settings": {
            **asdict(options.plan),
            "compiled": options.compiled,
            "cold_cache": options.cold_bytes() > 0,
            "seed": options.seed,
            "wall_s": round(time.perf_counter() - begin, 1),
        },
        "ceiling": roof,
        "records": records,
    }


def _round(value: float, digits: int = 5) -> float:
    return float(f"{value:.{digits}g}")
