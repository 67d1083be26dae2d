"""Convolutions over a rectangle of taps anywhere around the output pixel."""

from __future__ import annotations

import functools

from torch import Tensor

from dgm_fast import ops, reference
from dgm_fast.functional._checks import cast_as_linear, check_floating, check_tensor


def shifted_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, first: tuple[int, int]
) -> Tensor:
    r"""Convolution over the rectangle of taps that starts at an offset from the output pixel.

    .. math:: y_{o, i, j} = b_o + \sum_{c, u, v} w_{o, c, u, v}\, x_{c,\; i + r_0 + u,\; j + c_0 + v},
        \qquad 0 \le u < k_H,\ 0 \le v < k_W

    with stride 1 and zeros outside of the image, so that y has x's size. Every tap is live. With rows
    r0 + u <= 0 it sees the rows above an output pixel and its own: the vertical stack of a Gated PixelCNN.
    The result has x's memory format (contiguous or channels-last).

    Args:
        x: floating point, [B, C_in, H, W].
        weight: [C_out, C_in, kH, kW].
        bias: [C_out] or None.
        first: (r0, c0), row and column of the first tap from the output pixel.

    Returns:
        [B, C_out, H, W] in the common dtype of the arguments; under autocast they are cast as F.conv2d
        casts them. Differentiable in ``x``, ``weight`` and ``bias``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes or devices do not match.

    Source: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders" (2016), section 2.2.
    """
    check_tensor("x", x)
    check_tensor("weight", weight)
    check_floating(x=x, weight=weight, bias=bias)
    if weight.ndim != 4 or 0 in weight.shape[2:]:
        raise ValueError(
            "weight must have shape [out channels, in channels, kernel height, kernel width], "
            f"got {tuple(weight.shape)}"
        )
    if x.ndim != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x must have shape [B, {weight.shape[1]}, H, W] for this weight, got {tuple(x.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if len(first) != 2 or any(isinstance(n, bool) or not isinstance(n, int) for n in first):
        raise TypeError(f"first must be two ints, got {first!r}")
    x, weight, bias = cast_as_linear(x, weight, bias)
    if ops.use_kernel(x, "shifted_conv"):
        chosen = ops.strategy(
            "shifted_conv2d",
            {
                "kernel": lambda x, weight, bias: ops.shifted_conv2d(x, weight, bias, *first),
                "library": functools.partial(reference.shifted_conv2d, first=first),
            },
            "kernel",
            (x, weight, bias),
            first,
        )
        return chosen(x, weight, bias)
    return reference.shifted_conv2d(x, weight, bias, first=first)
