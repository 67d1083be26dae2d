"""Registration of the explicit critic step.

It takes and returns lists of tensors, which the table of ops has no place for: its schema and autograd are
in csrc/critic_step.cpp. It is differentiable once, and computes its gradients in forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgm_fast.ops import _backend, _extension
from dgm_fast.ops._registry import NAMESPACE, STANDALONE
from dgm_fast.ops.adversarial import term_code
from dgm_fast.reference import critic_step as formulas
from dgm_fast.reference.adversarial import Term

PENALTIES = {
    None: formulas.NONE,
    "gp": formulas.MIXED,
    "r1": formulas.AT_REAL,
    "r2": formulas.AT_FAKE,
    "alone": formulas.ALONE,
}


def _fake(
    real: Tensor,
    fake: Tensor,
    eps: Tensor | None,
    parameters: Sequence[Tensor],
    geometry: Sequence[int],
    slopes: Sequence[float],
    real_term: int,
    fake_term: int,
    penalty: int,
    weight: float,
    center: float,
    one_sided: bool,
    with_gradients: bool,
) -> tuple[Tensor, list[Tensor]]:
    gradients = [p.new_empty(p.shape) for p in parameters] if with_gradients else []
    return real.new_empty(()), gradients


class _ReferenceStep(torch.autograd.Function):
    """The plain step as a node of the graph: its gradients are known when the loss is."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx, loss: Tensor, count: int, *tensors: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*tensors[:count])
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # type: ignore[attr-defined]
        return None, None, *(None for _ in saved), *torch._foreach_mul(saved, grad)


def critic_step(
    real: Tensor,
    fake: Tensor,
    eps: Tensor | None,
    parameters: list[Tensor],
    geometry: list[int],
    slopes: list[float],
    real_term: Term,
    fake_term: Term,
    penalty: str | None,
    weight: float,
    center: float,
    one_sided: bool,
    *,
    kernel: bool,
) -> Tensor:
    """The loss with its penalty, connected to ``parameters``; by the C++ op, or by the plain formula."""
    with_gradients = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
    code = PENALTIES[penalty]
    options = (weight, center, one_sided, with_gradients)
    if kernel:
        terms = (term_code(real_term), term_code(fake_term))
        overload = torch.ops.dgm_fast.critic_step.default
        loss, _ = overload(real, fake, eps, parameters, geometry, slopes, *terms, code, *options)
        return loss
    loss, gradients = formulas.critic_step(
        real, fake, eps, parameters, geometry, slopes, real_term, fake_term, code, *options
    )
    if not with_gradients:
        return loss
    connected: Tensor = _ReferenceStep.apply(loss, len(gradients), *gradients, *parameters)
    return connected


if _extension.extension is not None:
    _library = torch.library.Library(NAMESPACE, "FRAGMENT")
    torch.library.register_fake(f"{NAMESPACE}::critic_step", _fake, lib=_library)

STANDALONE.add("critic_step")
_backend.LIBRARY_OPS["critic_step"] = (
    "critic_step is the library's matrix products and convolutions, with plain PyTorch between them"
)
