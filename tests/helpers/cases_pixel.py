"""Cases of the pixel family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers.cases_likelihood import _generator, _randn
from helpers.op_checks import OpCase
from torch import Tensor

from dgm_fast import functional, reference

Build = Callable[[torch.dtype], tuple[Tensor, ...]]


def conv_inputs(
    image: tuple[int, ...],
    out_channels: int,
    kernel: tuple[int, ...],
    *,
    bias: bool = True,
    channels_last: bool = False,
) -> Build:
    """(x, weight, [bias]) for x of shape ``image``, [B, C, ...]."""

    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        in_channels = image[-1 - len(kernel)]
        x = _randn(image, dtype, 1.0, generator)
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        taps = in_channels * torch.Size(kernel).numel()
        weight = _randn((out_channels, in_channels, *kernel), dtype, taps**-0.5, generator)
        return (x, weight, _randn((out_channels,), dtype, 0.5, generator))[: 3 if bias else 2]

    return build


def _conv(id: str, build: Build, *, double_backward: bool = True, **options: Any) -> OpCase:
    bias = len(build(torch.float32)) == 3
    return OpCase(
        f"masked-conv2d-{id}",
        "masked_conv2d",
        lambda *args: functional.masked_conv2d(*args, **options),
        lambda *args: reference.masked_conv2d(*args, **options),
        build,
        (0, 1, 2) if bias else (0, 1),
        double_backward,
    )


def _shifted(id: str, build: Build, first: tuple[int, int], **options: Any) -> OpCase:
    bias = len(build(torch.float32)) == 3
    return OpCase(
        f"shifted-conv2d-{id}",
        "shifted_conv2d",
        lambda *args: functional.shifted_conv2d(*args, first=first),
        lambda *args: reference.shifted_conv2d(*args, first=first),
        build,
        (0, 1, 2) if bias else (0, 1),
        **options,
    )


def _causal(id: str, build: Build, **options: Any) -> OpCase:
    return OpCase(
        f"masked-conv1d-{id}",
        "masked_conv2d",
        lambda *args: functional.masked_conv1d(*args, **options),
        lambda *args: reference.masked_conv1d(*args, **options),
        build,
        (0, 1, 2),
    )


def lstm_inputs(image: tuple[int, ...], taps: int) -> Build:
    """(gates, weight)"""

    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        units = image[1] // 4
        gates = _randn(image, dtype, 1.0, generator)
        return gates, _randn((image[1], units, taps), dtype, (taps * units) ** -0.5, generator)

    return build


def _lstm(kind: str, id: str, image: tuple[int, ...], taps: int) -> OpCase:
    op, build = f"{kind}_lstm", lstm_inputs(image, taps)
    return OpCase(
        f"{kind}-lstm-{id}", op, getattr(functional, op), getattr(reference, op), build, (0, 1)
    )


def gated_inputs(
    shape: tuple[int, ...],
    dim: int = 1,
    *,
    bias: bool = False,
    condition: tuple[int, ...] | None = None,
    channels_last: bool = False,
) -> Build:
    """(x, [bias], [condition])"""

    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        x = _randn(shape, dtype, 2.0, generator)
        tensors = [x.to(memory_format=torch.channels_last) if channels_last else x]
        if bias:
            tensors.append(_randn((shape[dim],), dtype, 1.0, generator))
        if condition is not None:
            tensors.append(_randn(condition, dtype, 1.0, generator))
        return tuple(tensors)

    return build


def _gated(
    id: str,
    shape: tuple[int, ...],
    dim: int = 1,
    *,
    bias: bool = False,
    condition: tuple[int, ...] | None = None,
    channels_last: bool = False,
) -> OpCase:
    build = gated_inputs(shape, dim, bias=bias, condition=condition, channels_last=channels_last)

    def named(rest: tuple[Tensor, ...]) -> dict[str, Tensor]:
        names = ["bias"] * bias + ["condition"] * (condition is not None)
        return dict(zip(names, rest, strict=True))

    def plain(x: Tensor, *rest: Tensor) -> Tensor:
        given = named(rest)
        if condition is not None:
            lead = given["condition"]
            given["condition"] = lead.reshape(*lead.shape, *(1 for _ in range(x.ndim - lead.ndim)))
        return reference.gated_activation(x, **given, dim=dim % x.ndim)

    return OpCase(
        f"gated-{id}",
        "gated_activation",
        lambda x, *rest: functional.gated_activation(x, dim=dim, **named(rest)),
        plain,
        build,
        tuple(range(1 + bias + (condition is not None))),
    )


# Sizes: odd, one, not square; kernels larger than the image; every mask.
CASES = [
    _conv("a", conv_inputs((2, 3, 5, 4), 4, (3, 3)), mask_type="A"),
    _conv("b", conv_inputs((2, 3, 4, 5), 4, (3, 3)), mask_type="B"),
    _conv("wide-kernel", conv_inputs((1, 2, 3, 2), 3, (7, 5), bias=False), mask_type="A"),
    _conv("rgb-interleaved", conv_inputs((1, 3, 3, 4), 7, (3, 3)), mask_type="A", data_channels=3),
    _conv(
        "rgb-contiguous",
        conv_inputs((1, 4, 3, 4), 6, (3, 3), channels_last=True),
        mask_type="B",
        data_channels=3,
        channel_order="contiguous",
    ),
    _conv(
        "dilated",
        conv_inputs((1, 2, 6, 7), 3, (3, 5), channels_last=True),
        mask_type="B",
        dilation=2,
    ),
    _conv("image", conv_inputs((2, 4, 3), 3, (3, 3)), mask_type="B"),
    _conv("pixel", conv_inputs((1, 2, 1, 1), 3, (3, 3)), mask_type="B"),
    _conv("one-tap", conv_inputs((2, 3, 3, 2), 2, (1, 1)), mask_type="B"),
    _conv(
        "one-tap-rgb",
        conv_inputs((2, 3, 3, 2), 3, (1, 1)),
        mask_type="A",
        data_channels=3,
    ),
    _shifted("library", conv_inputs((2, 3, 5, 4), 4, (2, 3)), (-1, -1)),
    _shifted("above", conv_inputs((1, 16, 3, 4), 17, (2, 3)), (-2, -1), double_backward=False),
    _shifted(
        "around",
        conv_inputs((1, 17, 4, 3), 16, (3, 2), channels_last=True),
        (-1, 0),
        double_backward=False,
    ),
    _shifted(
        "one-tap", conv_inputs((2, 16, 3, 2), 16, (1, 1), bias=False), (0, 0), double_backward=False
    ),
    _causal("a", conv_inputs((2, 3, 9), 4, (5,)), mask_type="A"),
    _causal("dilated", conv_inputs((2, 2, 9), 3, (3,)), mask_type="B", dilation=3),
    _causal("sequence", conv_inputs((3, 9), 3, (3,)), mask_type="B", data_channels=3),
    _gated("plain", (2, 6, 3, 5)),
    _gated("channels-last", (2, 6, 3, 5), channels_last=True),
    _gated("vectors", (5, 6)),
    _gated("last", (2, 3, 8), -1),
    _gated("first", (4, 3, 5), 0),
    _gated("bias", (2, 4, 3, 3), bias=True),
    _gated("sample", (3, 4, 5), bias=True, condition=(3, 4)),
    _gated("shared", (3, 4, 2, 3), condition=(1, 4, 1, 1)),
    _gated("position", (2, 4, 3, 2), bias=True, condition=(2, 4, 3, 2)),
    _gated("broadcast-position", (2, 4, 3, 2), condition=(1, 4, 3, 1)),
    _gated("channels-last-sample", (2, 4, 3, 2), bias=True, condition=(2, 4), channels_last=True),
    _gated(
        "channels-last-position",
        (2, 4, 3, 2),
        bias=True,
        condition=(1, 4, 3, 2),
        channels_last=True,
    ),
    _gated("one", (1, 2, 1, 1)),
    _lstm("row", "plain", (2, 8, 3, 4), 3),
    _lstm("row", "one-tap", (2, 4, 3, 2), 1),
    _lstm("row", "five-taps", (1, 8, 3, 3), 5),
    _lstm("row", "row", (2, 8, 1, 4), 3),
    _lstm("row", "column", (2, 8, 4, 1), 3),
    _lstm("diagonal", "plain", (2, 8, 3, 4), 2),
    _lstm("diagonal", "high", (1, 8, 5, 2), 2),
    _lstm("diagonal", "row", (2, 8, 1, 4), 2),
    _lstm("diagonal", "column", (2, 8, 4, 1), 2),
    _lstm("diagonal", "one", (1, 4, 1, 1), 2),
]

# Several vectors, tiles, blocks of channels, rows and threads, with remainders of each.
LARGE = [
    _lstm("row", "large", (5, 80, 19, 23), 3),
    _lstm("row", "large-wide", (2, 140, 9, 70), 5),
    _lstm("diagonal", "large", (5, 80, 19, 23), 2),
    _lstm("diagonal", "large-high", (2, 140, 33, 9), 2),
    _conv("large", conv_inputs((5, 64, 28, 28), 64, (7, 7)), mask_type="A"),
    _conv(
        "large-channels-last",
        conv_inputs((3, 64, 28, 28), 64, (3, 3), channels_last=True),
        mask_type="B",
    ),
    _conv("large-odd", conv_inputs((3, 37, 19, 31), 45, (5, 5)), mask_type="B"),
    _conv(
        "large-rgb",
        conv_inputs((3, 48, 16, 17), 72, (3, 5), channels_last=True),
        mask_type="A",
        data_channels=3,
    ),
    _conv("large-dilated", conv_inputs((2, 40, 23, 21), 33, (3, 3)), mask_type="B", dilation=3),
    _conv("large-one-channel", conv_inputs((9, 1, 28, 28), 64, (7, 7)), mask_type="A"),
    _shifted("large", conv_inputs((3, 64, 28, 28), 96, (2, 3)), (-1, -1)),
    _shifted(
        "large-channels-last",
        conv_inputs((2, 40, 19, 23), 61, (3, 5), channels_last=True),
        (-3, -2),
    ),
    _shifted("large-below", conv_inputs((2, 48, 17, 30), 64, (4, 2)), (-1, 0)),
    _shifted("large-one-tap", conv_inputs((3, 96, 20, 21), 128, (1, 1), bias=False), (0, 0)),
    _causal("large", conv_inputs((3, 33, 700), 48, (9,)), mask_type="B"),
    _gated("large", (9, 36, 31, 33), bias=True, condition=(9, 36)),
    _gated(
        "large-channels-last", (5, 38, 31, 33), bias=True, condition=(5, 38), channels_last=True
    ),
    _gated("large-position", (3, 36, 31, 33), bias=True, condition=(3, 36, 31, 33)),
    _gated("large-vectors", (700, 150), bias=True),
]
