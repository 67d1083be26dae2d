"""One record per op and the registration every family shares.

The C++ extension defines the schemas, the CPU kernels and the autograd formulas; this module adds what
Python holds: shape inference (fake functions), the Triton launchers on the CUDA key, and the reference
formula that differentiates a backward a second time.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgm_fast.ops import _backend, _extension

NAMESPACE = "dgm_fast"


@dataclass(frozen=True)
class OpSpec:
    """What Python knows of the op ``dgm_fast::<name>``.

    ``reference`` and ``fake`` take the arguments of the schema, in its order. The Triton launchers are
    ``dgm_fast.kernels.<family>.<name>_fwd`` and ``_bwd``, with the signatures of the op and of its
    backward op. An op without differentiable arguments (a sampler) has no backward.
    """

    name: str
    family: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    # Arguments for a small self-check (doctor) and for tests that run over every op.
    example: Callable[[torch.device, torch.dtype], tuple[Any, ...]]
    # Of the backward op, where its gradients are not simply contiguous tensors of the arguments' shapes.
    backward_fake: Callable[..., Any] | None = None


SPECS: dict[str, OpSpec] = {}

# name -> (indices of differentiable arguments, number of saved outputs), as the extension declares.
_SCHEMAS: dict[str, tuple[tuple[int, ...], int]] = {}
_library: torch.library.Library | None = None

if _extension.extension is not None:
    _library = torch.library.Library(NAMESPACE, "FRAGMENT")
    _SCHEMAS = {name: (tuple(diff), saved) for name, diff, saved in _extension.extension.op_specs()}


def differentiable_arguments(name: str) -> tuple[int, ...]:
    return _SCHEMAS[name][0]


def register(spec: OpSpec) -> None:
    """Enter an op in the table and, where the extension is there, complete its registration."""
    SPECS[spec.name] = spec
    if importlib.util.find_spec(f"dgm_fast.kernels.{spec.family}") is None:
        _backend.WITHOUT_TRITON.add(spec.family)
    if _library is None:
        return
    ops = {spec.name: ("fwd", spec.fake)}
    if differentiable_arguments(spec.name):
        ops[f"{spec.name}_backward"] = ("bwd", spec.backward_fake or _backward_fake(spec))
    for op, (suffix, fake) in ops.items():
        torch.library.register_fake(f"{NAMESPACE}::{op}", fake, lib=_library)
        if spec.family in _backend.WITHOUT_TRITON:
            continue
        launch = _triton_launcher(spec.family, f"{spec.name}_{suffix}")
        if _extension.triton_available():
            _library.impl(op, launch, "CUDA")
        if _extension.triton_interpreted():
            _route_cpu(op, launch)


def registered(name: str) -> Callable[..., Any]:
    """The op to call: the dispatcher's overload, or the reference where the extension is missing."""
    if _library is None:
        return SPECS[name].reference
    overload: Callable[..., Any] = getattr(torch.ops.dgm_fast, name).default
    return overload


def _backward_fake(spec: OpSpec) -> Callable[..., Any]:
    differentiable, saved = _SCHEMAS[spec.name]

    def fake(grad: Tensor, *rest: Any) -> Any:
        args, mask = rest[saved:-1], rest[-1]
        grads = tuple(
            args[i].new_empty(args[i].shape if wanted else 0)
            if args[i] is not None
            else grad.new_empty(0)
            for i, wanted in zip(differentiable, mask, strict=True)
        )
        return grads[0] if len(grads) == 1 else grads

    return fake


def _triton_launcher(family: str, function: str) -> Callable[..., Any]:
    # Importing a kernel module imports Triton, which takes most of a second: wait for the first call.
    launcher: Callable[..., Any] | None = None

    def launch(*args: Any) -> Any:
        nonlocal launcher
        if launcher is None:
            launcher = getattr(importlib.import_module(f"dgm_fast.kernels.{family}"), function)
        return launcher(*args)

    return launch


def _route_cpu(op: str, launch: Callable[..., Any]) -> None:
    """Under the interpreter the CPU key asks the backend setting; elsewhere it is C++ directly."""
    assert _library is not None
    compiled = torch.library.get_kernel(f"{NAMESPACE}::{op}", "CPU")

    def route(keyset: Any, *args: Any) -> Any:
        if _backend.get_backend() == "triton":
            return launch(*args)
        return compiled.call_boxed(keyset, *args)

    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="(?s).*[Oo]verriding a previously registered kernel"
        )
        _library.impl(op, route, "CPU", with_keyset=True, allow_override=True)


def reference_vjp(
    name: str, grad: Tensor, args: Sequence[Any], mask: Sequence[bool]
) -> list[Tensor | None]:
    """The backward of an op through its reference formula, differentiable to any order.

    The extension calls this when a backward runs with grad mode on (``create_graph=True``).
    """
    differentiable, _ = _SCHEMAS[name]
    args = list(args)
    wanted = []
    with torch.enable_grad():
        for i, needed in zip(differentiable, mask, strict=True):
            if needed:
                # An alias each: the same tensor may fill two arguments, whose gradients are separate.
                alias = args[i].view_as(args[i])
                args[i] = alias if alias.requires_grad else alias.detach().requires_grad_()
                wanted.append(args[i])
        out = SPECS[name].reference(*args)
        out = out[0] if isinstance(out, tuple) else out
        grads = iter(
            torch.autograd.grad(
                out, wanted, grad.to(out.dtype), create_graph=True, materialize_grads=True
            )
        )
    return [next(grads) if needed else None for needed in mask]


if _extension.extension is not None:
    _extension.extension.set_reference_vjp(reference_vjp)
