"""Memory of one forward and backward: bytes kept for backward, and the peak above the inputs."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dgm_fast.perf.problem import Function, Problem, first_order


def saved_bytes(function: Function, problem: Problem) -> int:
    """Bytes of distinct storages saved for backward that are not inputs."""
    inputs = {_address(t) for t in problem.inputs.values()}
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[_address(t)] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        # The result holds the graph: without it a freed block's address could be counted once for
        # two.
        out = function(**problem.inputs)
    total = sum(size for address, size in saved.items() if address not in inputs)
    del out
    return total


def peak_bytes(function: Function, problem: Problem) -> int:
    """Highest memory in use during forward and backward, above what was in use before."""

    def call() -> None:
        first_order(function, problem.inputs, problem.wanted(), problem.grad_out)

    return peak_of(call, problem.device)


def peak_of(call: Callable[[], object], device: torch.device) -> int:
    """Highest memory in use during ``call``, above what was in use before.

    CPU: running sum of the allocator's events as the profiler records them. CUDA: the caching
    allocator's own peak.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    quiet_profiler()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        call()
    events = recording.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    in_use = peak = 0
    for _, change in changes:
        in_use += change
        peak = max(peak, in_use)
    return peak


def quiet_profiler() -> None:
    """Keep the profiler's own start and stop messages out of the progress display."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def _address(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()
