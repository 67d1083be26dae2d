"""Registration of the coupling family: affine maps with their log-determinants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgm_fast import reference
from dgm_fast.ops._registry import OpSpec, register, registered
from dgm_fast.ops._shapes import per_sample

# The integer codes of the op's ``scale`` argument.
SCALES = {"exp": 0, "sigmoid2": 1, "softplus": 2, "tanh": 3, "atan": 4, "softsign": 5}
_SCALE_NAMES = tuple(SCALES)


def _affine_reference(
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    mask: Tensor | None,
    inverse: bool,
    event_ndim: int,
    scale: int,
    clamp: float,
) -> tuple[Tensor, Tensor]:
    return reference.affine_coupling(
        x,
        log_scale,
        shift,
        mask=mask,
        inverse=inverse,
        event_ndim=event_ndim,
        scale=_SCALE_NAMES[scale],
        clamp=clamp,
    )


def _affine_fake(
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    mask: Tensor | None,
    inverse: bool,
    event_ndim: int,
    scale: int,
    clamp: float,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), per_sample(x.shape, event_ndim, x, like=x)


def _affine_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x, log_scale, shift = (torch.randn(5, 17, device=device, dtype=dtype) for _ in range(3))
    return x, log_scale, shift, None, False, 1, SCALES["tanh"], 2.0


def _actnorm_reference(x: Tensor, log_scale: Tensor, bias: Tensor, inverse: bool) -> Tensor:
    return reference.actnorm(x, log_scale, bias, inverse=inverse)


def _actnorm_fake(x: Tensor, log_scale: Tensor, bias: Tensor, inverse: bool) -> Tensor:
    return x.new_empty(x.shape)


def _actnorm_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    return normal(3, 5, 2, 7), normal(5), normal(5), False


register(
    OpSpec(
        "affine_coupling",
        "coupling",
        reference=_affine_reference,
        fake=_affine_fake,
        example=_affine_example,
    )
)
register(
    OpSpec(
        "actnorm",
        "coupling",
        reference=_actnorm_reference,
        fake=_actnorm_fake,
        example=_actnorm_example,
    )
)

affine_coupling = registered("affine_coupling")
actnorm = registered("actnorm")
