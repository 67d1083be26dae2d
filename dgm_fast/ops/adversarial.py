"""Registration of the adversarial family: losses, penalties of gradients, activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgm_fast import reference
from dgm_fast.kernels._dense import channels_dense, entries_dense, samples_dense
from dgm_fast.ops._registry import OpSpec, register, registered
from dgm_fast.reference import adversarial as formulas
from dgm_fast.reference._common import compute_dtype

_CODES = {name: i + 1 for i, name in enumerate(formulas.TERMS)}


def term_code(term: formulas.Term) -> int:
    """The integer argument of the op for a term: 1 + its index in ``TERMS``, times its sign."""
    sign, name = term
    return sign * _CODES[name]


def _term(code: int) -> formulas.Term:
    return (1 if code > 0 else -1), formulas.TERMS[abs(code) - 1]


def _empty(like: Tensor) -> Tensor:
    return like.new_empty(0)


def _loss_reference(
    fake: Tensor, real: Tensor | None, fake_term: int, real_term: int, alpha: float, pi: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and its gradients in the two outputs."""
    both = [None if t is None else t.detach().requires_grad_() for t in (fake, real)]
    options: tuple[Any, ...] = (
        _term(fake_term),
        None if real is None else _term(real_term),
        alpha,
        pi,
    )
    with torch.enable_grad():
        copied = reference.adversarial_loss(both[0], both[1], *options)  # type: ignore[arg-type]
        wanted = [t for t in both if t is not None]
        grads = [g.to(compute_dtype(g)) for g in torch.autograd.grad(copied, wanted)]
    loss = reference.adversarial_loss(fake, real, *options)
    return loss, grads[0], grads[1] if len(grads) > 1 else _empty(grads[0])


def _loss_fake(
    fake: Tensor, real: Tensor | None, fake_term: int, real_term: int, alpha: float, pi: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad_fake = fake.new_empty(fake.shape, dtype=compute_dtype(fake))
    grad_real = (
        _empty(grad_fake) if real is None else real.new_empty(real.shape, dtype=compute_dtype(real))
    )
    return fake.new_empty((), dtype=compute_dtype(fake, real)), grad_fake, grad_real


def _loss_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    fake, real = torch.randn(2, 37, device=device, dtype=dtype)
    real_term, fake_term = formulas.f_divergence_terms("weighted_jensen_shannon")
    return fake, real, term_code(fake_term), term_code(real_term), 2.0, 0.3


def _norm_penalty_fake(
    gradient: Tensor, weight: float, center: float, one_sided: bool
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(gradient)
    return gradient.new_empty((), dtype=dtype), gradient.new_empty(gradient.shape[:1], dtype=dtype)


def _norm_penalty_backward_fake(
    grad: Tensor,
    penalty: Tensor,
    norms: Tensor,
    gradient: Tensor,
    weight: float,
    center: float,
    one_sided: bool,
    mask: list[bool],
) -> Tensor:
    if not mask[0]:
        return _empty(gradient)
    dense = samples_dense(gradient)
    return torch.empty_like(gradient) if dense else gradient.new_empty(gradient.shape)


def _norm_penalty_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    return torch.randn(6, 37, device=device, dtype=dtype), 10.0, 1.0, False


def _interpolate_fake(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    return real.new_empty(real.shape, dtype=torch.promote_types(real.dtype, fake.dtype))


def _interpolate_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    real, fake = torch.randn(2, 6, 37, device=device, dtype=dtype)
    return real, fake, torch.rand(6, device=device).to(compute_dtype(real))


def _leaky_relu_fake(x: Tensor, slope: float) -> Tensor:
    return torch.empty_like(x) if entries_dense(x) else x.new_empty(x.shape)


def _leaky_relu_backward_fake(
    grad: Tensor, out: Tensor, x: Tensor, slope: float, mask: list[bool]
) -> Tensor:
    return torch.empty_like(out) if mask[0] else _empty(out)


def _leaky_relu_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    return torch.randn(6, 37, device=device, dtype=dtype), 0.2


def _bias_leaky_relu_fake(x: Tensor, bias: Tensor, slope: float) -> Tensor:
    return torch.empty_like(x) if channels_dense(x) else x.new_empty(x.shape)


def _bias_leaky_relu_backward_fake(
    grad: Tensor, out: Tensor, x: Tensor, bias: Tensor, slope: float, mask: list[bool]
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(out) if mask[0] else _empty(out),
        torch.empty_like(bias) if mask[1] else _empty(bias),
    )


def _bias_leaky_relu_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x = torch.randn(6, 5, 7, 3, device=device, dtype=dtype)
    return x, torch.randn(5, device=device, dtype=dtype), 0.2


register(OpSpec("adversarial_loss", "adversarial", _loss_reference, _loss_fake, _loss_example))
register(
    OpSpec(
        "norm_penalty",
        "adversarial",
        reference.norm_penalty,
        _norm_penalty_fake,
        _norm_penalty_example,
        _norm_penalty_backward_fake,
    )
)
register(
    OpSpec(
        "interpolate",
        "adversarial",
        reference.interpolate,
        _interpolate_fake,
        _interpolate_example,
    )
)
register(
    OpSpec(
        "leaky_relu",
        "adversarial",
        reference.leaky_relu,
        _leaky_relu_fake,
        _leaky_relu_example,
        _leaky_relu_backward_fake,
    )
)
register(
    OpSpec(
        "bias_leaky_relu",
        "adversarial",
        reference.bias_leaky_relu,
        _bias_leaky_relu_fake,
        _bias_leaky_relu_example,
        _bias_leaky_relu_backward_fake,
    )
)

adversarial_loss = registered("adversarial_loss")
norm_penalty = registered("norm_penalty")
interpolate = registered("interpolate")
leaky_relu = registered("leaky_relu")
bias_leaky_relu = registered("bias_leaky_relu")
