"""Measured error of one op against its reference formula in float64."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgm_fast import ops
from dgm_fast.ops import _extension
from dgm_fast.ops._registry import NAMESPACE, OpSpec

# The error rule: a few roundings are allowed, or a multiple of what the eager reference makes.
EPS_FACTOR = 4.0
VALUE_FACTOR = 2.0
GRADIENT_FACTOR = 3.0


@dataclass(frozen=True)
class Check:
    """One tensor of one op compared: relative L2 error, and the limit it has to keep."""

    op: str
    implementation: str
    device: str
    dtype: str
    quantity: str  # "value", "value 2", ... or the name of the argument whose gradient it is
    is_gradient: bool
    error: float
    limit: float
    message: str = ""

    @property
    def passed(self) -> bool:
        # Written so that NaN fails.
        return self.error <= self.limit


def check_op(
    spec: OpSpec, implementation: str, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> list[Check]:
    """Compare value and every gradient of an op on its example.

    Args:
        spec: the op.
        implementation: "cpp" or "triton", for which the registered op is called, or "reference".
        device: where the example lives.
        dtype: float32 or float64.
        seed: of the example; the global random state is left alone.

    Returns:
        One entry per compared tensor. An op that raises gives one failed entry with the message.
    """
    dtype_name = str(dtype).removeprefix("torch.")

    def entry(
        quantity: str, is_gradient: bool, error: float, limit: float, message: str = ""
    ) -> Check:
        return Check(
            spec.name,
            implementation,
            str(device),
            dtype_name,
            quantity,
            is_gradient,
            error,
            limit,
            message,
        )

    floor = EPS_FACTOR * torch.finfo(dtype).eps * (2 if dtype == torch.float64 else 1)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        args = spec.example(device, dtype)
        try:
            truth = _evaluate(spec, spec.reference, _cast(args, torch.float64), seed)
            allowed = _eager_errors(spec, args, dtype, seed)
            with ops.backend("triton" if implementation == "triton" else "auto"):
                ours = _evaluate(spec, _implementation(spec, implementation), args, seed)
        except Exception as error:  # whatever an op raises is a finding; the others still run
            return [entry("value", False, float("nan"), floor, f"{type(error).__name__}: {error}")]
    if ours.keys() != truth.keys():
        message = f"gives {sorted(ours)}, its reference {sorted(truth)}"
        return [entry("value", False, float("nan"), floor, message)]
    checks = []
    for key, expected in truth.items():
        quantity, is_gradient = key
        factor = GRADIENT_FACTOR if is_gradient else VALUE_FACTOR
        if dtype == torch.float64:
            # Two float64 results each make an error of their own: their difference holds both.
            factor += 1
        limit = max(factor * allowed[key], floor)
        checks.append(entry(quantity, is_gradient, relative_error(ours[key], expected), limit))
    return checks


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected|| in float64; absolute where the expected tensor is zero.

    NaN where the shapes differ.
    """
    if actual.shape != expected.shape:
        return float("nan")
    difference = torch.linalg.vector_norm(actual.detach().double() - expected.detach().double())
    norm = torch.linalg.vector_norm(expected.detach().double())
    return float(difference / norm if norm > 0 else difference)


def _implementation(spec: OpSpec, implementation: str) -> Callable[..., Any]:
    if _extension.extension is not None and implementation != "reference":
        return getattr(getattr(torch.ops, NAMESPACE), spec.name)
    if _extension.extension is not None:
        return spec.reference
    # Without the extension ``ops`` holds the formula that calls reach.
    return getattr(ops, spec.name, spec.reference)


def _eager_errors(
    spec: OpSpec, args: Sequence[Any], dtype: torch.dtype, seed: int
) -> dict[tuple[str, bool], float]:
    """The error of the plain formula in ``dtype``, by quantity.

    Nothing more precise measures the float64 formula: its error is taken to be that of the float32
    one, in proportion to the two precisions.
    """
    measured = torch.float32 if dtype == torch.float64 else dtype
    inputs = _cast(args, measured)
    eager = _evaluate(spec, spec.reference, inputs, seed)
    truth = _evaluate(spec, spec.reference, _cast(inputs, torch.float64), seed)
    scale = torch.finfo(dtype).eps / torch.finfo(measured).eps
    return {key: scale * relative_error(eager[key], truth[key]) for key in truth}


def _cast(args: Sequence[Any], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(_cast_one(a, dtype) for a in args)


def _cast_one(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_cast_one(v, dtype) for v in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _differentiable(spec: OpSpec, args: Sequence[Any]) -> list[int]:
    declared: Sequence[int] = range(len(args))
    if _extension.extension is not None:
        declared = ops.differentiable_arguments(spec.name)
    return [i for i in declared if isinstance(args[i], Tensor) and args[i].is_floating_point()]


def _evaluate(
    spec: OpSpec, function: Callable[..., Any], args: Sequence[Any], seed: int
) -> dict[tuple[str, bool], Tensor]:
    """Outputs, and gradients of the differentiable ones together, by (quantity, is a gradient)."""
    wanted = _differentiable(spec, args)
    inputs = list(args)
    for i in wanted:
        inputs[i] = args[i].detach().clone().requires_grad_()
    out = function(*inputs)
    outputs = out if isinstance(out, tuple | list) else (out,)
    results = {("value" if i == 0 else f"value {i + 1}", False): o for i, o in enumerate(outputs)}
    # Without the extension nothing says which arguments of a sampler are differentiable: none are.
    if not wanted or not outputs[0].requires_grad:
        return results
    generator = torch.Generator().manual_seed(seed)
    differentiated = outputs[: ops.differentiable_outputs(spec.name)]
    grads = torch.autograd.grad(
        differentiated,
        [inputs[i] for i in wanted],
        [torch.randn(o.shape, generator=generator).to(o) for o in differentiated],
        allow_unused=True,
        materialize_grads=True,
    )
    names = list(inspect.signature(spec.reference).parameters)
    for i, grad in zip(wanted, grads, strict=True):
        results[(names[i], True)] = grad
    return results
