"""What every op must pass, one call each: the checks of a new op are a list of cases and these lines.

A case holds the public function, the reference, and a builder of inputs. Gradients are taken to the
floating-point tensors whose index is in ``grads``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dgm_fast import ops

REDUCED = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *REDUCED)


@dataclass(frozen=True)
class OpCase:
    """One way to call an op. ``build(dtype)`` gives the positional tensors, on the CPU, seeded."""

    id: str
    op: str
    function: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    build: Callable[[torch.dtype], tuple[Tensor, ...]]
    grads: tuple[int, ...]
    # Second-order checks cost a numerical Hessian: the default inputs of a case are small.
    double_backward: bool = True

    def __str__(self) -> str:
        return self.id

    def on(self, device: str) -> OpCase:
        """The same case with its inputs on a device."""

        def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
            return tuple(t.to(device) for t in self.build(dtype))

        return replace(self, build=build)


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """New tensors start as NaN (or the largest integer), so that an entry left unwritten shows."""
    enabled = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def relative_error(value: Tensor, want: Tensor) -> float:
    """Relative L2 error; the norm of the error itself where the expected tensor is zero."""
    value, want = value.detach().double(), want.detach().double()
    assert value.shape == want.shape, f"shape {tuple(value.shape)}, expected {tuple(want.shape)}"
    norm = want.norm().item()
    error = (value - want).norm().item()
    return error / norm if norm > 0 else error


def assert_within_rule(
    name: str, value: Tensor, want: Tensor, eager_error: float, *, factor: int
) -> None:
    """The error rule: at most max(factor x the eager reference's error, 4 eps) against float64.

    Two float64 results each make an error of their own, and their difference holds both.
    """
    error = relative_error(value, want)
    floor = 4 * torch.finfo(value.dtype).eps
    if value.dtype == torch.float64:
        factor, floor = factor + 1, 2 * floor
    allowed = max(factor * eager_error, floor)
    assert error <= allowed, f"{name}: relative error {error:.2e}, allowed {allowed:.2e}"


def upstream(out: Tensor) -> Tensor:
    """A dense upstream gradient with no two entries alike."""
    return torch.linspace(0.5, 1.5, max(1, out.numel()), dtype=torch.float64)[
        : out.numel()
    ].reshape(out.shape)


def values_and_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Any], grads: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """The result and its gradients under :func:`upstream`; inputs keep their layout."""
    leaves = []
    called = list(inputs)
    if not grads:
        return function(*called), []
    for i in grads:
        leaf = inputs[i].detach().requires_grad_()
        leaves.append(leaf)
        called[i] = leaf
    out = function(*called)
    grad = upstream(out).to(out)
    gradients = torch.autograd.grad(out, leaves, grad, allow_unused=True)
    return out.detach(), [
        torch.zeros_like(leaf) if g is None else g
        for leaf, g in zip(leaves, gradients, strict=True)
    ]


def _eager_errors(
    case: OpCase, inputs: Sequence[Any], dtype: torch.dtype
) -> tuple[torch.dtype, float, list[float]]:
    """The result's dtype, and the errors of the plain formula: of the value and of each gradient.

    Nothing more precise measures the float64 formula: its errors are taken to be those of the float32
    one, in proportion to the two precisions.
    """
    measured = torch.float32 if dtype == torch.float64 else dtype
    inputs = _cast(inputs, measured)
    eager, grads = values_and_gradients(case.reference, inputs, case.grads)
    truth, true_grads = values_and_gradients(
        case.reference, _cast(inputs, torch.float64), case.grads
    )
    scale = torch.finfo(dtype).eps / torch.finfo(measured).eps
    return (
        torch.float64 if dtype == torch.float64 else eager.dtype,
        scale * relative_error(eager, truth),
        [scale * relative_error(g, t) for g, t in zip(grads, true_grads, strict=True)],
    )


def _cast(inputs: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    return [
        value.to(dtype) if isinstance(value, Tensor) and value.dtype.is_floating_point else value
        for value in inputs
    ]


def check_reference(case: OpCase, dtype: torch.dtype, inputs: Sequence[Any] | None = None) -> None:
    """Value and every gradient against the float64 reference, under the error rule."""
    inputs = case.build(dtype) if inputs is None else inputs
    double = _cast(inputs, torch.float64)
    want, want_grads = values_and_gradients(case.reference, double, case.grads)
    if not want.dtype.is_floating_point:
        with poisoned_memory():
            out = case.function(*inputs)
        assert out.dtype == want.dtype, f"result is {out.dtype}, expected {want.dtype}"
        assert torch.equal(out, want)
        return
    expected, eager_error, eager_grad_errors = _eager_errors(case, inputs, dtype)
    with poisoned_memory():
        out, grads = values_and_gradients(case.function, inputs, case.grads)
    assert out.dtype == expected, f"result is {out.dtype}, expected {expected}"
    assert_within_rule(f"{case.id} value", out, want, eager_error, factor=2)
    for i, g, w, e in zip(case.grads, grads, want_grads, eager_grad_errors, strict=True):
        assert g.dtype == inputs[i].dtype
        assert_within_rule(f"{case.id} gradient of argument {i}", g, w, e, factor=3)


def check_derivatives(case: OpCase) -> None:
    """gradcheck and gradgradcheck in float64: first and second derivatives against differences."""
    inputs = list(case.build(torch.float64))
    for i in case.grads:
        if ((inputs[i] == 0) | (inputs[i] == 1)).all():
            # Binary data lies on the border of what is valid: differences need room on both sides.
            inputs[i] = 0.25 + 0.5 * inputs[i]
        inputs[i] = inputs[i].detach().clone().requires_grad_()
    torch.autograd.gradcheck(case.function, inputs, fast_mode=False)
    if case.double_backward:
        torch.autograd.gradgradcheck(case.function, inputs, fast_mode=True)


def check_registration(op: str, args: Sequence[Any], differentiable: Sequence[int]) -> None:
    """torch.library.opcheck, with and without gradients, on forward and backward ops."""
    overload = getattr(torch.ops.dgm_fast, op).default
    torch.library.opcheck(overload, args)
    if not differentiable:
        return
    with_grad = [
        value.detach().clone().requires_grad_()
        if i in differentiable and isinstance(value, Tensor) and value.dtype.is_floating_point
        else value
        for i, value in enumerate(args)
    ]
    torch.library.opcheck(overload, with_grad)
    outputs = overload(*args)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [torch.ones_like(out) for out in outputs[: ops.differentiable_outputs(op)]]
    mask = [isinstance(args[i], Tensor) and args[i].dtype.is_floating_point for i in differentiable]
    torch.library.opcheck(
        getattr(torch.ops.dgm_fast, f"{op}_backward").default,
        (*grads, *outputs[: ops.saved_outputs(op)], *args, mask),
        test_utils=("test_schema", "test_faketensor"),
    )


def check_compiled(case: OpCase, backend: str = "aot_eager") -> None:
    """One graph, same value and gradients as eager."""
    torch._dynamo.reset()
    inputs = case.build(torch.float32)
    compiled = torch.compile(case.function, fullgraph=True, backend=backend)
    out, grads = values_and_gradients(compiled, inputs, case.grads)
    want, want_grads = values_and_gradients(case.function, inputs, case.grads)
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
    for g, w in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-6)


def non_contiguous(t: Tensor) -> Tensor:
    """The same values with every stride doubled and the first two dimensions swapped in memory."""
    if t.ndim < 1:
        return t
    spaced = t.new_zeros([2 * size for size in t.shape])
    view = spaced[tuple(slice(None, None, 2) for _ in t.shape)]
    view.copy_(t)
    if t.ndim < 2:
        return view
    return view.transpose(0, 1).contiguous().transpose(0, 1)


def check_layouts(case: OpCase) -> None:
    """Strided inputs give what contiguous ones give."""
    inputs = case.build(torch.float32)
    want, want_grads = values_and_gradients(case.function, inputs, case.grads)
    for change in (non_contiguous, lambda t: t[None].expand(3, *t.shape)[1]):
        changed = [change(value) if isinstance(value, Tensor) else value for value in inputs]
        with poisoned_memory():
            out, grads = values_and_gradients(case.function, changed, case.grads)
        torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
        for g, w in zip(grads, want_grads, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-6)


def check_transforms(case: OpCase) -> None:
    """torch.func.grad, vmap(grad) and jacrev agree with the reference's plain autograd."""
    inputs = case.build(torch.float64)
    target = case.grads[0]

    def total(t: Tensor) -> Tensor:
        called = list(inputs)
        called[target] = t
        return case.function(*called).sum()

    leaf = inputs[target].detach().clone().requires_grad_()
    called = list(inputs)
    called[target] = leaf
    (want,) = torch.autograd.grad(case.reference(*called).sum(), leaf)
    point = inputs[target]
    torch.testing.assert_close(torch.func.grad(total)(point), want)
    batched = torch.func.vmap(torch.func.grad(total))(torch.stack([point, point]))
    torch.testing.assert_close(batched, torch.stack([want, want]))
    torch.testing.assert_close(torch.func.jacrev(total)(point), want)


def check_deterministic(case: OpCase) -> None:
    """The same bits from run to run and at every number of threads."""
    inputs = case.build(torch.float32)
    first = values_and_gradients(case.function, inputs, case.grads)
    threads = torch.get_num_threads()
    try:
        for count in (threads, 1, 3):
            torch.set_num_threads(count)
            out, grads = values_and_gradients(case.function, inputs, case.grads)
            assert torch.equal(out, first[0])
            assert all(torch.equal(a, b) for a, b in zip(grads, first[1], strict=True))
    finally:
        torch.set_num_threads(threads)
