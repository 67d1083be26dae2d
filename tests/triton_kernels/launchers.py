"""Comparison of a launcher pair with its reference in float64, by the error rule of the project."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from dgm_fast.kernels._dense import channels_dense
from torch import Tensor

from dgm_fast.ops import SPECS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# Indices of differentiable arguments, and how many outputs are saved for backward.
DIFFERENTIABLE = {
    "bernoulli_log_prob": (0, 1),
    "gaussian_log_prob": (0, 1, 2),
    "categorical_log_prob": (0,),
    "gaussian_kl": (0, 1, 2, 3),
    "reparameterize": (0, 1),
    "log_mean_exp": (0,),
    "elbo": (0, 1, 2, 3, 4),
    "iwae_bound": (0, 1, 2, 3, 4, 5, 6),
    "discretized_logistic_mixture_log_prob": (0,),
    "gaussian_mixture_log_prob": (0, 1, 2, 3),
    "linear_bernoulli_log_prob": (0, 1, 2, 3),
    "linear_categorical_log_prob": (0, 1, 2),
    "masked_linear": (0, 1, 2),
    "fvsbn_log_prob": (0, 1, 2),
    "nade_log_prob": (1, 2, 3, 4),
    "nade_categorical_log_prob": (1, 2, 3, 4),
    "rnade_log_prob": tuple(range(10)),
    "affine_coupling": (0, 1, 2),
    "actnorm": (0, 1, 2),
    "rational_quadratic_spline": (0, 1, 2, 3),
    "logistic_mixture_cdf": (0, 1, 2, 3),
    "adversarial_loss": (0, 1),
    "norm_penalty": (0,),
    "leaky_relu": (0,),
    "bias_leaky_relu": (0, 1),
    "masked_conv2d": (0, 1, 2),
    "gated_activation": (0, 1, 2),
    "row_lstm": (0, 1),
    "diagonal_lstm": (0, 1),
}
SAVED = {
    "log_mean_exp": 1,
    "iwae_bound": 2,
    "gaussian_mixture_log_prob": 1,
    "fvsbn_log_prob": 2,
    "nade_log_prob": 2,
    "nade_categorical_log_prob": 2,
    "rnade_log_prob": 2,
    "logistic_mixture_cdf": 1,
    "adversarial_loss": 3,
    "norm_penalty": 2,
    "leaky_relu": 1,
    "bias_leaky_relu": 1,
    "row_lstm": 3,
    "diagonal_lstm": 3,
}
# How many outputs are differentiable, where it is not one.
OUTPUTS = {"affine_coupling": 2, "rational_quadratic_spline": 2, "logistic_mixture_cdf": 2}

Grads = Tensor | Sequence[Tensor | None]


def _launcher(op: str, suffix: str) -> Any:
    module = importlib.import_module(f"dgm_fast.kernels.{SPECS[op].family}")
    return getattr(module, f"{op}_{suffix}")


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """New floating-point memory holds NaN, so that an element a kernel leaves unwritten shows."""
    new_empty = Tensor.new_empty

    def poisoned(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = new_empty(self, *args, **kwargs)
        return out.fill_(math.nan) if out.dtype.is_floating_point else out

    with mock.patch.object(Tensor, "new_empty", poisoned):
        yield


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def forward(op: str, *args: Any) -> tuple[Tensor, ...]:
    with poisoned_memory():
        return _as_tuple(_launcher(op, "fwd")(*args))


def backward(
    op: str, grad: Grads, outputs: Sequence[Tensor], args: Sequence[Any], mask: Sequence[bool]
) -> tuple[Tensor, ...]:
    saved = outputs[: SAVED.get(op, 0)]
    with poisoned_memory():
        return _as_tuple(_launcher(op, "bwd")(*_as_tuple(grad), *saved, *args, list(mask)))


def reference(
    op: str, args: Sequence[Any], grad: Grads, mask: Sequence[bool], dtype: torch.dtype | None
) -> tuple[tuple[Tensor, ...], list[Tensor | None]]:
    """Values and gradients of the reference formula, in ``dtype`` or in that of the arguments."""
    wanted = [i for i, m in zip(DIFFERENTIABLE[op], mask, strict=True) if m]
    inputs = list(args)
    for i, a in enumerate(args):
        if isinstance(a, Tensor):
            a = a.to(dtype) if dtype and a.dtype.is_floating_point else a
            inputs[i] = a.detach().clone().requires_grad_(i in wanted)
    outputs = _as_tuple(SPECS[op].reference(*inputs))
    reached = [
        (out, g.to(out.dtype))
        for out, g in zip(outputs, _as_tuple(grad), strict=False)
        if g is not None
    ]
    grads = iter(
        torch.autograd.grad(
            [out for out, _ in reached],
            [inputs[i] for i in wanted],
            [g for _, g in reached],
            allow_unused=True,
            materialize_grads=True,
        )
        if wanted
        else ()
    )
    return outputs, [next(grads) if i in wanted else None for i in DIFFERENTIABLE[op]]


def relative_error(value: Tensor, exact: Tensor) -> float:
    difference = (value.double() - exact).norm().item()
    norm = exact.norm().item()
    return difference / norm if norm else difference


def assert_accurate(
    name: str, value: Tensor, exact: Tensor, eager: Tensor, computed: torch.dtype, factor: float
) -> None:
    """Relative L2 error at most ``factor`` times the eager reference's, or 4 eps.

    ``computed`` is the dtype of the op's sums, which may be coarser than that of an argument.
    For float64 the "exact" value is the eager one. Its error is then that of the float32 eager result,
    which ``eager`` holds, in proportion to eps, and the exact value's own error adds to ours.
    """
    assert value.shape == exact.shape, f"{name}: shape {value.shape}, expected {exact.shape}"
    assert channels_dense(value), f"{name} is not contiguous, nor with its channels innermost"
    finite = exact.isfinite()
    torch.testing.assert_close(
        value[~finite].double(), exact[~finite], rtol=0, atol=0, equal_nan=True
    )
    value, exact, eager = value[finite], exact[finite], eager[finite]
    assert value.isfinite().all(), f"{name}: not finite where the exact value is"
    error = relative_error(value, exact)
    # An exact value beyond the range of the dtype, or where eager fails, leaves only the floor.
    eager_error = relative_error(eager, exact) if eager.isfinite().all() else 0.0
    eps = max(torch.finfo(value.dtype).eps, torch.finfo(computed).eps)
    if computed == torch.float64:
        eager_error *= eps / torch.finfo(torch.float32).eps
        allowed = [(factor + 1) * eager_error, 8 * eps]
    else:
        allowed = [factor * eager_error, 4 * eps]
    bound = max(allowed)
    assert error <= bound, f"{name}: error {error:.2e} exceeds {bound:.2e}"


def differentiable_mask(op: str, args: Sequence[Any]) -> list[bool]:
    return [
        isinstance(args[i], Tensor) and args[i].dtype.is_floating_point for i in DIFFERENTIABLE[op]
    ]


def check(
    op: str, *args: Any, mask: Sequence[bool] | None = None, grad: Grads | None = None
) -> None:
    """Values and every gradient of a launcher pair against the reference, arguments untouched."""
    before = [a.clone() if isinstance(a, Tensor) else a for a in args]
    if mask is None:
        mask = differentiable_mask(op, args)
    outputs = forward(op, *args)
    if grad is None:
        generator = torch.Generator().manual_seed(1)
        grad = tuple(
            torch.randn(out.shape, generator=generator).to(out.dtype)
            for out in outputs[: OUTPUTS.get(op, 1)]
        )
    exact, exact_grads = reference(op, args, grad, mask, torch.float64)
    double = outputs[0].dtype == torch.float64
    eager, eager_grads = reference(op, args, grad, mask, torch.float32 if double else None)
    for i, (value, e, r) in enumerate(zip(outputs, exact, eager, strict=True)):
        assert value.dtype == (e if double else r).dtype, f"output {i} is {value.dtype}"
        assert_accurate(f"output {i}", value, e.detach(), r.detach(), outputs[0].dtype, 2)
    grads = backward(op, grad, outputs, args, mask)
    for i, value, e, r in zip(DIFFERENTIABLE[op], grads, exact_grads, eager_grads, strict=True):
        if e is None:
            assert value.numel() == 0, f"gradient {i} was not asked for"
            continue
        assert r is not None and value.dtype == args[i].dtype
        assert_accurate(f"gradient {i}", value, e, r, outputs[0].dtype, 3)
    for old, new in zip(before, args, strict=True):
        if isinstance(old, Tensor):
            torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)


def check_masks(op: str, *args: Any) -> None:
    """Each gradient asked for alone is the one that comes with all others."""
    mask = differentiable_mask(op, args)
    outputs = forward(op, *args)
    grad = tuple(torch.ones_like(out) for out in outputs[: OUTPUTS.get(op, 1)])
    together = backward(op, grad, outputs, args, mask)
    for i, wanted in enumerate(mask):
        if not wanted:
            continue
        alone = backward(op, grad, outputs, args, [j == i for j in range(len(mask))])
        assert [g.numel() == 0 for j, g in enumerate(alone) if j != i] == [True] * (len(mask) - 1)
        torch.testing.assert_close(alone[i], together[i], rtol=0, atol=0)
