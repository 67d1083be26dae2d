"""Pixel models in plain PyTorch: the rivals of training steps and samples."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dgm_fast import reference
from dgm_fast.nn import MaskedConv2d, ShiftedConv2d


def mask(model: nn.Module) -> None:
    """Convolutions of a pixel model of one data channel: kernels times their masks."""
    for layer in model.modules():
        if isinstance(layer, ShiftedConv2d):
            layer.forward = MethodType(_whole_kernel, layer)  # type: ignore[method-assign]
        elif isinstance(layer, MaskedConv2d):
            live = reference.conv_mask(layer.weight, mask_type=layer.mask_type)
            layer.register_buffer("mask", live.to(layer.weight.dtype), persistent=False)
            layer.forward = MethodType(_masked_kernel, layer)  # type: ignore[method-assign]


def _masked_kernel(layer: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight * layer.mask, layer.bias, padding=layer.padding)


def _whole_kernel(layer: Any, x: Tensor) -> Tensor:
    """The square kernel that the rectangle of live taps is the upper part of, with zeros below."""
    rows, columns = layer.kernel_size
    weight = F.pad(layer.weight, (0, 0, 0, columns - rows))
    return F.conv2d(x, weight, layer.bias, padding=columns // 2)


def crop(model: nn.Module) -> None:
    """Convolutions of a Gated PixelCNN of one data channel, kernels cut down to their live taps."""
    for layer in model.modules():
        if isinstance(layer, MaskedConv2d):
            layer.forward = MethodType(_cropped_kernel, layer)  # type: ignore[method-assign]


def _cropped_kernel(layer: Any, x: Tensor) -> Tensor:
    """Of one row and one data channel: the taps up to the centre."""
    left = layer.kernel_size[1] // 2
    live = left if layer.mask_type == "A" else left + 1
    weight = layer.weight[..., :live]
    return F.conv2d(F.pad(x, (left, live - 1 - left)), weight, layer.bias)
