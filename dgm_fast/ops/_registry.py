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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgm_fast.ops import _backend, _extension

NAMESPACE = "dgm_fast"


@dataclass(frozen=True)
class OpSpec:
    """What Python knows of the op ``dgm_fast::<name>``.

    ``reference`` and ``fake`` take the arguments of the schema, in its order. The Triton launchers are
    ``dgm_fast.kernels.<family>.<name>_fwd`` and ``_bwd``, with the signatures of the op and of its
    backward op (``csrc/registry.h``). An op without differentiable arguments (a sampler) has no backward.
    """

    name: str
    family: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    # Arguments for a small self-check (doctor) and for tests that run over every op.
    example: Callable[[torch.device, torch.dtype], tuple[Any, ...]]
    # Shapes and strides of the backward op where they are not those of contiguous gradients.
    backward_fake: Callable[..., Any] | None = None


SPECS: dict[str, OpSpec] = {}
# Ops with a schema and autograd of their own, beside the table.
STANDALONE: set[str] = set()


class _Schema(NamedTuple):
    """As the extension declares an op."""

    differentiable: tuple[int, ...]  # arguments
    saved: int  # leading outputs that backward takes
    differentiable_outputs: int  # leading outputs


_SCHEMAS: dict[str, _Schema] = {}
_library: torch.library.Library | None = None

if _extension.extension is not None:
    _library = torch.library.Library(NAMESPACE, "FRAGMENT")
    _SCHEMAS = {
        name: _Schema(tuple(arguments), saved, outputs)
        for name, arguments, saved, outputs in _extension.extension.op_specs()
    }


def differentiable_arguments(name: str) -> tuple[int, ...]:
    return _SCHEMAS[name].differentiable


def differentiable_outputs(name: str) -> int:
    return _SCHEMAS[name].differentiable_outputs if name in _SCHEMAS else 1


def saved_outputs(name: str) -> int:
    return _SCHEMAS[name].saved


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
    differentiable, saved, num_grads = _SCHEMAS[spec.name]

    def fake(*values: Any) -> Any:
        args, mask = values[num_grads + saved : -1], values[-1]
        like = next(grad for grad in values[:num_grads] if grad is not None)
        grads = tuple(
            args[i].new_empty(args[i].shape if wanted else 0)
            if args[i] is not None
            else like.new_empty(0)
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
    name: str, upstream: Sequence[Tensor | None], args: Sequence[Any], mask: Sequence[bool]
) -> list[Tensor | None]:
    """The backward of an op through its reference formula, differentiable to any order.

    ``upstream`` has a gradient of every differentiable output, None for zero. The extension calls this
    when a backward runs with grad mode on (``create_graph=True``).
    """
    differentiable = _SCHEMAS[name].differentiable
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
        outputs = out if isinstance(out, tuple) else (out,)
        reached = [
            (value, grad.to(value.dtype))
            for value, grad in zip(outputs, upstream, strict=False)
            if grad is not None and value.requires_grad
        ]
        grads = iter(
            torch.autograd.grad(
                [value for value, _ in reached],
                wanted,
                [grad for _, grad in reached],
                create_graph=True,
                materialize_grads=True,
            )
        )
    return [next(grads) if needed else None for needed in mask]


if _extension.extension is not None:
    _extension.extension.set_reference_vjp(reference_vjp)
