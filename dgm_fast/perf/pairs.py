"""Two processes, one a side, that take turns: ABBA rounds of the same case in one session."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgm_fast.perf import stats, timing

# Several times the longest preparation: a float64 check of the largest case.
ANSWER_LIMIT_S = 900.0
# Idle OpenMP threads of the side that has just run still spin for a few milliseconds.
SETTLE_S = 4e-3
PLAN = timing.Plan(min_rounds=20, max_rounds=40, budget_s=4.0)


class WorkerError(RuntimeError):
    """A side that cannot be measured."""


@dataclass(frozen=True)
class Side:
    """One revision: where its package lies and how it is called in reports."""

    name: str
    # Put before everything else on sys.path; None measures the package that runs this.
    path: Path | None = None
    # Case name -> share of its own time by which our op is slowed down on purpose.
    slow: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """What both sides of a session share."""

    threads: int
    device: str = "cpu"
    # Modules that register users' cases.
    modules: tuple[str, ...] = ()
    plan: timing.Plan = PLAN


class Worker:
    """A running side. Use as a context manager, or close it."""

    def __init__(self, side: Side, setup: Setup) -> None:
        self.side = side
        env = dict(os.environ)
        if side.path is not None:
            env["PYTHONPATH"] = os.pathsep.join(
                filter(None, (str(side.path), env.get("PYTHONPATH", "")))
            )
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed by close()
        # -P: the working directory must not come before the side's package.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", "dgm_fast.perf.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=env,
        )
        self._send(
            do="hello",
            threads=setup.threads,
            device=setup.device,
            modules=list(setup.modules),
            slow=side.slow,
        )
        self.facts: dict[str, Any] = {}

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            WorkerError: if the process ended or failed, or the answer takes too long.
        """
        self._send(**request)
        return self._answer()

    def greet(self) -> dict[str, Any]:
        """The answer to the greeting that the start has sent; both sides start at once."""
        self.facts = self._answer()
        expected = self.side.path
        if expected is not None and not Path(self.facts["package"]).is_relative_to(expected):
            raise WorkerError(
                f"{self.side.name}: imported dgm_fast from {self.facts['package']}, not {expected}"
            )
        if self.facts["ours"] == "reference":
            raise WorkerError(
                f"{self.side.name}: would time plain PyTorch, not the kernels "
                f"({self.facts['reason']})"
            )
        return self.facts

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._log.close()

    def _send(self, **request: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._ended() from error

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            if not waiting.select(ANSWER_LIMIT_S):
                self._process.kill()
                raise WorkerError(f"{self.side.name}: no answer for {ANSWER_LIMIT_S:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.side.name}: {answer['error']}\n{self._tail()}")
        return answer

    def _ended(self) -> WorkerError:
        code = self._process.wait()
        return WorkerError(f"{self.side.name}: its process ended with {code}\n{self._tail()}")

    def _tail(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 2000))
        return self._log.read().decode(errors="replace").strip()


@contextmanager
def session(base: Side, head: Side, setup: Setup) -> Iterator[tuple[Worker, Worker]]:
    """Fresh processes of both sides, ready."""
    workers: list[Worker] = []
    try:
        for side in (base, head):
            workers.append(Worker(side, setup))
        for worker in workers:
            worker.greet()
        yield workers[0], workers[1]
    finally:
        for worker in workers:
            worker.close()


def look_at(
    pair: tuple[Worker, Worker],
    case: str,
    plan: timing.Plan,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, stats.Look], list[str]]:
    """Rounds of every mode of a case, and what is wrong with its results (then no rounds)."""
    cpus = _cpus(pair)
    prepared = [w.ask(do="prepare", case=case, min_round_s=plan.min_round_s) for w in pair]
    failures = [
        f"{worker.side.name}: {failure}"
        for worker, answer in zip(pair, prepared, strict=True)
        for failure in answer["failures"]
    ]
    if failures:
        return {}, failures
    seconds: dict[str, tuple[list[float], list[float]]] = {}
    for task in prepared[0]["inner"]:
        # The same number of calls on both sides, and a full round on the faster.
        inner = max(answer["inner"][task] for answer in prepared)
        begin = clock()
        for number in range(plan.max_rounds):
            if number >= plan.min_rounds and clock() - begin > plan.budget_s:
                break
            for name in timing.round_order(["0", "1"], number):
                time.sleep(SETTLE_S)
                cpu = cpus[number % len(cpus)]
                answer = pair[int(name)].ask(do="round", task=task, inner=inner, cpu=cpu)
                for mode, value in answer["seconds"].items():
                    seconds.setdefault(mode, ([], []))[int(name)].append(value)
    looks = {mode: stats.Look(tuple(b), tuple(h)) for mode, (b, h) in seconds.items()}
    return looks, []


def _cpus(pair: tuple[Worker, Worker]) -> list[int | None]:
    """Processors that both sides of a round run on, one after the other; [None] leaves it open.

    A side that stays on a processor with a busy neighbour, while the other does not, would look slow
    for a whole session. One thread can be moved; a team of threads is the system's to place.
    """
    one_thread = all(worker.facts.get("threads") == 1 for worker in pair)
    if not one_thread or not hasattr(os, "sched_getaffinity"):
        return [None]
    return list(sorted(os.sched_getaffinity(0)))


def common_cases(
    pair: tuple[Worker, Worker], wanted: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """The wanted cases that both sides have, and why the others are left out."""
    left_out = {}
    for name in wanted:
        lacking = [w.side.name for w in pair if name not in w.facts["cases"]]
        if lacking:
            left_out[name] = f"not in {' and '.join(lacking)}"
    return [name for name in wanted if name not in left_out], left_out


def look_at_all(
    base: Side,
    head: Side,
    cases: Sequence[str],
    setup: Setup,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> tuple[dict[tuple[str, str], stats.Look], dict[str, list[str]], dict[str, str]]:
    """One session over many cases: looks by (case, mode), failures by case, cases left out."""
    looks: dict[tuple[str, str], stats.Look] = {}
    failed: dict[str, list[str]] = {}
    with session(base, head, setup) as pair:
        common, left_out = common_cases(pair, cases)
        for case in progress(common):
            by_mode, failures = look_at(pair, case, setup.plan)
            looks |= {(case, mode): look for mode, look in by_mode.items()}
            if failures:
                failed[case] = failures
    return looks, failed, left_out
