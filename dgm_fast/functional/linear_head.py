"""A decoder's last linear layer and its likelihood in one op, which never stores the logits."""

from __future__ import annotations

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from dgm_fast import ops, reference
from dgm_fast.functional._checks import (
    cast_as_linear,
    check_data,
    check_data_shape,
    check_floating,
    check_same_device,
    class_index,
    unit_interval,
)
from dgm_fast.functional._values import check_before_kernel, reference_with_checks
from dgm_fast.functional.likelihood import (
    UNIT_INTERVAL,
    bernoulli_log_prob,
    categorical_log_prob,
    class_range,
)

VECTOR_PACKINGS = ("variable", "class")
# Logits of such a size are kept for backward: forming them again costs more than their room is worth, while
# below it one op costs less than two.
KEPT_BYTES = range(64 << 10, (1 << 20) + 1)


def linear_bernoulli_log_prob(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    *,
    recompute: bool | None = None,
) -> Tensor:
    r"""Bernoulli log-probability under the logits of a linear layer, formed only tile by tile.

    .. math:: \log p(x) = \sum_d x_d l_d - \log(1 + e^{l_d}), \qquad l = W h + b

    Equal to ``bernoulli_log_prob(F.linear(h, weight, bias), x)``, but logits exist for a few rows at a
    time, in float32 or float64, and backward computes them again: memory in place of one more matrix
    product. Small problems keep their logits (see ``recompute``). Under autocast ``h``, ``weight`` and
    ``bias`` are cast as F.linear casts them.

    Args:
        h: floating point, [..., H].
        weight: [D, H].
        bias: [D] or None.
        x: values in [0, 1] (bool, integer or floating point), [..., D] with as many dimensions as ``h``,
            of which the leading ones may be 1 (importance samples that share their data), or [D].
        recompute: True: backward forms the logits again. False: they are kept, and the linear layer and
            the likelihood are two ops: in reduced precision the logits are then rounded as F.linear rounds
            them. None: they are kept where they take 64 KiB to 1 MiB and the arguments are float32 or
            float64.

    Returns:
        [...] in nats, float32 (float64 if ``h``, ``weight`` or ``bias`` is float64). Differentiable in all
        arguments.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes or devices do not match, or (on the CPU, or on CUDA under
            ``check_values(True)``) if x is outside [0, 1]; otherwise such a sample is NaN.

    Source: the Bernoulli decoder of Kingma and Welling (2014), appendix C.1; recomputed logits as in
    Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (2025).
    """
    check_floating(h=h, weight=weight, bias=bias)
    x = check_data(x)
    _check_linear(h, weight, bias, -1)
    check_data_shape(x, (*h.shape[:-1], weight.shape[0]), 1, "the logits of h and weight")
    check_same_device("x", x, "h", h)
    h, weight, bias = cast_as_linear(h, weight, bias)
    if _keeps_logits(recompute, h, weight, bias, h.numel() // max(1, weight.shape[1])):
        return bernoulli_log_prob(torch_functional.linear(h, weight, bias), x)
    if ops.use_kernel(h):
        if not x.is_cpu:
            check_before_kernel(x, lambda: unit_interval(x), UNIT_INTERVAL)
        return ops.linear_bernoulli_log_prob(h, weight, bias, x)
    return reference_with_checks(
        lambda data: reference.linear_bernoulli_log_prob(h, weight, bias, data),
        x,
        unit_interval(x),
        UNIT_INTERVAL,
        1,
    )


def linear_categorical_log_prob(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    *,
    num_classes: int,
    packing: str = "variable",
    recompute: bool | None = None,
) -> Tensor:
    r"""Categorical log-probability under the logits of a linear layer, formed only tile by tile.

    .. math:: \log p(x) = \sum_d l_{x_d, d} - \log \sum_c e^{l_{c, d}}, \qquad l = W h + b

    Two forms, told apart by the dimensions of x. Vectors: ``h`` [..., H], ``weight`` [D C, H],
    x [..., D] with as many dimensions as ``h``, or [D]. Pixels, where the layer is a 1x1 convolution:
    ``h`` [B, H, *S] with one or more spatial dimensions, ``weight`` [C, H], x [B, *S] (one dimension fewer
    than ``h``), or [Y, X] for ``h`` [B, H, Y, X]. Leading dimensions of x may be 1. Logits exist for one
    tile at a time, in float32 or float64, and backward computes them again, except in small problems
    (see ``recompute``). Under autocast ``h``, ``weight`` and ``bias`` are cast as F.linear casts them.

    Args:
        h: floating point, activations.
        weight: of the linear layer; for pixels also the [C, H, 1, 1] of a convolution.
        bias: one entry a row of ``weight``, or None.
        x: class indices (integer, bool or whole floating-point numbers).
        num_classes: C.
        packing: vectors only; the row of ``weight`` that holds class c of entry d: "variable" d C + c,
            "class" c D + d (the order of logits [B, C, D]).
        recompute: as for :func:`linear_bernoulli_log_prob`.

    Returns:
        Vectors: [...]; pixels: [B]. In nats, float32 (float64 if ``h``, ``weight`` or ``bias`` is
        float64). Differentiable in ``h``, ``weight`` and ``bias``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes, devices or options do not match, if x requires grad, or (on the CPU, or on
            CUDA under ``check_values(True)``) if an index is out of range; otherwise that sample is NaN.

    Source: van den Oord et al., "Pixel Recurrent Neural Networks" (2016), section 2; recomputed logits as
    in Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (2025).
    """
    check_floating(h=h, weight=weight, bias=bias)
    x = check_data(x)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        raise TypeError(f"num_classes must be an int, got {type(num_classes).__name__}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if packing not in VECTOR_PACKINGS:
        raise ValueError(f"packing must be one of {VECTOR_PACKINGS}, got {packing!r}")
    check_same_device("x", x, "h", h)
    if x.requires_grad:
        raise ValueError("x holds class indices and must not require grad")
    pixels = h.ndim >= 3 and (x.ndim == h.ndim - 1 or (h.ndim == 4 and x.ndim == 2))
    if pixels:
        if weight.ndim == h.ndim and weight.shape[2:].numel() == 1:
            weight = weight.flatten(1)
        _check_linear(h, weight, bias, 1)
        if weight.shape[0] != num_classes:
            raise ValueError(
                f"weight must have num_classes = {num_classes} rows for pixels, "
                f"got {tuple(weight.shape)}"
            )
        check_data_shape(x, (h.shape[0], *h.shape[2:]), h.ndim - 2, "the pixels of h")
        x = x.flatten(x.ndim - (h.ndim - 2))
        h = h.flatten(2)
        packing = "pixel"
    else:
        _check_linear(h, weight, bias, -1)
        if weight.shape[0] % num_classes != 0:
            raise ValueError(
                f"weight must have a multiple of num_classes = {num_classes} rows, "
                f"got {tuple(weight.shape)}"
            )
        shape = (*h.shape[:-1], weight.shape[0] // num_classes)
        check_data_shape(x, shape, 1, "the logits of h and weight")
    h, weight, bias = cast_as_linear(h, weight, bias)
    if _keeps_logits(recompute, h, weight, bias, h.numel() // max(1, weight.shape[1])):
        if packing == "pixel":
            logits = torch_functional.conv1d(h, weight.unsqueeze(-1), bias)
            return categorical_log_prob(logits, x)
        logits = torch_functional.linear(h, weight, bias)
        if packing == "class":
            logits = logits.unflatten(-1, (num_classes, -1))
            return categorical_log_prob(logits, x, class_dim=-2, event_ndim=1)
        logits = logits.unflatten(-1, (-1, num_classes))
        return categorical_log_prob(logits, x, class_dim=-1, event_ndim=1)
    if ops.use_kernel(h):
        if not x.is_cpu:
            check_before_kernel(x, lambda: class_index(x, num_classes), class_range(num_classes))
        return ops.linear_categorical_log_prob(
            h, weight, bias, x, num_classes, ops.PACKINGS[packing]
        )
    return reference_with_checks(
        lambda data: reference.linear_categorical_log_prob(
            h, weight, bias, data, num_classes=num_classes, packing=packing
        ),
        x,
        class_index(x, num_classes),
        class_range(num_classes),
        1,
        safe=lambda data: data.clamp(0, num_classes - 1),
    )


def _keeps_logits(
    recompute: bool | None, h: Tensor, weight: Tensor, bias: Tensor | None, rows: int
) -> bool:
    """Whether the linear layer and the likelihood are two ops, with the logits stored between them."""
    if recompute is not None:
        return not recompute
    if h.dtype not in (torch.float32, torch.float64) or not torch.is_grad_enabled():
        return False
    needed = any(t is not None and t.requires_grad for t in (h, weight, bias))
    size = rows * weight.shape[0] * h.element_size()
    # Compared, not looked up: of a symbolic size torch.compile cannot tell whether a range holds it.
    return needed and bool(KEPT_BYTES.start <= size < KEPT_BYTES.stop)


def _check_linear(h: Tensor, weight: Tensor, bias: Tensor | None, dim: int) -> None:
    if weight.ndim != 2:
        raise ValueError(f"weight must have two dimensions, got shape {tuple(weight.shape)}")
    if h.ndim < 1 or h.shape[dim] != weight.shape[1]:
        raise ValueError(
            f"h must have weight's {weight.shape[1]} inputs in dimension {dim}, "
            f"got shape {tuple(h.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
