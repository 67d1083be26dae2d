"""Linear and convolutional layers whose second derivatives form only what is wanted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nn_functional
from torch import Tensor, nn

from dgm_fast import ops

IntPair = int | Sequence[int]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``: its numbers, arguments and errors.

    On the CPU its gradients are ops that are bilinear in turn, and a large weight's gradient has memory
    that is used again. That changes no result: under ``torch.compile``, autocast and ``torch.func``
    transforms, on other devices and for inputs that are not [B, D] it is the plain function.
    """
    if x.ndim == 2 and _kernel(x, weight, bias, 2):
        return ops.layer(x, weight, bias, [])
    return nn_functional.linear(x, weight, bias)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: str | IntPair = 0,
    dilation: IntPair = 1,
    groups: int = 1,
) -> Tensor:
    """``torch.nn.functional.conv2d``: its numbers, arguments and errors.

    PyTorch's second derivative of a convolution forms the gradients of all its arguments, wanted or not,
    and the weight's as a convolution over the batch. Here, on the CPU, a derivative of any order is one
    of three ops, each the derivative of the other two, and only those that are wanted. Where it is the
    plain function: see :func:`linear`.
    """
    pairs = None if isinstance(padding, str) else [_pair(p) for p in (stride, padding, dilation)]
    if pairs is not None and all(pairs) and x.ndim == 4 and _kernel(x, weight, bias, 4):
        return ops.layer(x, weight, bias, [number for pair in pairs for number in pair] + [groups])
    return nn_functional.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _kernel(x: Tensor, weight: Tensor, bias: Tensor | None, ndim: int) -> bool:
    tensors = [t for t in (x, weight, bias) if t is not None]
    return (
        weight.ndim == ndim
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and all(type(t) in (Tensor, nn.Parameter) for t in tensors)
        and all(t.is_cpu and t.dtype == x.dtype for t in tensors)
        and x.dtype.is_floating_point
        and ops.use_kernel(x, "layer")
    )


def _pair(value: IntPair) -> list[int]:
    """Two integers; empty for what the plain function has to judge."""
    if isinstance(value, int):
        return [value, value]
    numbers = list(value)
    return numbers if len(numbers) == 2 and all(isinstance(n, int) for n in numbers) else []
