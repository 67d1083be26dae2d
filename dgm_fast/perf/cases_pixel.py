"""Benchmark cases of the pixel family: convolutions in both memory formats, gated activation, LSTMs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dgm_fast import functional, reference
from dgm_fast.perf import plain
from dgm_fast.perf.cases_likelihood import normal
from dgm_fast.perf.registry import Builder, Inputs, case

# Live taps of a square kernel of type B.
LIVE_TAPS = {3: 5, 5: 13, 7: 25}
# B, C_in, H, W, C_out, k
HIDDEN_LAYERS = {
    "small": (8, 16, 8, 8, 16, 3),
    "medium": (16, 16, 28, 28, 16, 3),
    "large": (32, 64, 28, 28, 64, 3),
    "odd": (7, 29, 13, 11, 37, 5),
}
IMAGE_GRADS = ("x", "weight", "bias")


def _ours(mask_type: str, data_channels: int = 1) -> Callable[..., Tensor]:
    # The mask is for the rivals.
    def call(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        function = functional.masked_conv2d if weight.ndim == 4 else functional.masked_conv1d
        return function(x, weight, bias, mask_type=mask_type, data_channels=data_channels)

    return call


def _inputs(mask_type: str, data_channels: int = 1, channels_last: bool = False) -> Builder:
    def build(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        *image, out_channels, kernel = shape
        x = normal(generator, *image)
        weight = normal(generator, out_channels, image[1], *[kernel] * (len(image) - 2))
        weight *= (weight[0].numel() / 2) ** -0.5
        mask = reference.conv_mask(weight, mask_type=mask_type, data_channels=data_channels)
        inputs = {"x": x, "weight": weight, "bias": normal(generator, out_channels), "mask": mask}
        inputs = {name: t.to(dtype) for name, t in inputs.items()}
        if channels_last:
            inputs["x"] = inputs["x"].to(memory_format=torch.channels_last)
        return inputs

    return build


def _convolution(
    variant: str,
    sizes: Mapping[str, tuple[int, ...]],
    flops: Callable[[tuple[int, ...]], float],
    *,
    mask_type: str = "B",
    data_channels: int = 1,
    channels_last: bool = False,
    grads: tuple[str, ...] = IMAGE_GRADS,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    second_order: tuple[str, ...] = (),
) -> None:
    case(
        "masked_conv2d",
        variant=variant,
        family="pixel",
        ours=_ours(mask_type, data_channels),
        eager=plain.masked_conv,
        sizes=sizes,
        dtypes=dtypes,
        grads=grads,
        rival_inputs=("mask",),
        backward_reads=("x", "weight"),
        flops_per_element=lambda shape: (
            int(flops(shape)),
            int((len(grads) - 1) * flops(shape)),
        ),
        second_order=second_order,
    )(_inputs(mask_type, data_channels, channels_last))


def _hidden_flops(shape: tuple[int, ...]) -> float:
    return 2.0 * shape[-2] * LIVE_TAPS[shape[-1]]


for _kernel in (3, 5, 7):
    for _channels_last in (False, True):
        _sizes = HIDDEN_LAYERS if _kernel == 3 else {"large": (32, 64, 28, 28, 64, _kernel)}
        _convolution(
            "_".join(["channels_last"] * _channels_last + [f"{_kernel}x{_kernel}"]),
            _sizes,
            _hidden_flops,
            channels_last=_channels_last,
            second_order=("small",),
        )
_convolution(
    "channels_last_bfloat16",
    {"large": (32, 64, 28, 28, 64, 7)},
    _hidden_flops,
    channels_last=True,
    dtypes=(torch.bfloat16,),
)
# First layers, whose input needs no gradient: 24 taps; at the centre of RGB, a third of the pairs.
_convolution(
    "grey_input",
    {"medium": (32, 1, 28, 28, 64, 7)},
    lambda shape: 2.0 * shape[4] * 24,
    mask_type="A",
    grads=("weight", "bias"),
)
_convolution(
    "rgb_input",
    {"medium": (16, 3, 32, 32, 120, 7)},
    lambda shape: 2.0 * shape[4] * (24 + 1 / 3),
    mask_type="A",
    data_channels=3,
    grads=("weight", "bias"),
)
_convolution(
    "rgb_hidden",
    {"medium": (16, 120, 32, 32, 120, 3)},
    lambda shape: 2.0 * shape[4] * (4 + 2 / 3),
    data_channels=3,
)
# B, C_in, L, C_out, k
_convolution(
    "causal",
    {"medium": (32, 64, 256, 64, 9)},
    lambda shape: 2.0 * shape[3] * 5,
)


# B, C_in, H, W, C_out: a pixel's row and the one above, the vertical stack of a Gated PixelCNN.
SHIFTED_LAYERS = {
    "small": (8, 16, 8, 8, 32),
    "medium": (16, 32, 28, 28, 64),
    "large": (16, 128, 28, 28, 256),
    "odd": (7, 29, 13, 11, 37),
}
SHIFTED_TAPS, SHIFTED_FIRST = (2, 3), (-1, -1)


def _shifted_inputs(channels_last: bool) -> Builder:
    def build(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        *image, out_channels = shape
        weight = normal(generator, out_channels, image[1], *SHIFTED_TAPS)
        weight *= weight[0].numel() ** -0.5
        inputs = {"x": normal(generator, *image), "weight": weight}
        inputs["bias"] = normal(generator, out_channels)
        inputs = {name: t.to(dtype) for name, t in inputs.items()}
        if channels_last:
            inputs["x"] = inputs["x"].to(memory_format=torch.channels_last)
        return inputs

    return build


def _shifted_flops(shape: tuple[int, ...]) -> tuple[int, int]:
    forward = 2 * SHIFTED_TAPS[0] * SHIFTED_TAPS[1] * shape[-1]
    return forward, 2 * forward


for _channels_last in (False, True):
    case(
        "shifted_conv2d",
        variant="channels_last" if _channels_last else "",
        family="pixel",
        ours=functools.partial(functional.shifted_conv2d, first=SHIFTED_FIRST),
        eager=functools.partial(plain.shifted_conv, first=SHIFTED_FIRST),
        sizes={"large": SHIFTED_LAYERS["large"]} if _channels_last else SHIFTED_LAYERS,
        dtypes={} if _channels_last else {"medium": (torch.float32, torch.bfloat16)},
        grads=IMAGE_GRADS,
        backward_reads=("x", "weight"),
        flops_per_element=_shifted_flops,
        second_order=() if _channels_last else ("small",),
    )(_shifted_inputs(_channels_last))


GATED_SIZES = {  # B, 2 C, H, W
    "small": (4, 16, 8, 8),
    "medium": (16, 64, 28, 28),
    "large": (32, 256, 28, 28),
    "odd": (7, 38, 13, 11),
}
# An input: an exponential, a quotient, products; backward forms them again.
GATED_FLOPS = (4, 7)


@case(
    "gated_activation",
    family="pixel",
    ours=functional.gated_activation,
    eager=plain.gated_activation,
    sizes=GATED_SIZES,
    dtypes={"large": (torch.float32, torch.bfloat16)},
    grads=("x",),
    flops_per_element=GATED_FLOPS,
    second_order=("small",),
)
def gated_inputs(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    return {"x": normal(generator, *shape).to(dtype)}


@case(
    "gated_activation",
    variant="channels_last",
    family="pixel",
    ours=functional.gated_activation,
    eager=plain.gated_activation,
    sizes={"large": GATED_SIZES["large"]},
    grads=("x",),
    flops_per_element=GATED_FLOPS,
)
def gated_channels_last_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    x = gated_inputs(shape, dtype, generator)["x"]
    return {"x": x.to(memory_format=torch.channels_last)}


@case(
    "gated_activation",
    variant="conditional",
    family="pixel",
    ours=functional.gated_activation,
    eager=plain.gated_activation,
    sizes={"medium": GATED_SIZES["medium"], "large": GATED_SIZES["large"]},
    grads=("x", "bias", "condition"),
    flops_per_element=GATED_FLOPS,
)
def gated_conditional_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    inputs = gated_inputs(shape, dtype, generator)
    inputs["bias"] = normal(generator, shape[1]).to(dtype)
    inputs["condition"] = normal(generator, *shape[:2]).to(dtype)
    return inputs


def _lstm_flops(taps: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Per element of the gates: the products with the state, once forward and twice backward."""
    units = shape[1]
    return 2 * taps * units, 4 * taps * units


def _lstm_case(kind: str, taps: int) -> Any:
    op = f"{kind}_lstm"
    return case(
        op,
        family="pixel",
        ours=getattr(functional, op),
        eager=getattr(reference, op),
        sizes={  # B, units, H, W
            "small": (4, 4, 6, 6),
            "medium": (16, 16, 28, 28),
            "large": (8, 64, 28, 28),
            "odd": (7, 5, 13, 11),
        },
        grads=("gates", "weight"),
        flops_per_element=functools.partial(_lstm_flops, taps),
        dtypes={"medium": (torch.float32, torch.bfloat16)},
        second_order=("small",),
        # Dynamo unrolls the steps, and Inductor compiles for minutes what then runs like eager.
        compiled=False,
    )


def _lstm_inputs(
    taps: int, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    batch, units, height, width = shape
    return {
        "gates": normal(generator, batch, 4 * units, height, width).to(dtype),
        "weight": normal(generator, 4 * units, units, taps, scale=(taps * units) ** -0.5).to(dtype),
    }


@_lstm_case("row", 3)
def row_lstm_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    return _lstm_inputs(3, shape, dtype, generator)


@_lstm_case("diagonal", 2)
def diagonal_lstm_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    return _lstm_inputs(2, shape, dtype, generator)
