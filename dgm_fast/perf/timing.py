"""Interleaved timing: variants take turns round by round, so that drift hits all alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from dgm_fast.perf.problem import Function, Problem, second_order

# A task runs its variant ``inner`` times and returns seconds per call for each mode it measures.
Task = Callable[[int], dict[str, float]]


@dataclass(frozen=True)
class Plan:
    """How long to measure: every round of every variant lasts at least ``min_round_s``."""

    min_round_s: float = 1e-3
    min_rounds: int = 5
    max_rounds: int = 25
    # Per set of tasks: no new round begins after this, once there are min_rounds.
    budget_s: float = 1.5
    warm_up: int = 2


FULL = Plan()
QUICK = Plan(min_rounds=3, max_rounds=7, budget_s=0.3)


@dataclass(frozen=True)
class Summary:
    """Seconds per call over rounds."""

    median: float
    q1: float
    q3: float
    rounds: tuple[float, ...]
    inner: int


def summarize(rounds: list[float], inner: int) -> Summary:
    """Median and quartiles (inclusive method; a single round is its own quartiles)."""
    if len(rounds) == 1:
        q1 = median = q3 = rounds[0]
    else:
        q1, median, q3 = statistics.quantiles(rounds, n=4, method="inclusive")
    return Summary(median, q1, q3, tuple(rounds), inner)


def round_order(names: list[str], number: int) -> list[str]:
    """Order of the variants in a round: rotated each round, reversed every other cycle.

    Rotation alone would always run a variant after the same neighbour, in whose cache state it
    starts.
    """
    shift = number % len(names)
    order = names[shift:] + names[:shift]
    return order[::-1] if (number // len(names)) % 2 else order


def calibrate(task: Task, min_round_s: float) -> int:
    """How many calls make a round last ``min_round_s``; also warms up."""
    inner = 1
    while True:
        # A call that another process interrupted looks slow, and one call would pass for a round:
        # the fastest of three counts, unless one alone is long enough to be believed.
        per_call = math.inf
        for _ in range(3):
            # The shortest mode that the task measures has to fill the round.
            per_call = min(per_call, max(min(task(inner).values()), 1e-9))
            if per_call * inner > 100 * min_round_s:
                break
        if per_call * inner >= min_round_s:
            return inner
        inner = min(max(2 * inner, int(1.2 * min_round_s / per_call) + 1), 16 * inner)


def interleave(
    tasks: Mapping[str, Task],
    plan: Plan,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, Summary]]:
    """Time all tasks in turn; returns mode -> variant -> summary."""
    names = list(tasks)
    for name in names:
        for _ in range(plan.warm_up):
            tasks[name](1)
    inner = {name: calibrate(tasks[name], plan.min_round_s) for name in names}
    samples: dict[str, dict[str, list[float]]] = {}
    collecting = gc.isenabled()
    gc.disable()
    try:
        begin = clock()
        for number in range(plan.max_rounds):
            if number >= plan.min_rounds and clock() - begin > plan.budget_s:
                break
            for name in round_order(names, number):
                for mode, seconds in tasks[name](inner[name]).items():
                    samples.setdefault(mode, {}).setdefault(name, []).append(seconds)
    finally:
        if collecting:
            gc.enable()
    return {
        mode: {name: summarize(rounds, inner[name]) for name, rounds in by_name.items()}
        for mode, by_name in samples.items()
    }


def forward_task(function: Function, problem: Problem) -> Task:
    """Mode "forward": calls without a graph."""
    copies = problem.copies

    def host(inner: int) -> dict[str, float]:
        count = len(copies)
        with torch.no_grad():
            begin = time.perf_counter()
            for i in range(inner):
                function(**copies[i % count])
            return {"forward": (time.perf_counter() - begin) / inner}

    def cuda(inner: int) -> dict[str, float]:
        count = len(copies)
        marks = _events(inner, 2)
        with torch.no_grad():
            for i in range(inner):
                marks[i][0].record()
                function(**copies[i % count])
                marks[i][1].record()
        return {"forward": _elapsed(marks, 0, 1)}

    return cuda if problem.device.type == "cuda" else host


def graph_task(function: Function, problem: Problem) -> Task:
    """CUDA only, mode "graph": the forward replayed from a captured graph, without its launches.

    One replay calls the function on every copy of the inputs, so that they are as cold as elsewhere.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        for copy in problem.copies:
            function(**copy)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        for copy in problem.copies:
            function(**copy)

    def cuda(inner: int) -> dict[str, float]:
        marks = _events(inner, 2)
        for start, end in marks:
            start.record()
            graph.replay()
            end.record()
        return {"graph": _elapsed(marks, 0, 1) / len(problem.copies)}

    return cuda


def training_task(function: Function, problem: Problem) -> Task:
    """Modes "backward" and "both", from the same iterations.

    Every iteration builds its own graph and backward consumes it, as in training. Repeating
    backward on one graph (``retain_graph``) would keep its buffers alive and hot in cache, and
    would forbid compiled code to reuse them.
    """
    copies, grad_out = problem.copies, problem.grad_out
    wanted = [problem.wanted(i) for i in range(len(copies))]

    def host(inner: int) -> dict[str, float]:
        both = backward = 0.0
        count = len(copies)
        now = time.perf_counter
        for i in range(inner):
            copy = i % count
            begin = now()
            out = function(**copies[copy])
            middle = now()
            grads = torch.autograd.grad(out, wanted[copy], grad_out)
            # Freeing belongs to the price: large blocks go back to the system here.
            del out, grads
            end = now()
            both += end - begin
            backward += end - middle
        return {"backward": backward / inner, "both": both / inner}

    def cuda(inner: int) -> dict[str, float]:
        count = len(copies)
        marks = _events(inner, 3)
        for i in range(inner):
            copy = i % count
            marks[i][0].record()
            out = function(**copies[copy])
            marks[i][1].record()
            torch.autograd.grad(out, wanted[copy], grad_out)
            marks[i][2].record()
        return {"backward": _elapsed(marks, 1, 2), "both": _elapsed(marks, 0, 2)}

    return cuda if problem.device.type == "cuda" else host


def second_order_task(function: Function, problem: Problem) -> Task:
    """Mode "second": forward, backward with a graph, and a Hessian-vector product."""
    vectors = [problem.second_grads[name] for name in problem.case.grads]
    wanted = problem.wanted()

    def call() -> None:
        second_order(function, problem.inputs, wanted, problem.grad_out, vectors)

    return device_task("second", call, problem.device)


def device_task(mode: str, call: Callable[[], object], device: torch.device) -> Task:
    """A task of one mode from a function without arguments."""

    def host(inner: int) -> dict[str, float]:
        begin = time.perf_counter()
        for _ in range(inner):
            call()
        return {mode: (time.perf_counter() - begin) / inner}

    def cuda(inner: int) -> dict[str, float]:
        marks = _events(inner, 2)
        for start, end in marks:
            start.record()
            call()
            end.record()
        return {mode: _elapsed(marks, 0, 1)}

    return cuda if device.type == "cuda" else host


def _events(inner: int, per_call: int) -> list[list[torch.cuda.Event]]:
    torch.cuda.synchronize()
    return [[torch.cuda.Event(enable_timing=True) for _ in range(per_call)] for _ in range(inner)]


def _elapsed(marks: list[list[torch.cuda.Event]], first: int, last: int) -> float:
    """Mean seconds between two events of each call.

    For kernels shorter than their launch the stream runs empty and this includes the host's time:
    what an eager user pays.
    """
    torch.cuda.synchronize()
    return sum(m[first].elapsed_time(m[last]) for m in marks) * 1e-3 / len(marks)
