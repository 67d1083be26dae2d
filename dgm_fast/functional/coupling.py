"""Affine maps with their log-determinants: couplings, actnorm, invertible linear layers."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast import ops, reference
from dgm_fast.functional._checks import (
    check_event_ndim,
    check_floating,
    check_same_device,
    promoted,
)
from dgm_fast.reference._common import compute_dtype


def affine_coupling(
    x: Tensor,
    log_scale: Tensor | None,
    shift: Tensor,
    *,
    mask: Tensor | None = None,
    inverse: bool = False,
    event_ndim: int = 1,
    scale: str = "exp",
    clamp: float = 2.0,
) -> tuple[Tensor, Tensor]:
    r"""The affine map of a coupling or autoregressive layer, with its log-determinant in the same pass.

    .. math:: y = x\, e^{l} + \text{shift}, \qquad \log\left|\det \frac{dy}{dx}\right| = \sum l

    and with ``inverse`` :math:`y = (x - \text{shift})\, e^{-l}`, :math:`-\sum l`. The log-scale l comes
    from u = ``log_scale`` by ``scale``:

    ============  ==========================================  ===================================
    "exp"         :math:`l = u`                               RealNVP; negate u for MAF's (x - m) exp(-a)
    "sigmoid2"    :math:`e^l = \sigma(u + 2) + 10^{-3}`       nflows' couplings
    "softplus"    :math:`e^l = \mathrm{softplus}(u) + 10^{-3}`  nflows' masked autoregressive layers
    "tanh"        :math:`l = c \tanh(u / c)`                  c = ``clamp``
    "atan"        :math:`l = \tfrac{2}{\pi} c \arctan(u)`     FrEIA
    "softsign"    :math:`l = u / (1 + |u| / c)`               zuko, with c = -log of the least slope
    ============  ==========================================  ===================================

    Arguments are read where they lie: halves and every second channel of a network's output, as
    ``h.chunk(2, 1)`` and ``h[:, 0::2]`` give them, are not copied (only runs of fewer than 16 entries are).

    Args:
        x: floating point: the part that is transformed.
        log_scale: u, broadcastable to x; None for an additive coupling (l = 0).
        shift: broadcastable to x.
        mask: bool, broadcastable to x: where false, y is x and l is 0 (checkerboards and other patterns).
        inverse: the inverse map, and its own log-determinant.
        event_ndim: trailing dimensions of a sample, over which l is summed.
        scale: as above.
        clamp: bound of the log-scale, for "tanh", "atan" and "softsign".

    Returns:
        y like x, and the log-determinant of each sample, float32 (float64 for float64 arguments).
        Differentiable in x, log_scale and shift.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes, devices or options do not match.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), equations 7-8.
    """
    check_floating(x=x, log_scale=log_scale, shift=shift)
    check_event_ndim(event_ndim, x.ndim, "x")
    for name, value in (("log_scale", log_scale), ("shift", shift), ("mask", mask)):
        if value is not None and value.shape != x.shape:
            _check_broadcast_to(name, value, x)
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, got {mask.dtype}")
        check_same_device("mask", mask, "x", x)
    if scale not in ops.SCALES:
        raise ValueError(f"scale must be one of {tuple(ops.SCALES)}, got {scale!r}")
    if not clamp > 0:
        raise ValueError(f"clamp must be positive, got {clamp}")
    if log_scale is None:
        return _additive(x, shift, mask, inverse, event_ndim)
    x, log_scale, shift = promoted(x, log_scale, shift)
    if ops.use_kernel(x, "coupling"):
        y, log_det = ops.affine_coupling(
            x, log_scale, shift, mask, inverse, event_ndim, ops.SCALES[scale], float(clamp)
        )
        return y, log_det
    return reference.affine_coupling(
        x,
        log_scale,
        shift,
        mask=mask,
        inverse=inverse,
        event_ndim=event_ndim,
        scale=scale,
        clamp=clamp,
    )


def _additive(
    x: Tensor, shift: Tensor, mask: Tensor | None, inverse: bool, event_ndim: int
) -> tuple[Tensor, Tensor]:
    # One addition: nothing to fuse.
    y = x - shift if inverse else x + shift
    if mask is not None:
        y = torch.where(mask, y, x)
    return y, x.new_zeros(x.shape[: x.ndim - event_ndim], dtype=compute_dtype(x))


def _check_broadcast_to(name: str, value: Tensor, x: Tensor) -> None:
    try:
        fits = torch.broadcast_shapes(value.shape, x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to x's {tuple(x.shape)}"
        )


def actnorm(
    x: Tensor, log_scale: Tensor, bias: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    r"""One factor and shift a channel, :math:`y_c = x_c\, e^{l_c} + b_c`, with its log-determinant.

    Args:
        x: floating point, [B, C, ...], channels second.
        log_scale: l, [C].
        bias: b, [C].
        inverse: :math:`(x_c - b_c)\, e^{-l_c}`, and its own log-determinant.

    Returns:
        y like x, and the log-determinant of each sample, [B]: the sum of l times the number of positions,
        float32 (float64 for float64 arguments). Differentiable in all arguments.

    Raises:
        TypeError: if an argument is not a floating-point tensor.
        ValueError: if shapes or devices do not match.

    Source: Kingma and Dhariwal, "Glow" (2018), section 3.1.
    """
    check_floating(x=x, log_scale=log_scale, bias=bias)
    if x.ndim < 2:
        raise ValueError(f"x must have shape [B, C, ...], got {tuple(x.shape)}")
    channels = x.shape[1]
    for name, value in (("log_scale", log_scale), ("bias", bias)):
        if value.shape != (channels,):
            raise ValueError(
                f"{name} must have shape ({channels},) for x of shape {tuple(x.shape)}, "
                f"got {tuple(value.shape)}"
            )
    positions = x.shape[2:].numel()
    sign = -positions if inverse else positions
    log_det = sign * log_scale.to(compute_dtype(x, log_scale)).sum()
    x, log_scale, bias = promoted(x, log_scale, bias)
    if ops.use_kernel(x, "coupling"):
        y = ops.actnorm(x, log_scale, bias, inverse)
    else:
        y = reference.actnorm(x, log_scale, bias, inverse=inverse)
    return y, log_det.expand(x.shape[0])


def invertible_linear(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_diag: Tensor,
    permutation: Tensor,
    *,
    sign: Tensor | None = None,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""An invertible linear layer, or 1x1 convolution, in LU form with its log-determinant.

    .. math:: y = W x, \qquad W = P\, L\, (U + \mathrm{diag}(s\, e^{d})), \qquad
        \log|\det W| = \sum d

    The forward map is one matrix product with the assembled W. The inverse solves the two triangular
    systems and never forms :math:`W^{-1}`.

    Args:
        x: floating point, [B, C] or [B, C, ...], channels second.
        lower: [C, C], of which the part below the diagonal is used: L has ones on it.
        upper: [C, C], of which the part above the diagonal is used.
        log_diag: d, [C].
        permutation: int64 [C]; row i of P x is row ``permutation[i]`` of x.
        sign: s, [C] of ones and minus ones; None for ones.
        inverse: :math:`x = W^{-1} y`, and its own log-determinant.

    Returns:
        y like x, and the log-determinant of each sample, [B]: the sum of d times the number of positions,
        float32 (float64 for float64 arguments). Differentiable in x, lower, upper and log_diag.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes or devices do not match.

    Source: Kingma and Dhariwal, "Glow" (2018), section 3.2, equation 10.
    """
    check_floating(x=x, lower=lower, upper=upper, log_diag=log_diag, sign=sign)
    if x.ndim < 2:
        raise ValueError(f"x must have shape [B, C] or [B, C, ...], got {tuple(x.shape)}")
    channels = x.shape[1]
    for name, value, shape in (
        ("lower", lower, (channels, channels)),
        ("upper", upper, (channels, channels)),
        ("log_diag", log_diag, (channels,)),
        ("permutation", permutation, (channels,)),
        ("sign", sign, (channels,)),
    ):
        if value is not None and value.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} for x of shape {tuple(x.shape)}, "
                f"got {tuple(value.shape)}"
            )
    if permutation.dtype != torch.int64:
        raise TypeError(f"permutation must be int64, got {permutation.dtype}")
    check_same_device("permutation", permutation, "x", x)
    triangles = lu_triangles(
        lower, upper, log_diag, sign, dtype=compute_dtype(x, lower, upper, log_diag)
    )
    if inverse:
        return solve_lu(x, triangles, permutation.argsort())
    return multiply(x, lu_product(triangles, permutation), triangles.log_det)


class Triangles(NamedTuple):
    """Factors of an invertible linear map: L [C, C] with ones on its diagonal, U [C, C], log|det U|."""

    unit_lower: Tensor
    upper: Tensor
    log_det: Tensor


def lu_triangles(
    lower: Tensor, upper: Tensor, log_diag: Tensor, sign: Tensor | None, *, dtype: torch.dtype
) -> Triangles:
    """The factors of :func:`invertible_linear` from its arguments."""
    lower, upper, log_diag = lower.to(dtype), upper.to(dtype), log_diag.to(dtype)
    diagonal = log_diag.exp() if sign is None else sign.to(dtype) * log_diag.exp()
    eye = torch.eye(len(log_diag), dtype=dtype, device=lower.device)
    return Triangles(lower.tril(-1) + eye, upper.triu(1) + torch.diag(diagonal), log_diag.sum())


def lu_product(triangles: Triangles, permutation: Tensor) -> Tensor:
    """P L U, [C, C]."""
    # Autocast would round it, and x below: the inverse would be that of another map.
    with torch.autocast(permutation.device.type, enabled=False):
        return (triangles.unit_lower @ triangles.upper).index_select(0, permutation)


def multiply(
    x: Tensor, weight: Tensor, log_det: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """W x + b along dimension 1 of x [B, C, ...], and log|det W| times the number of positions, [B]."""
    columns = x.to(weight.dtype)
    bias = None if bias is None else bias.to(weight.dtype)
    with torch.autocast(x.device.type, enabled=False):
        if x.ndim == 2:
            y = F.linear(columns, weight, bias)
        else:
            y = torch.matmul(weight, columns.flatten(2))
            y = (y if bias is None else y + bias.unsqueeze(1)).reshape(x.shape)
    return y.to(x.dtype), (x.shape[2:].numel() * log_det).expand(x.shape[0])


def solve_lu(x: Tensor, triangles: Triangles, inverse_permutation: Tensor) -> tuple[Tensor, Tensor]:
    """y with P L U y = x along dimension 1 of x [B, C, ...], and the map's log-determinant, [B]."""
    columns = x.to(triangles.upper.dtype).index_select(1, inverse_permutation)
    # One wide system in place of many narrow ones.
    rows = columns.ndim == 2
    wide = columns.t() if rows else columns.flatten(2).transpose(0, 1).flatten(1)  # [C, B...]
    half = torch.linalg.solve_triangular(
        triangles.unit_lower, wide, upper=False, unitriangular=True
    )
    y = torch.linalg.solve_triangular(triangles.upper, half, upper=True)
    y = y.t() if rows else y.unflatten(1, (len(x), -1)).transpose(0, 1).reshape(x.shape)
    return y.to(x.dtype), (-x.shape[2:].numel() * triangles.log_det).expand(x.shape[0])
