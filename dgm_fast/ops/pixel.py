"""Registration of the pixel family: masked convolutions and the gated activation.

A causal 1-d convolution is the 2-d op on images of height 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from dgm_fast import reference
from dgm_fast.ops._registry import OpSpec, register, registered

# The integer codes of the op's ``mask_type`` and ``channel_order`` arguments.
MASK_TYPES = {"A": 0, "B": 1}
CHANNEL_ORDERS = {"interleaved": 0, "contiguous": 1}
_MASK_TYPE_NAMES = tuple(MASK_TYPES)
_CHANNEL_ORDER_NAMES = tuple(CHANNEL_ORDERS)


def _conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_type: int,
    data_channels: int,
    channel_order: int,
    dilation: int,
) -> Tensor:
    return reference.masked_conv2d(
        x,
        weight,
        bias,
        mask_type=_MASK_TYPE_NAMES[mask_type],
        data_channels=data_channels,
        channel_order=_CHANNEL_ORDER_NAMES[channel_order],
        dilation=dilation,
    )


def empty_image(x: Tensor, channels: int) -> Tensor:
    """An image of x's size and memory format, as the C++ function makes it."""
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(
        shape, dtype=x.dtype, device=x.device, memory_format=suggest_memory_format(x)
    )


def _conv_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_type: int,
    data_channels: int,
    channel_order: int,
    dilation: int,
) -> Tensor:
    return empty_image(x, weight.shape[0])


def conv_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, mask: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for a convolution's gradients, as the C++ functions make it."""
    return (
        empty_image(x, x.shape[1]) if mask[0] else x.new_empty(0),
        weight.new_empty(weight.shape if mask[1] else 0),
        grad.new_empty(0) if bias is None else bias.new_empty(bias.shape if mask[2] else 0),
    )


def _conv_backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_type: int,
    data_channels: int,
    channel_order: int,
    dilation: int,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return conv_gradients(grad, x, weight, bias, mask)


def _gated_reference(x: Tensor, bias: Tensor | None, condition: Tensor | None, dim: int) -> Tensor:
    return reference.gated_activation(x, bias, condition, dim=dim)


def _empty_like_rows(x: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """Room of ``shape`` with the channels (dimension ``dim``) innermost if they are so in x."""
    if x.is_contiguous() or not x.movedim(dim, -1).is_contiguous():
        return x.new_empty(shape)
    return x.new_empty([*shape[:dim], *shape[dim + 1 :], shape[dim]]).movedim(-1, dim)


def _gated_fake(x: Tensor, bias: Tensor | None, condition: Tensor | None, dim: int) -> Tensor:
    return _empty_like_rows(x, [*x.shape[:dim], x.shape[dim] // 2, *x.shape[dim + 1 :]], dim)


def _gated_backward_fake(
    grad: Tensor,
    x: Tensor,
    bias: Tensor | None,
    condition: Tensor | None,
    dim: int,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    grad_condition = x.new_empty(0)
    if condition is not None and mask[2]:
        # A full-size condition's gradient is that of x.
        if condition.shape == x.shape:
            grad_condition = _empty_like_rows(x, x.shape, dim)
        else:
            grad_condition = condition.new_empty(condition.shape)
    return (
        _empty_like_rows(x, x.shape, dim) if mask[0] else x.new_empty(0),
        x.new_empty(0) if bias is None else bias.new_empty(bias.shape if mask[1] else 0),
        grad_condition,
    )


def _conv_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x = torch.randn(2, 6, 5, 7, device=device, dtype=dtype)
    weight = torch.randn(9, 6, 3, 5, device=device, dtype=dtype)
    bias = torch.randn(9, device=device, dtype=dtype)
    return x, weight, bias, MASK_TYPES["A"], 3, CHANNEL_ORDERS["interleaved"], 1


def _gated_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x = torch.randn(3, 10, 5, 7, device=device, dtype=dtype)
    bias = torch.randn(10, device=device, dtype=dtype)
    return x, bias, torch.randn(3, 10, 1, 1, device=device, dtype=dtype), 1


register(
    OpSpec(
        "masked_conv2d",
        "pixel",
        _conv_reference,
        _conv_fake,
        _conv_example,
        backward_fake=_conv_backward_fake,
    )
)
register(
    OpSpec(
        "gated_activation",
        "pixel",
        _gated_reference,
        _gated_fake,
        _gated_example,
        backward_fake=_gated_backward_fake,
    )
)

masked_conv2d = registered("masked_conv2d")
gated_activation = registered("gated_activation")
