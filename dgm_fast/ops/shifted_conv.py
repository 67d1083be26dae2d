"""Registration of convolutions over a shifted rectangle of taps.

CUDA tensors take the library's convolution: every tap is live, so that there is nothing to save.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dgm_fast import reference
from dgm_fast.ops._registry import OpSpec, register, registered
from dgm_fast.ops.pixel import conv_gradients, empty_image


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, first_row: int, first_column: int
) -> Tensor:
    return empty_image(x, weight.shape[0])


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    first_row: int,
    first_column: int,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return conv_gradients(grad, x, weight, bias, mask)


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, first_row: int, first_column: int
) -> Tensor:
    return reference.shifted_conv2d(x, weight, bias, first=(first_row, first_column))


def _example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x = torch.randn(2, 17, 5, 7, device=device, dtype=dtype)
    weight = torch.randn(18, 17, 2, 3, device=device, dtype=dtype)
    return x, weight, torch.randn(18, device=device, dtype=dtype), -1, -1


register(
    OpSpec(
        "shifted_conv2d",
        "shifted_conv",
        _reference,
        _fake,
        _example,
        backward_fake=_backward_fake,
    )
)

shifted_conv2d = registered("shifted_conv2d")
