"""LSTMs along the rows and the diagonals of an image, the layers of PixelRNN."""

from __future__ import annotations

from torch import Tensor

from dgm_fast import ops, reference
from dgm_fast.functional._checks import cast_as_linear, check_floating, check_tensor


def row_lstm(gates: Tensor, weight: Tensor) -> Tensor:
    r"""LSTM that goes down the rows of an image, all pixels of a row at once.

    .. math:: (i, f, g, o)_{y} = x_y + K * h_{y - 1}, \qquad
        c_y = \sigma(f) c_{y - 1} + \sigma(i) \tanh(g), \quad h_y = \sigma(o) \tanh(c_y)

    for row y, with * a convolution of k taps along the row (zeros beyond its ends) and h, c zero above the
    first row. The input-to-state part x, with its mask and bias, is computed outside for the whole image.
    A pixel's state sees a triangle of the rows above it.

    Args:
        gates: x, floating point, [B, 4h, H, W]: the input-to-state parts of i, f, g and o, h each.
        weight: K, [4h, h, k], k odd.

    Returns:
        The states [B, h, H, W] in the common dtype, channels innermost in memory (a fast order for
        convolutions). Under autocast arguments are cast as F.linear casts them; sums are float32 (float64
        for float64). Differentiable in both arguments.

    Raises:
        TypeError: if an argument is not a floating-point tensor.
        ValueError: if shapes or devices do not match.

    Source: van den Oord et al., "Pixel Recurrent Neural Networks" (2016), section 3.1.
    """
    _check(gates, weight)
    if weight.shape[2] % 2 == 0:
        raise ValueError(f"weight must have an odd number of taps, got shape {tuple(weight.shape)}")
    gates, weight, _ = cast_as_linear(gates, weight, None)
    if ops.use_kernel(gates, "pixel_lstm"):
        return ops.row_lstm(gates, weight)[0]
    return reference.row_lstm(gates, weight)


def diagonal_lstm(gates: Tensor, weight: Tensor) -> Tensor:
    r"""LSTM that goes along the diagonals of an image, from its upper left corner.

    .. math:: (i, f, g, o)_{y, x} = a_{y, x} + K_0 h_{y - 1, x} + K_1 h_{y, x - 1}, \qquad
        c_{y, x} = \sigma(f) c_{y, x - 1} + \sigma(i) \tanh(g), \quad h_{y, x} = \sigma(o) \tanh(c_{y, x})

    with states outside of the image zero: on the map skewed by a pixel a row, a column-wise convolution of
    two taps from one column to the next. A pixel's state sees everything above it and to the left.

    Args:
        gates: a, floating point, [B, 4h, H, W]: the input-to-state parts of i, f, g and o, h each.
        weight: K, [4h, h, 2]: of the states above and to the left.

    Returns:
        The states [B, h, H, W], as those of :func:`row_lstm`.

    Raises:
        TypeError: if an argument is not a floating-point tensor.
        ValueError: if shapes or devices do not match.

    Source: van den Oord et al. (2016), section 3.2.
    """
    _check(gates, weight)
    if weight.shape[2] != 2:
        raise ValueError(f"weight must have two taps, got shape {tuple(weight.shape)}")
    gates, weight, _ = cast_as_linear(gates, weight, None)
    if ops.use_kernel(gates, "pixel_lstm"):
        return ops.diagonal_lstm(gates, weight)[0]
    return reference.diagonal_lstm(gates, weight)


def _check(gates: Tensor, weight: Tensor) -> None:
    check_tensor("gates", gates)
    check_tensor("weight", weight)
    check_floating(gates=gates, weight=weight)
    if weight.ndim != 3 or weight.shape[1] == 0 or weight.shape[0] != 4 * weight.shape[1]:
        raise ValueError(
            f"weight must have shape [4h, h, taps] with h at least 1, got {tuple(weight.shape)}"
        )
    if gates.ndim != 4 or gates.shape[1] != weight.shape[0] or 0 in gates.shape[2:]:
        raise ValueError(
            f"gates must have shape [B, {weight.shape[0]}, H, W] for weight {tuple(weight.shape)} and H, W "
            f"at least 1, got {tuple(gates.shape)}"
        )
