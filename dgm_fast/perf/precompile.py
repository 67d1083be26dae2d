"""Fills the compiler's disk cache from several processes before anything is timed.

``torch.compile`` of some eighty graphs would otherwise take most of a benchmark run, on one core.
The timing process then compiles every case as before, and finds the finished code in the cache.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch

from dgm_fast.perf.problem import COMPILE, first_order, make_problem, variants
from dgm_fast.perf.registry import BUILTIN_MODULES, Case, builtin_registry
from dgm_fast.perf.step import StepCase
from dgm_fast.perf.step_cases import STEPS

# Each process holds its own copy of the inputs (and, on a GPU, a context of half a gigabyte).
MAX_WORKERS = 8


def precompile(
    items: Sequence[Case | StepCase], device: torch.device, workers: int | None = None
) -> Iterator[str]:
    """Compile the library's own cases side by side; yields each name when it is done.

    Heavy cases are left to the timing process (several at once could exhaust memory), and so are
    cases that users registered (another process does not know them).
    """
    names = [item.name for item in items if _is_light(item)]
    workers = min(workers or os.cpu_count() or 1, MAX_WORKERS, len(names))
    if workers < 2:
        return
    threads = torch.get_num_threads()
    # Not forked: a fork of a process that has used OpenMP or CUDA deadlocks in them.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        waiting = {pool.submit(compile_case, n, device.type, threads): n for n in names}
        for done in as_completed(waiting):
            if isinstance(done.exception(), BrokenProcessPool):
                # Whatever ended a worker (memory, most likely), the timing process compiles the rest.
                return
            # What does not compile here does not compile in the timing process, which reports it.
            yield waiting[done]
    finally:
        # The caller may stop early: what has not begun is dropped.
        pool.shutdown(wait=True, cancel_futures=True)


def compile_case(name: str, device_type: str, threads: int) -> None:
    """Run the compiled form of a case once in every mode, in a worker process."""
    # Inductor writes the thread count into the code it generates.
    torch.set_num_threads(threads)
    device = torch.device(device_type)
    for step in STEPS:
        if step.name == name:
            step.compile(device)
            return
    case = next(case for case in builtin_registry().all() if case.name == name)
    problem = make_problem(case, device)
    compiled = variants(case)[COMPILE]
    with torch.no_grad():
        compiled(**problem.inputs)
    first_order(compiled, problem.inputs, problem.wanted(), problem.grad_out)


def _is_light(item: Case | StepCase) -> bool:
    if isinstance(item, StepCase):
        return True
    return item.compiled and not item.heavy and item.build.__module__ in BUILTIN_MODULES
