"""Registration of linear and convolutional layers whose derivatives of any order form only what is wanted.

Their schemas and autograd are in csrc/bilinear_layer.cpp: three ops, each the derivative of the others.
They stand beside the table of ops, whose second derivatives come from a plain formula.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast.ops import _backend, _extension
from dgm_fast.ops._registry import NAMESPACE, STANDALONE

# Stride, padding and dilation, two each, and groups; empty for a linear layer.
Geometry = list[int]


def layer(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """x [B, D] or [B, C, H, W] through a linear layer or, with a geometry, a convolution."""
    result: Tensor = torch.ops.dgm_fast.layer.default(x, weight, bias, geometry)
    return result


def _layer_fake(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    if not geometry:
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, geometry[:2], geometry[2:4], geometry[4:6], geometry[6])


def _input_gradient_fake(signal: Tensor, weight: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    return torch.empty_like(x)


def _weight_gradient_fake(signal: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    return torch.empty_like(weight)


if _extension.extension is not None:
    _library = torch.library.Library(NAMESPACE, "FRAGMENT")
    for _name, _fake in (
        ("layer", _layer_fake),
        ("layer_input_gradient", _input_gradient_fake),
        ("layer_weight_gradient", _weight_gradient_fake),
    ):
        torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake, lib=_library)

_BESIDE = ("layer", "layer_input_gradient", "layer_weight_gradient")
STANDALONE.update(_BESIDE)
_backend.LIBRARY_OPS["layer"] = "layers of critics are the library's outside the CPU"
