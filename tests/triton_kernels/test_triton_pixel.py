"""The kernels of the pixel family in Triton's interpreter against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.cases_pixel import conv_inputs, gated_inputs
from torch import Tensor

pytest.importorskip("triton")

from dgm_fast.kernels import gated, masked_conv
from launchers import DTYPES, backward, check, check_masks, forward

from dgm_fast import ops

pytestmark = pytest.mark.interpreter

CONV, GATED = "masked_conv2d", "gated_activation"


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles and parts of every sum, of a small problem."""
    monkeypatch.setattr(gated, "_BLOCK", 8)
    monkeypatch.setattr(gated, "_TILES", 2)
    monkeypatch.setattr(masked_conv, "_LEAST", 1)


def conv(
    image: tuple[int, int, int, int],
    out_channels: int,
    kernel: tuple[int, int],
    mask_type: str,
    data_channels: int = 1,
    dtype: torch.dtype = torch.float32,
    *,
    order: str = "interleaved",
    dilation: int = 1,
    bias: bool = True,
    channels_last: bool = False,
) -> list[Any]:
    """The op's arguments."""
    build = conv_inputs(image, out_channels, kernel, bias=bias, channels_last=channels_last)
    tensors = [*build(dtype), None][:3]
    codes = ops.MASK_TYPES[mask_type], data_channels, ops.CHANNEL_ORDERS[order], dilation
    return [*tensors, *codes]


def gate(
    shape: tuple[int, ...],
    dim: int,
    dtype: torch.dtype = torch.float32,
    *,
    bias: bool = False,
    condition: tuple[int, ...] | None = None,
    channels_last: bool = False,
) -> list[Any]:
    x, *rest = gated_inputs(
        shape, dim, bias=bias, condition=condition, channels_last=channels_last
    )(dtype)
    added = rest.pop() if condition is not None else None
    return [x, rest[0] if bias else None, added, dim]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_convolution(mask_type: str, dtype: torch.dtype) -> None:
    check(CONV, *conv((2, 3, 5, 4), 4, (3, 3), mask_type, dtype=dtype))


@pytest.mark.parametrize(
    "args",
    [
        conv((1, 3, 3, 4), 7, (3, 3), "A", 3),
        conv((1, 4, 3, 4), 6, (3, 5), "B", 3, order="contiguous", bias=False),
        conv((1, 2, 3, 2), 3, (7, 5), "A"),
        conv((1, 2, 6, 7), 3, (3, 5), "B", dilation=2),
        conv((2, 3, 3, 2), 2, (1, 1), "A"),
        conv((2, 3, 3, 2), 3, (1, 1), "A", 3),
        conv((0, 3, 3, 2), 3, (3, 3), "B"),
        conv((3, 9, 4, 5), 21, (1, 5), "B", dilation=2),
        conv((2, 48, 3, 4), 16, (3, 3), "B"),
    ],
    ids=lambda args: f"{tuple(args[0].shape)}-{tuple(args[1].shape)}",
)
def test_convolutions(args: list[Any], split: None) -> None:
    check(CONV, *args)


def same(args: list[Any], other: list[Any], op: str) -> None:
    """Results and gradients of two layouts of the same arguments are equal, in the format of x."""
    out, want = forward(op, *args)[0], forward(op, *other)[0]
    torch.testing.assert_close(out, want)
    assert out.is_contiguous(memory_format=torch.channels_last)
    mask = [isinstance(t, Tensor) for t in args[:3]]
    grad = torch.randn(out.shape)
    for g, w in zip(
        backward(op, grad, (out,), args, mask), backward(op, grad, (out,), other, mask), strict=True
    ):
        torch.testing.assert_close(g, w)


def test_channels_last(split: None) -> None:
    args = conv((2, 4, 3, 5), 6, (3, 3), "B", channels_last=True)
    same(args, [args[0].contiguous(), *args[1:]], CONV)
    for condition in (None, (2, 4, 1, 1), (1, 4, 3, 2), (2, 4, 3, 2)):
        args = gate((2, 4, 3, 2), 1, bias=True, condition=condition, channels_last=True)
        same(args, [args[0].contiguous(), *args[1:]], GATED)


def test_layouts_of_a_convolution() -> None:
    x, weight, bias, *codes = conv((2, 3, 4, 5), 4, (5, 3), "B")
    check(CONV, x[:1, :1].expand(2, 3, 4, 5), weight.transpose(2, 3), bias[:1].expand(4), *codes)
    check(CONV, x.transpose(2, 3), weight[:, :, ::2], bias, *codes)


def test_dead_weights_have_no_influence() -> None:
    args = conv((2, 3, 4, 4), 3, (3, 3), "A", 3)
    want = forward(CONV, *args)[0]
    dead = args[1].clone()
    dead[:, :, 2] = torch.nan
    dead[:, :, 1, 2] = torch.inf
    dead[0, :, 1, 1] = torch.nan
    args[1] = dead
    assert torch.equal(forward(CONV, *args)[0], want)
    gradient = backward(CONV, torch.ones_like(want), (), args, [True] * 3)[1]
    assert gradient.isfinite().all()
    assert not gradient[:, :, 2].any() and not gradient[0, :, 1, 1].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate(dtype: torch.dtype) -> None:
    check(GATED, *gate((2, 6, 3, 5), 1, dtype, bias=True, condition=(2, 6, 1, 1)))


@pytest.mark.parametrize(
    "args",
    [
        gate((5, 6), 1),
        gate((2, 3, 8), 2, bias=True),
        gate((4, 3, 5), 0, bias=True),
        gate((3, 4, 5), 1, condition=(1, 4, 1)),
        gate((5, 6), 1, bias=True, condition=(5, 6)),
        gate((5, 6), 1, condition=(1, 6)),
        gate((2, 4, 3, 2), 1, bias=True, condition=(2, 4, 3, 2)),
        gate((2, 4, 3, 2), 1, condition=(1, 4, 3, 1)),
        gate((0, 4, 3), 1, bias=True),
        gate((1, 2, 1, 1), 1),
    ],
    ids=lambda args: f"{tuple(args[0].shape)}-{args[3]}",
)
def test_gates(args: list[Any], split: None) -> None:
    check(GATED, *args)


def test_masks() -> None:
    check_masks(CONV, *conv((2, 3, 3, 4), 4, (3, 3), "B"))
    check_masks(GATED, *gate((2, 4, 3), 1, bias=True, condition=(2, 4, 1)))
    check_masks(GATED, *gate((2, 4, 3), 1, bias=True, condition=(2, 4, 3)))


def test_extreme_gates() -> None:
    x = torch.tensor([[1e4, -1e4, torch.inf, -torch.inf], [1e4, -1e4, torch.inf, -torch.inf]]).t()
    args = [x.contiguous(), None, None, 1]
    check(GATED, *args)
    out = forward(GATED, *args)[0]
    assert out[:, 0].tolist() == [1.0, 0.0, 1.0, 0.0]
