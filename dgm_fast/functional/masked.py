"""Linear layers under a mask, and the fully visible sigmoid belief network."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_fast import ops, reference
from dgm_fast.functional._checks import (
    cast_as_linear,
    check_data,
    check_floating,
    check_same_device,
    check_tensor,
    promoted,
    unit_interval,
)
from dgm_fast.functional._values import check_before_kernel, reference_with_checks
from dgm_fast.functional.likelihood import UNIT_INTERVAL


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    in_degrees: Tensor | None = None,
    out_degrees: Tensor | None = None,
    *,
    strict: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Linear layer whose weight is masked, as ``F.linear(x, mask * weight, bias)``.

    .. math:: y_o = b_o + \sum_{i:\ M_{o,i}} W_{o,i}\, x_i, \qquad
        M_{o,i} = [d_i \le m_o] \quad (\text{or } d_i < m_o \text{ with } \texttt{strict})

    with d the degrees of the inputs and m those of the outputs, or with any mask M. A masked weight has no
    influence, whatever it holds (infinities and NaN too), and its gradient is exactly zero. With degrees in
    ascending order the mask is a staircase. Under autocast ``x``, ``weight`` and ``bias`` are cast as
    F.linear casts them.

    Args:
        x: floating point, [..., in].
        weight: [out, in].
        bias: [out] or None.
        in_degrees, out_degrees: integers, [in] and [out], in any order.
        strict: connect only degrees that differ, as into the outputs of a MADE.
        mask: bool, [out, in], True where a weight counts; instead of degrees.

    Returns:
        [..., out] in the common dtype of ``x``, ``weight`` and ``bias``. Sums are accumulated in float32
        (float64 for float64). Differentiable in ``x``, ``weight`` and ``bias``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes or devices do not match, or unless either both degrees or the mask are given.

    Source: Germain et al., "MADE: Masked Autoencoder for Distribution Estimation" (2015), equations 8-9.
    """
    check_floating(x=x, weight=weight, bias=bias)
    _check_layer(x, weight, bias)
    _check_mask(weight, in_degrees, out_degrees, strict, mask)
    x, weight, bias = cast_as_linear(x, weight, bias)
    if ops.use_kernel(x, "masked"):
        return ops.masked_linear(x, weight, bias, in_degrees, out_degrees, mask, strict)
    return reference.masked_linear(
        x, weight, bias, in_degrees, out_degrees, strict=strict, mask=mask
    )


def fvsbn_log_prob(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    r"""Log-probability of binary data under a fully visible sigmoid belief network (FVSBN).

    .. math:: \log p(x) = \sum_d x_d l_d - \log(1 + e^{l_d}), \qquad
        l_d = b_d + \sum_{k < d} W_{d,k}\, x_k

    Only the strictly lower part of ``weight`` is used: the rest has no influence, whatever it holds, and
    zero gradient.

    Args:
        x: values in [0, 1] (bool, integer or floating point), [..., D]. A value between 0 and 1 enters the
            logits as it is and gives the cross-entropy: only binary x have probabilities.
        weight: floating point, [D, D].
        bias: [D].

    Returns:
        [...] in nats, float32 (float64 if a parameter is float64). Differentiable in all arguments.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes or devices do not match, or (on the CPU, or on CUDA under
            ``check_values(True)``) if x is outside [0, 1]; otherwise such a sample is NaN.

    Source: Frey, Hinton and Dayan, "Does the wake-sleep algorithm produce good density estimators?" (1996).
    """
    check_floating(weight=weight, bias=bias)
    x = check_data(x)
    if weight.ndim != 2 or weight.shape[0] != weight.shape[1]:
        raise ValueError(f"weight must be square, [D, D], got shape {tuple(weight.shape)}")
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if x.ndim < 1 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"x must have shape [..., {weight.shape[0]}] for the {weight.shape[0]} dimensions of "
            f"weight, got {tuple(x.shape)}"
        )
    check_same_device("x", x, "weight", weight)
    weight, bias = promoted(weight, bias)
    lead, x = x.shape[:-1], x.reshape(x.shape[:-1].numel(), x.shape[-1])
    if ops.use_kernel(weight, "masked"):
        if not x.is_cpu:
            check_before_kernel(x, lambda: unit_interval(x), UNIT_INTERVAL)
        return ops.fvsbn_log_prob(x, weight, bias)[0].reshape(lead)
    return reference_with_checks(
        lambda data: reference.fvsbn_log_prob(data, weight, bias),
        x,
        unit_interval(x),
        UNIT_INTERVAL,
        1,
    ).reshape(lead)


def _check_layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.ndim != 2:
        raise ValueError(f"weight must have two dimensions, got shape {tuple(weight.shape)}")
    if x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x must have shape [..., {weight.shape[1]}] for the {weight.shape[1]} inputs of weight, "
            f"got {tuple(x.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")


def _check_mask(
    weight: Tensor,
    in_degrees: Tensor | None,
    out_degrees: Tensor | None,
    strict: bool,
    mask: Tensor | None,
) -> None:
    if not isinstance(strict, bool):
        raise TypeError(f"strict must be a bool, got {type(strict).__name__}")
    if mask is None and in_degrees is not None and out_degrees is not None:
        outputs, inputs = weight.shape
        _check_degrees("in_degrees", in_degrees, inputs, weight)
        _check_degrees("out_degrees", out_degrees, outputs, weight)
        return
    if mask is None or in_degrees is not None or out_degrees is not None:
        given = {"in_degrees": in_degrees, "out_degrees": out_degrees, "mask": mask}
        got = [name for name, value in given.items() if value is not None]
        raise ValueError(
            "the mask is given by in_degrees and out_degrees together, or by mask alone: "
            f"got {', '.join(got) if got else 'none of them'}"
        )
    check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}")
    if mask.shape != weight.shape:
        raise ValueError(
            f"mask must have weight's shape {tuple(weight.shape)}, got {tuple(mask.shape)}"
        )
    if strict:
        raise ValueError("strict is about degrees and does nothing to a mask")
    check_same_device("mask", mask, "weight", weight)


def _check_degrees(name: str, value: Tensor, size: int, weight: Tensor) -> None:
    check_tensor(name, value)
    dtype = value.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise TypeError(f"{name} must be integer, got {dtype}")
    if value.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {tuple(value.shape)}")
    check_same_device(name, value, "weight", weight)
