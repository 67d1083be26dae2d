"""Registration of the linear heads: a last linear layer and the likelihood of its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgm_fast import reference
from dgm_fast.ops._registry import OpSpec, register, registered
from dgm_fast.reference._common import compute_dtype

# The integer codes of the op's ``packing`` argument.
PACKINGS = {"variable": 0, "class": 1, "pixel": 2}
_PACKING_NAMES = tuple(PACKINGS)


def _bernoulli_reference(h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return reference.linear_bernoulli_log_prob(h, weight, bias, x)


def _bernoulli_fake(h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(h.shape[:-1], x.shape[:-1])
    return h.new_empty(shape, dtype=compute_dtype(h, weight, bias))


def _bernoulli_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    h = torch.randn(6, 5, 9, device=device, dtype=dtype)
    weight = torch.randn(37, 9, device=device, dtype=dtype)
    x = (torch.rand(6, 1, 37, device=device) < 0.5).to(dtype)
    return h, weight, torch.randn(37, device=device, dtype=dtype), x


def _categorical_reference(
    h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, num_classes: int, packing: int
) -> Tensor:
    return reference.linear_categorical_log_prob(
        h, weight, bias, x, num_classes=num_classes, packing=_PACKING_NAMES[packing]
    )


def _categorical_fake(
    h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, num_classes: int, packing: int
) -> Tensor:
    shape = h.shape[:1] if packing == PACKINGS["pixel"] else h.shape[:-1]
    return h.new_empty(shape, dtype=compute_dtype(h, weight, bias))


def _categorical_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    h = torch.randn(6, 9, 37, device=device, dtype=dtype)
    weight = torch.randn(17, 9, device=device, dtype=dtype)
    x = torch.randint(0, 17, (6, 37), device=device)
    return h, weight, torch.randn(17, device=device, dtype=dtype), x, 17, PACKINGS["pixel"]


register(
    OpSpec(
        "linear_bernoulli_log_prob",
        "linear_head",
        _bernoulli_reference,
        _bernoulli_fake,
        _bernoulli_example,
    )
)
register(
    OpSpec(
        "linear_categorical_log_prob",
        "linear_head",
        _categorical_reference,
        _categorical_fake,
        _categorical_example,
    )
)

linear_bernoulli_log_prob = registered("linear_bernoulli_log_prob")
linear_categorical_log_prob = registered("linear_categorical_log_prob")
