"""Correctness before speed: a variant that is wrong gets no figure.

Ours and the eager form decide about the case: where one of them is wrong, nothing is timed. Another
rival that is wrong loses its own column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dgm_fast.perf.problem import (
    COMPILE,
    EAGER,
    OURS,
    Function,
    Problem,
    as_tuple,
    first_order,
    second_order,
)
from dgm_fast.perf.registry import Inputs, Outputs

# A rival computes the same where it agrees in float64, in which rounding plays no part.
# (torch.distributions rounds a constant to float32: 1.3e-7; all others come to 1e-12.)
EXACT_LIMIT = 1e-6
# In the case's own dtype a rival may be this far off, or three times as far as the eager form: what a
# compiler made of a right formula may be wrong.
RIVAL_LIMIT = 1e-3
RIVAL_LIMIT_REDUCED = 5e-2
# Where the eager form itself is further off than this in the case's dtype, nothing can be judged by it.
EAGER_LIMIT = 5e-2


@dataclass
class Verdict:
    """Relative L2 errors by variant and tensor.

    The tensors: "value" (with a graph), "inference" (without), both numbered where there are several,
    "grad.<name>", "second.<name>"."""

    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    # Variants that do not run here, with the reason; no figure, but no failure of the case either.
    unavailable: dict[str, str] = field(default_factory=dict)
    # Rivals that compute something else, with the error: no figure either.
    wrong: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.failures

    def right(self) -> list[str]:
        """The variants that may be timed."""
        return [name for name in self.errors if name not in self.wrong]


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """Relative L2 error; absolute where the truth is 0, inf if not finite or of another shape."""
    if actual.shape != truth.shape:
        return math.inf
    truth = truth.double()  # samples may be class indices
    error = (actual.detach().double() - truth).norm().item()
    scale = truth.norm().item()
    result = error / scale if scale > 0 else error
    return result if math.isfinite(result) else math.inf


def check(problem: Problem, functions: dict[str, Function]) -> Verdict:
    """Compare every variant with the eager form in float64: value and each gradient.

    Ours must meet the library's rule: error at most max(2x eager's, 4 eps), 3x for gradients. Other
    rivals must be the same computation: their uncompiled form in float64, and near enough in the case's
    own dtype.
    """
    truth = _truth(problem)
    verdict = Verdict()
    resolution: dict[str, float] = {}
    for name, function in functions.items():
        try:
            results = _evaluate(function, problem, second=_differentiates_twice(name))
        except Exception as raised:
            reason = f"{type(raised).__name__}: {str(raised).split(chr(10))[0]}"
            if name in (OURS, EAGER):
                verdict.failures.append(f"{name} raised {reason}")
            else:
                verdict.unavailable[name] = reason
            continue
        verdict.errors[name] = _errors(results, truth)
        if name == OURS:
            resolution = {
                key: torch.finfo(v.dtype).eps if v.dtype.is_floating_point else 0.0
                for key, v in results.items()
            }
        del results
    by_eager = verdict.errors.get(EAGER, {})
    for name, errors in verdict.errors.items():
        if name == OURS:
            limits = {
                key: max(_factor(key) * by_eager.get(key, 0.0), 4 * resolution[key])
                for key in errors
            }
            verdict.failures += _complaints(name, errors, limits)
        elif name == EAGER:
            verdict.failures += _complaints(name, errors, dict.fromkeys(errors, EAGER_LIMIT))
        else:
            complaints = _complaints(name, errors, _rival_limits(errors, by_eager, problem))
            # What torch.compile made of the eager form has that form's formula.
            if not complaints and name != COMPILE:
                complaints = _inexact(name, functions[name], problem, truth, verdict)
            if complaints:
                verdict.wrong[name] = complaints[0].removeprefix(f"{name}: ")
    return verdict


def _factor(key: str) -> int:
    return 2 if key.startswith(("value", "inference")) else 3


def _errors(results: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    return {key: relative_error(value, truth[key]) for key, value in results.items()}


def _complaints(name: str, errors: dict[str, float], limits: dict[str, float]) -> list[str]:
    """What is beyond its limit, the worst first."""
    beyond = [key for key, error in errors.items() if not error <= limits[key]]
    beyond.sort(key=lambda key: -errors[key])
    return [f"{name}: {key} is off by {errors[key]:.2e}, limit {limits[key]:.2e}" for key in beyond]


def _rival_limits(
    errors: dict[str, float], by_eager: dict[str, float], problem: Problem
) -> dict[str, float]:
    reduced = torch.finfo(problem.case.dtype).bits < 32
    floor = RIVAL_LIMIT_REDUCED if reduced else RIVAL_LIMIT
    return {key: max(floor, 3 * by_eager.get(key, 0.0)) for key in errors}


def _inexact(
    name: str,
    function: Function,
    problem: Problem,
    truth: dict[str, Tensor],
    verdict: Verdict,
) -> list[str]:
    """Complaints about a rival's formula, its uncompiled form in float64."""
    plain = getattr(function, "_torchdynamo_orig_callable", function)
    try:
        errors = _errors(_in_double(plain, problem, second=False), truth)
    except Exception as raised:
        # Its own dtype has to do.
        reason = str(raised).split("\n")[0]
        verdict.unavailable[f"{name} in float64"] = f"{type(raised).__name__}: {reason}"
        return []
    limits = dict.fromkeys(errors, EXACT_LIMIT)
    return [f"{complaint}, in float64" for complaint in _complaints(name, errors, limits)]


def _differentiates_twice(name: str) -> bool:
    return name in (OURS, EAGER)


def _evaluate(function: Function, problem: Problem, *, second: bool) -> dict[str, Tensor]:
    return _tensors(
        function,
        problem,
        problem.inputs,
        problem.grad_out,
        problem.second_grads if second else {},
    )


def _truth(problem: Problem) -> dict[str, Tensor]:
    return _in_double(problem.case.eager, problem, second=True)


def _in_double(function: Function, problem: Problem, *, second: bool) -> dict[str, Tensor]:
    """What ``function`` makes of the problem's inputs, rounded as they are, in float64."""
    inputs: Inputs = {
        name: (t.detach().double() if t.dtype.is_floating_point else t).requires_grad_(
            t.requires_grad
        )
        for name, t in problem.inputs.items()
    }
    return _tensors(
        function,
        problem,
        inputs,
        tuple(grad.double() for grad in problem.grad_out),
        {name: t.double() for name, t in problem.second_grads.items()} if second else {},
    )


def _tensors(
    function: Function,
    problem: Problem,
    inputs: Inputs,
    grad_out: tuple[Tensor, ...],
    second_grads: dict[str, Tensor],
) -> dict[str, Tensor]:
    names = problem.case.grads
    wanted = [inputs[name] for name in names]
    # The no-grad result is a path of its own (and, compiled, a graph of its own): it is checked
    # too.
    with torch.no_grad():
        results = _numbered("inference", function(**inputs))
    out, grads = first_order(function, inputs, wanted, grad_out)
    results |= _numbered("value", out)
    results.update({f"grad.{n}": g for n, g in zip(names, grads, strict=True)})
    if second_grads:
        vectors = [second_grads[name] for name in names]
        seconds = second_order(function, inputs, wanted, grad_out, vectors)
        results.update({f"second.{n}": g for n, g in zip(names, seconds, strict=True)})
    return results


def _numbered(kind: str, out: Outputs) -> dict[str, Tensor]:
    values = as_tuple(out)
    names = [kind] if len(values) == 1 else [f"{kind}.{i}" for i in range(len(values))]
    return {name: value.detach() for name, value in zip(names, values, strict=True)}
