"""The process that times one side of an A/B comparison: JSON lines in, JSON lines out.

``python -m dgm_fast.perf.worker`` runs with the package of one revision and this harness. It checks a
case before it times it and holds one case at a time. Requests are dictionaries with a key "do":
hello, prepare, round. Every answer is a dictionary; {"error": ...} says what went wrong.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import traceback
from typing import Any

import torch

import dgm_fast
from dgm_fast import ops
from dgm_fast.perf import correctness, inject, timing
from dgm_fast.perf.problem import EAGER, OURS, make_problem
from dgm_fast.perf.registry import BUILTIN_MODULES, REGISTRY, Case
from dgm_fast.perf.runner import Options
from dgm_fast.perf.step import StepCase, checked_steps
from dgm_fast.perf.step_cases import STEPS


def items() -> dict[str, Case | StepCase]:
    """Everything that can be timed here, by name."""
    found: list[Case | StepCase] = [*REGISTRY.all(), *STEPS]
    return {item.name: item for item in found}


class Session:
    """One side: its cases and the tasks of the one that is prepared."""

    def __init__(self) -> None:
        self.tasks: dict[str, timing.Task] = {}
        self.options = Options()
        self.slow: dict[str, float] = {}

    def hello(self, request: dict[str, Any]) -> dict[str, Any]:
        """Settings of the session; tells what runs here."""
        if request.get("threads"):
            torch.set_num_threads(request["threads"])
        self.options = Options(device=torch.device(request.get("device", "cpu")))
        self.slow = request.get("slow", {})
        absent = {}
        for module in (*BUILTIN_MODULES, *request.get("modules", [])):
            try:
                importlib.import_module(module)
            except (ImportError, AttributeError) as error:
                # This revision lacks an op that the harness has cases of.
                absent[module] = str(error)
        implementation, reason = ops.explain(self.options.device.type)
        return {
            "package": os.path.dirname(os.path.abspath(dgm_fast.__file__)),
            "ours": implementation,
            "reason": reason,
            "isa": ops.active_isa(),
            "threads": torch.get_num_threads(),
            "cases": list(items()),
            "absent": absent,
        }

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Build, check, warm up and calibrate a case; no times without a right result."""
        self.tasks = {}
        gc.collect()
        item = items()[request["case"]]
        failures = self._prepare_step(item) if isinstance(item, StepCase) else self._prepare(item)
        if failures:
            self.tasks = {}
            return {"failures": failures}
        inner = {}
        for name, task in self.tasks.items():
            task(1)
            inner[name] = timing.calibrate(task, request["min_round_s"])
        return {"failures": [], "inner": inner}

    def round(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds a call by mode. One call comes first unmeasured: the other side had the caches."""
        task = self.tasks[request["task"]]
        if request.get("cpu") is not None:
            os.sched_setaffinity(0, {request["cpu"]})
        collecting = gc.isenabled()
        gc.disable()
        try:
            task(1)
            return {"seconds": task(request["inner"])}
        finally:
            if collecting:
                gc.enable()

    def _prepare(self, case: Case) -> list[str]:
        options = self.options
        problem = make_problem(case, options.device, cold_bytes=options.cold_bytes())
        verdict = correctness.check(problem, {EAGER: case.eager, OURS: case.ours})
        if verdict.ok:
            ours = case.ours
            if case.name in self.slow:
                ours = inject.slowed(ours, self.slow[case.name])
            self.tasks["forward"] = timing.forward_task(ours, problem)
            if case.grads:
                self.tasks["training"] = timing.training_task(ours, problem)
        return verdict.failures

    def _prepare_step(self, step: StepCase) -> list[str]:
        record: dict[str, Any] = {"failures": [], "unavailable": {}, "wrong": {}, "errors": {}}
        steps = checked_steps(step, self.options, [EAGER, OURS], record)
        if not record["failures"]:
            self.tasks["step"] = timing.device_task("step", steps[OURS], self.options.device)
        return record["failures"]


def main() -> int:
    # What a library prints must not land between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    session = Session()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(session, request["do"])(request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
