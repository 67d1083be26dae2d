"""Given entries of a sample: the pair ``conditioned_on=(values, given)``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgm_fast.functional._checks import check_same_device, check_tensor

Condition = tuple[Tensor, Tensor]


def check_condition(
    conditioned_on: Any, shape: tuple[int, ...], like_name: str, like: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """(values, given) of ``shape`` = (n, ...) each without gradients, or None for both."""
    if conditioned_on is None:
        return None, None
    if not isinstance(conditioned_on, tuple | list) or len(conditioned_on) != 2:
        raise TypeError(
            f"conditioned_on must be a pair (values, given), got {type(conditioned_on).__name__}"
        )
    values, given = conditioned_on
    check_tensor("conditioned_on values", values)
    check_tensor("conditioned_on given", given)
    if given.dtype != torch.bool:
        raise TypeError(f"conditioned_on given must be bool, got {given.dtype}")
    for name, value in (("values", values), ("given", given)):
        if value.shape not in (shape, shape[1:]):
            raise ValueError(
                f"conditioned_on {name} must have shape {shape} or {shape[1:]}, "
                f"got {tuple(value.shape)}"
            )
        check_same_device(f"conditioned_on {name}", value, like_name, like)
    return values.detach().expand(shape), given.expand(shape)
