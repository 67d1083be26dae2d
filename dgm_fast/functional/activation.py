"""Piecewise-linear activations without a second derivative."""

from __future__ import annotations

from torch import Tensor

from dgm_fast import ops, reference
from dgm_fast.functional._checks import check_floating, promoted


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    r"""x where it is positive, else negative_slope x, with no second derivative in x.

    The numbers of ``torch.nn.functional.leaky_relu``. Its backward takes the mask from the sign of the
    result, so that neither x nor a mask is kept, and says that it does not depend on x: in a gradient
    penalty, plain PyTorch pushes that zero through the whole network (14-19% of the FLOPs). It is
    differentiable in the incoming gradient, to any order. Under ``torch.func`` transforms it is the plain
    function.
    Args:
        x: floating point, any shape and memory format.
        negative_slope: between 0 and 1.

    Returns:
        A tensor like ``x``.

    Raises:
        TypeError: if ``x`` is not a floating-point tensor.
        ValueError: if the slope is outside [0, 1]: the sign of the result would not be that of x.
    """
    check_floating(x=x)
    if not 0.0 <= negative_slope <= 1.0:
        raise ValueError(f"negative_slope must be between 0 and 1, got {negative_slope!r}")
    if ops.use_kernel(x, "adversarial"):
        return ops.leaky_relu(x, negative_slope)
    return reference.leaky_relu(x, negative_slope)


def relu(x: Tensor) -> Tensor:
    """max(x, 0), with no second derivative: :func:`leaky_relu` of slope 0."""
    return leaky_relu(x, 0.0)


def bias_leaky_relu(x: Tensor, bias: Tensor, negative_slope: float = 0.01) -> Tensor:
    r"""Leaky ReLU of x + bias in one pass, and both gradients in another.

    Args:
        x: [B, C, ...], floating point, contiguous or with channels last.
        bias: [C], one number per channel (dimension 1).
        negative_slope: between 0 and 1.

    Returns:
        A tensor in the shape of ``x``, in the common dtype. Derivatives as of :func:`leaky_relu`.

    Raises:
        TypeError: if an argument is not a floating-point tensor.
        ValueError: if shapes or devices do not match or the slope is outside [0, 1].
    """
    check_floating(x=x, bias=bias)
    if x.ndim < 2 or bias.shape != x.shape[1:2]:
        raise ValueError(
            f"bias must have one entry per channel of x, [C] for [B, C, ...]; got {tuple(bias.shape)} for "
            f"{tuple(x.shape)}"
        )
    if not 0.0 <= negative_slope <= 1.0:
        raise ValueError(f"negative_slope must be between 0 and 1, got {negative_slope!r}")
    x, bias = promoted(x, bias)
    if ops.use_kernel(x, "adversarial"):
        return ops.bias_leaky_relu(x, bias, negative_slope)
    return reference.bias_leaky_relu(x, bias, negative_slope)
