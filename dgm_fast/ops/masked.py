"""Registration of the masked family: linear layers under a mask, and the FVSBN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgm_fast import reference
from dgm_fast.ops._registry import OpSpec, register, registered
from dgm_fast.reference import masked as formulas
from dgm_fast.reference._common import compute_dtype


def _linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor | None,
    out_degrees: Tensor | None,
    kept: Tensor | None,
    strict: bool,
) -> Tensor:
    return reference.masked_linear(
        x, weight, bias, in_degrees, out_degrees, strict=strict, mask=kept
    )


def _linear_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor | None,
    out_degrees: Tensor | None,
    kept: Tensor | None,
    strict: bool,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _linear_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x = torch.randn(6, 5, 37, device=device, dtype=dtype)
    weight = torch.randn(19, 37, device=device, dtype=dtype)
    in_degrees = torch.arange(37, device=device)
    out_degrees = torch.randint(0, 37, (19,), device=device)
    bias = torch.randn(19, device=device, dtype=dtype)
    return x, weight, bias, in_degrees, out_degrees, None, False


def _fvsbn_reference(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    logits = formulas.fvsbn_logits(x, weight, bias)
    return reference.bernoulli_log_prob(logits, x), logits.detach()


def _fvsbn_fake(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(weight)
    return weight.new_empty(x.shape[:1], dtype=dtype), weight.new_empty(x.shape, dtype=dtype)


def _fvsbn_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x = (torch.rand(6, 37, device=device) < 0.5).to(dtype)
    weight = torch.randn(37, 37, device=device, dtype=dtype)
    return x, weight, torch.randn(37, device=device, dtype=dtype)


register(OpSpec("masked_linear", "masked", _linear_reference, _linear_fake, _linear_example))
register(OpSpec("fvsbn_log_prob", "masked", _fvsbn_reference, _fvsbn_fake, _fvsbn_example))

masked_linear = registered("masked_linear")
fvsbn_log_prob = registered("fvsbn_log_prob")
