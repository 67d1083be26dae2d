"""Benchmark cases of the coupling family."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from dgm_fast import functional
from dgm_fast.perf import plain
from dgm_fast.perf.cases_likelihood import WITH_BFLOAT16, normal
from dgm_fast.perf.registry import Inputs, case

SIZES = {  # B, D or B, C, H, W
    "small": (32, 4),
    "medium": (4096, 64),
    "large": (64, 48, 16, 16),
    "odd": (513, 7),
}


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Scale and shift are halves of one tensor, as a network leaves them."""
    batch, channels, *rest = shape
    log_scale, shift = normal(generator, batch, 2 * channels, *rest).to(dtype).chunk(2, 1)
    return {
        "x": normal(generator, *shape).to(dtype),
        "log_scale": log_scale,
        "shift": shift,
    }


def _ours(
    x: Tensor, log_scale: Tensor, shift: Tensor, *, scale: str, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    return functional.affine_coupling(
        x, log_scale, shift, scale=scale, inverse=inverse, event_ndim=x.ndim - 1
    )


def _flops(shape: tuple[int, ...]) -> tuple[int, int]:
    return 4, 6


case(
    "affine_coupling",
    family="coupling",
    ours=functools.partial(_ours, scale="exp"),
    eager=plain.exp_coupling,
    sizes=SIZES,
    dtypes=WITH_BFLOAT16,
    grads=("x", "log_scale", "shift"),
    backward_reads=("x", "log_scale"),
    flops_per_element=_flops,
    second_order=("small",),
)(_inputs)

case(
    "affine_coupling",
    variant="inverse",
    family="coupling",
    ours=functools.partial(_ours, scale="exp", inverse=True),
    eager=plain.exp_coupling_inverse,
    sizes=SIZES,
    grads=("x", "log_scale", "shift"),
    flops_per_element=_flops,
)(_inputs)

case(
    "affine_coupling",
    variant="tanh",
    family="coupling",
    ours=functools.partial(_ours, scale="tanh"),
    eager=plain.affine_coupling,
    sizes={"medium": SIZES["medium"], "large": SIZES["large"]},
    grads=("x", "log_scale", "shift"),
    backward_reads=("x", "log_scale"),
    flops_per_element=_flops,
)(_inputs)


def _actnorm_ours(x: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return functional.actnorm(x, log_scale, bias)[0]


@case(
    "actnorm",
    family="coupling",
    ours=_actnorm_ours,
    eager=plain.actnorm,
    sizes=SIZES,
    dtypes=WITH_BFLOAT16,
    grads=("x", "log_scale", "bias"),
    backward_reads=("x", "log_scale"),
    flops_per_element=lambda shape: (2, 5),
    second_order=("small",),
)
def actnorm_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    return {
        "x": normal(generator, *shape).to(dtype),
        "log_scale": normal(generator, shape[1], scale=0.3).to(dtype),
        "bias": normal(generator, shape[1]).to(dtype),
    }
