"""Argument checks of the public functions. Each message names the argument, what it got and needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dgm_fast import ops


def check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


_FLOATING = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_INTEGERS = frozenset((torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))
# PyTorch stores these and does little else with them.
_WIDENED = frozenset((torch.uint16, torch.uint32, torch.uint64))


def check_data(x: Any) -> Tensor:
    """x as data: bool, integer or floating point; wide unsigned integers as int64."""
    check_tensor("x", x)
    if x.dtype in _FLOATING or x.dtype in _INTEGERS:
        return x
    if x.dtype in _WIDENED:
        return x.long()
    raise TypeError(
        f"x must be bool, integer or floating point (float16, bfloat16, float32, float64), got {x.dtype}"
    )


def check_floating(**tensors: Tensor | None) -> None:
    """Every given tensor (None is skipped) is a floating-point tensor on the first one's device."""
    device = None
    for name, value in tensors.items():
        if value is None:
            continue
        check_tensor(name, value)
        if value.dtype not in _FLOATING:
            raise TypeError(
                f"{name} must be floating point (float16, bfloat16, float32 or float64), "
                f"got {value.dtype}"
            )
        if device is None:
            first, device = name, value.device
        elif value.device != device:
            raise ValueError(f"{name} is on {value.device}, but {first} is on {device}")


def check_same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{name} is on {value.device}, but {other_name} is on {other.device}")


def check_event_ndim(event_ndim: int, ndim: int, name: str) -> None:
    if not isinstance(event_ndim, int):
        raise TypeError(f"event_ndim must be an int, got {type(event_ndim).__name__}")
    if not 0 <= event_ndim <= ndim:
        raise ValueError(
            f"event_ndim must be between 0 and the {ndim} dimensions of {name}, got {event_ndim}"
        )


def check_data_shape(x: Tensor, shape: Sequence[int], event_ndim: int, against: str) -> None:
    """x has all dimensions of ``shape`` (leading ones may be 1), or exactly its event dimensions.

    Anything else would be aligned by broadcasting rules against the wrong dimension: with B == K,
    x [B, D] against [B, K, D] runs and is wrong.
    """
    if x.shape == shape:
        return
    ndim = len(shape)
    event = tuple(shape[ndim - event_ndim :])
    if x.ndim not in (ndim, event_ndim):
        raise ValueError(
            f"x has shape {tuple(x.shape)}, but {against} has shape {tuple(shape)}: x needs the same "
            f"number of dimensions ({ndim}; size 1 broadcasts) or exactly the event dimensions {event}"
        )
    if tuple(x.shape[x.ndim - event_ndim :]) != event:
        raise ValueError(
            f"x has event shape {tuple(x.shape[x.ndim - event_ndim :])}, "
            f"but {against} has event shape {event}"
        )
    if x.ndim == ndim:
        check_broadcast("x", x.shape, against, shape)


def check_broadcast(name: str, shape: Sequence[int], against: str, other: Sequence[int]) -> None:
    try:
        torch.broadcast_shapes(tuple(shape), tuple(other))
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(shape)}, which does not broadcast with {against}'s {tuple(other)}"
        ) from None


def check_parameter_shape(
    name: str, value: Tensor, shape: Sequence[int], event_ndim: int, against: str
) -> None:
    """A parameter broadcasts from [], its event dimensions, or all dimensions of ``shape``."""
    if value.shape == shape or value.ndim == 0:
        return
    if value.ndim not in (len(shape), event_ndim):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, but needs to broadcast to {against}'s "
            f"{tuple(shape)} from [], from its last {event_ndim} dimensions or from all of them"
        )
    check_broadcast(name, value.shape, against, shape)


def check_event(x: Tensor, event_ndim: int, **parameters: Tensor | None) -> None:
    """No parameter has a larger event than x: a column [B, 1] is no data for means [B, D]."""
    for name, value in parameters.items():
        if value is None or value.shape == x.shape:
            continue
        for d in range(1, min(event_ndim, value.ndim) + 1):
            if value.shape[-d] != 1 and value.shape[-d] != x.shape[-d]:
                raise ValueError(
                    f"x has event shape {tuple(x.shape[x.ndim - event_ndim :])}, "
                    f"but {name} has shape {tuple(value.shape)}"
                )


def check_likelihood(likelihood: str) -> None:
    if likelihood not in ops.LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {tuple(ops.LIKELIHOODS)}, got {likelihood!r}")


def promoted(*tensors: Tensor | None) -> list[Any]:
    """The tensors in their common floating dtype (None stays None)."""
    dtypes = {t.dtype for t in tensors if t is not None}
    if len(dtypes) == 1:
        return list(tensors)
    dtype = torch.float32
    for i, other in enumerate(dtypes):
        dtype = other if i == 0 else torch.promote_types(dtype, other)
    return [None if t is None else t.to(dtype) for t in tensors]


def cast_as_linear(h: Tensor, weight: Tensor, bias: Tensor | None) -> list[Any]:
    """The operands as F.linear sees them: autocast's dtype where it is on, else their common dtype."""
    device = h.device.type
    if not torch.is_autocast_enabled(device):
        return promoted(h, weight, bias)
    dtype = torch.get_autocast_dtype(device)
    return promoted(
        *(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (h, weight, bias))
    )


def values_visible() -> bool:
    """Whether Python may look at tensor values here: not while compiling, not under torch.func."""
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def unit_interval(x: Tensor) -> Tensor:
    """Which entries of x are probabilities, for data checks of the Bernoulli likelihood."""
    return (x >= 0) & (x <= 1)


def class_index(x: Tensor, num_classes: int) -> Tensor:
    """Which entries of x are class indices."""
    valid = (x >= 0) & (x < num_classes)
    return valid & (x == x.floor()) if x.dtype.is_floating_point else valid


def raise_unless_valid(x: Tensor, valid: Tensor, needs: str, *, name: str = "x") -> None:
    if not bool(valid.all()):
        bad = x[~valid][0].item()
        raise ValueError(f"{name} must hold {needs}, got {bad}")


def mark_invalid(out: Tensor, valid: Tensor, event_ndim: int) -> Tensor:
    """NaN for every sample of ``out`` whose data is not valid (the rule where a check would sync)."""
    if event_ndim:
        valid = valid.flatten(valid.ndim - event_ndim).all(-1)
    # Samples that share their data (importance samples) are trailing dimensions of out.
    valid = valid.reshape(valid.shape + (1,) * (out.ndim - valid.ndim))
    return torch.where(valid, out, math.nan)
