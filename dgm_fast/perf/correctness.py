"""Correctness before speed: a variant that is wrong gets no figure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dgm_fast.perf.problem import (
    EAGER,
    OURS,
    Function,
    Problem,
    as_tuple,
    first_order,
    second_order,
)
from dgm_fast.perf.registry import Inputs, Outputs

# A rival may be less exact than we promise to be; beyond this it computes something else. Plain
# float32 forms come to 2e-3: gradients of splines subtract knots that nearly cancel, and those through
# LeakyReLU jump where rounding moves an activation over its kink.
RIVAL_LIMIT = 5e-3
RIVAL_LIMIT_REDUCED = 5e-2


@dataclass
class Verdict:
    """Relative L2 errors by variant and tensor.

    The tensors: "value" (with a graph), "inference" (without), both numbered where there are several,
    "grad.<name>", "second.<name>"."""

    errors: dict[str, dict[str, float]]
    failures: list[str]
    # Variants that do not run here, with the reason; no figure, but no failure of the case either.
    unavailable: dict[str, str]

    @property
    def ok(self) -> bool:
        return not self.failures


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

    Ours must meet the library's rule: error at most max(2x eager's, 4 eps), 3x for gradients. The
    eager form and other rivals must only be near enough to be the same computation.
    """
    truth = _truth(problem)
    verdict = Verdict(errors={}, failures=[], unavailable={})
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
        verdict.errors[name] = {
            key: relative_error(value, truth[key]) for key, value in results.items()
        }
        if name == OURS:
            resolution = {
                key: torch.finfo(v.dtype).eps if v.dtype.is_floating_point else 0.0
                for key, v in results.items()
            }
        del results
    for name, errors in verdict.errors.items():
        for key, error in errors.items():
            if name == OURS:
                base = verdict.errors.get(EAGER, {}).get(key, 0.0)
                factor = 2 if key.startswith(("value", "inference")) else 3
                limit = max(factor * base, 4 * resolution[key])
            elif torch.finfo(problem.case.dtype).bits < 32:
                limit = RIVAL_LIMIT_REDUCED
            else:
                limit = RIVAL_LIMIT
            if not error <= limit:
                verdict.failures.append(f"{name}: {key} is off by {error:.2e}, limit {limit:.2e}")
    return verdict


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
    inputs: Inputs = {
        name: (t.detach().double() if t.dtype.is_floating_point else t).requires_grad_(
            t.requires_grad
        )
        for name, t in problem.inputs.items()
    }
    return _tensors(
        problem.case.eager,
        problem,
        inputs,
        tuple(grad.double() for grad in problem.grad_out),
        {name: t.double() for name, t in problem.second_grads.items()},
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
