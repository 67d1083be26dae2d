"""Argument checks shared by the model classes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def check_count(name: str, value: Any, at_least: int = 1) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def flatten_data(x: Any, num_dims: int, device: torch.device, name: str = "x") -> Tensor:
    """x [B, D] or [B, *image_shape] as [B, D]."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, but the model is on {device}")
    if x.ndim < 2 or math.prod(x.shape[1:]) != num_dims:
        raise ValueError(
            f"{name} must have shape [B, {num_dims}] or [B, *image_shape] with {num_dims} entries "
            f"per sample, got {tuple(x.shape)}"
        )
    if x.is_complex():
        raise TypeError(f"{name} must be bool, integer or floating point, got {x.dtype}")
    return x if x.ndim == 2 else x.reshape(x.shape[0], num_dims)


def check_context(context: Any, context_dim: int | None, batch: int, like: Tensor) -> Tensor | None:
    """context as [B, context_dim] in the dtype of ``like``, or None for unconditional models."""
    if context_dim is None:
        if context is not None:
            raise ValueError("context was given, but the model was built without context_dim")
        return None
    if context is None:
        raise ValueError(f"context is missing: the model was built with context_dim={context_dim}")
    if not isinstance(context, Tensor):
        raise TypeError(f"context must be a torch.Tensor, got {type(context).__name__}")
    if context.shape not in ((batch, context_dim), (context_dim,)):
        raise ValueError(
            f"context must have shape [B, context_dim] = {(batch, context_dim)} or "
            f"{(context_dim,)}, got {tuple(context.shape)}"
        )
    if context.device != like.device:
        raise ValueError(f"context is on {context.device}, but the model is on {like.device}")
    return context.to(like.dtype).expand(batch, context_dim)


def check_noise(noise: Any, shape: tuple[int, ...], like: Tensor, name: str = "noise") -> Tensor:
    """noise of the given shape on the device of ``like``."""
    if not isinstance(noise, Tensor) or not noise.dtype.is_floating_point:
        got = noise.dtype if isinstance(noise, Tensor) else type(noise).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {got}")
    if noise.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(noise.shape)}")
    if noise.device != like.device:
        raise ValueError(f"{name} is on {noise.device}, but the model is on {like.device}")
    return noise


def check_condition(
    conditioned_on: Any, shape: tuple[int, int], like: Tensor
) -> tuple[Tensor, Tensor]:
    """``conditioned_on`` as (values, given) of the given shape [n, D] each.

    ``given`` is boolean; values are zero where it is False (they may be anything there, NaN too) and
    keep their dtype.
    """
    if not isinstance(conditioned_on, tuple | list) or len(conditioned_on) != 2:
        raise TypeError("conditioned_on must be a pair (values, given)")
    values, given = conditioned_on
    for name, part in (("values", values), ("given", given)):
        if not isinstance(part, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(part).__name__}")
        if part.shape not in (shape[1:], shape):
            raise ValueError(
                f"{name} must have shape {shape[1:]} or {shape}, got {tuple(part.shape)}"
            )
        if part.device != like.device:
            raise ValueError(f"{name} is on {part.device}, but the model is on {like.device}")
    if given.dtype != torch.bool:
        raise TypeError(f"given must be bool, got {given.dtype}")
    given = given.expand(shape)
    return values.detach().expand(shape).masked_fill(~given, 0), given


def check_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ValueError("values must be finite where given")
