"""Where the time of one case goes: profiler table, trace file, launches, bytes."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from dgm_fast.perf import memory, timing
from dgm_fast.perf.problem import first_order, make_problem, variants
from dgm_fast.perf.registry import Case

CALLS = 20
NCU_METRICS = (
    "gpu__time_duration.sum,dram__bytes.sum,sm__throughput.avg.pct_of_peak_sustained_elapsed"
)


@dataclass(frozen=True)
class Profile:
    """One variant of one case: forward and backward (forward alone where it has no gradients)."""

    case: str
    variant: str
    ms: float
    # Of the allocator during a call, and the least that the op must read and write.
    allocated_bytes: int
    least_bytes: int
    # Operators that the dispatcher ran, and kernels launched on the device (0 on a CPU), a call.
    operators: float
    launches: float
    table: str
    trace: Path


def profile_case(case: Case, variant: str, device: torch.device, out: Path) -> Profile:
    """Profile ``variant`` ("ours", "eager", "compile" or a peer) and write its trace.

    Raises:
        ValueError: if the case has no such variant.
    """
    functions = variants(case)
    if variant not in functions:
        raise ValueError(
            f"case {case.name} has no variant {variant!r}, only {', '.join(functions)}"
        )
    problem = make_problem(case, device)
    function, wanted = functions[variant], problem.wanted()

    def call() -> None:
        first_order(function, problem.inputs, wanted, problem.grad_out)

    task = timing.device_task("both", call, device)
    task(3)
    inner = timing.calibrate(task, 1e-3)
    rounds = [task(inner)["both"] for _ in range(7)]
    allocated = memory.peak_of(call, device)
    out.mkdir(parents=True, exist_ok=True)
    trace = out / f"{case.name.replace('/', '-')}-{variant.replace(' ', '-')}.json"
    shown, operators, launches = record(call, device, trace)
    num_bytes = problem.cost.of("both" if case.grads else "forward")[0]
    return Profile(
        case.name,
        variant,
        1e3 * statistics.median(rounds),
        allocated,
        num_bytes,
        operators,
        launches,
        shown,
        trace,
    )


def record(
    call: Callable[[], object], device: torch.device, trace: Path
) -> tuple[str, float, float]:
    """(table, operators a call, device kernels a call) of CALLS calls; the trace goes to a file."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    memory.quiet_profiler()
    with profile(activities=activities, record_shapes=True, profile_memory=True) as recording:
        for _ in range(CALLS):
            call()
        if on_gpu:
            torch.cuda.synchronize()
    averages = recording.key_averages()
    recording.export_chrome_trace(str(trace))
    events: list[Any] = list(recording.events() or [])
    on_device = [e for e in events if "CUDA" in str(e.device_type)]
    key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    shown = averages.table(sort_by=key, row_limit=15, max_name_column_width=48)
    return shown, (len(events) - len(on_device)) / CALLS, len(on_device) / CALLS


def text(found: Profile) -> str:
    share = f"{found.least_bytes / found.ms / 1e6:.1f} GB/s" if found.least_bytes else ""
    return "\n".join(
        (
            f"{found.case}, {found.variant}: {found.ms:.4f} ms a call",
            f"  least bytes {found.least_bytes:,} ({share}); peak allocated {found.allocated_bytes:,}",
            f"  {found.operators:.1f} operators, {found.launches:.1f} kernel launches a call",
            f"  trace: {found.trace} (chrome://tracing, ui.perfetto.dev)",
            "",
            found.table,
        )
    )


def ncu(case: Case, variant: str, limit_s: float = 300.0) -> str:
    """What Nsight Compute says of the case's kernels; where it is missing, that."""
    program = shutil.which("ncu")
    if program is None:
        return "ncu is not installed: no hardware counters"
    code = (
        "import torch; from dgm_fast.perf import builtin_registry, problem as p; "
        f"case = next(c for c in builtin_registry().all() if c.name == {case.name!r}); "
        "made = p.make_problem(case, torch.device('cuda')); "
        f"f = p.variants(case, compiled={variant == 'compile'})[{variant!r}]; "
        "[p.first_order(f, made.inputs, made.wanted(), made.grad_out) for _ in range(3)]; "
        "torch.cuda.synchronize()"
    )
    command = [program, "--metrics", NCU_METRICS, sys.executable, "-P", "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return f"ncu did not end within {limit_s:.0f} s"
    return done.stdout if done.returncode == 0 else f"ncu failed: {done.stdout}{done.stderr}"
