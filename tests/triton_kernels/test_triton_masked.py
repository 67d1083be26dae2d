"""The masked kernels in Triton's interpreter against the reference."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from dgm_fast.kernels import masked
from launchers import DTYPES, backward, check, check_masks, forward

from dgm_fast.ops import SPECS

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif("masked_linear" not in SPECS, reason="the masked ops are not registered"),
]

LINEAR, FVSBN = "masked_linear", "fvsbn_log_prob"
INF, NAN = math.inf, math.nan


def degrees(
    kind: str, inputs: int, outputs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Degrees of inputs and outputs: "sorted", "shuffled", or "outputs" (only these are shuffled)."""
    of_inputs = torch.randint(0, max(2, inputs), (inputs,), generator=generator)
    of_outputs = torch.randint(0, max(2, inputs), (outputs,), generator=generator)
    if kind != "shuffled":
        of_inputs = of_inputs.sort().values
    return of_inputs, of_outputs.sort().values if kind == "sorted" else of_outputs


def linear(
    *shape: int,
    outputs: int,
    kind: str = "sorted",
    strict: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, ...]:
    """The op's arguments for inputs of a shape."""
    inputs = shape[-1]
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(shape, generator=generator).to(dtype)
    weight = (torch.randn(outputs, inputs, generator=generator) / max(1, inputs) ** 0.5).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype)
    if kind == "mask":
        kept = torch.rand(outputs, inputs, generator=generator) < 0.5
        return x, weight, bias, None, None, kept, False
    return x, weight, bias, *degrees(kind, inputs, outputs, generator), None, strict


def network(rows: int, size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    x = (torch.rand(rows, size) < 0.4).to(dtype)
    return x, torch.randn(size, size).to(dtype) / size**0.5, torch.randn(size).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["sorted", "shuffled", "mask"])
def test_linear(kind: str, dtype: torch.dtype) -> None:
    check(LINEAR, *linear(5, 37, outputs=19, kind=kind, dtype=dtype))


@pytest.mark.parametrize("kind", ["sorted", "shuffled", "outputs"])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(3, 70, 66), (18, 33, 49)])
def test_linear_sizes(rows: int, inputs: int, outputs: int, strict: bool, kind: str) -> None:
    """Several tiles of every dimension, whole ones and odd ones."""
    check(LINEAR, *linear(rows, inputs, outputs=outputs, kind=kind, strict=strict))


@pytest.mark.parametrize(
    ("shape", "outputs"),
    [((1, 1), 1), ((4,), 3), ((2, 3, 5), 4), ((0, 4), 3), ((3, 0), 2), ((3, 4), 0), ((0, 0), 0)],
)
def test_linear_small_and_empty(shape: tuple[int, ...], outputs: int) -> None:
    check(LINEAR, *linear(*shape, outputs=outputs))


def test_linear_without_connections() -> None:
    x, weight, bias, *_ = linear(3, 20, outputs=18)
    low, high = torch.zeros(18, dtype=torch.int64), torch.ones(20, dtype=torch.int64)
    check(LINEAR, x, weight, bias, high, low, None, False)
    check(LINEAR, x, weight, None, high, low + 2, None, True)


@pytest.mark.parametrize("kind", ["sorted", "shuffled", "mask"])
def test_linear_masked_weights_do_not_matter(kind: str) -> None:
    x, weight, bias, of_inputs, of_outputs, kept, strict = linear(3, 40, outputs=35, kind=kind)
    connected = kept if kept is not None else of_inputs <= of_outputs.unsqueeze(-1)
    weight = torch.where(connected, weight, NAN)
    args = x, weight, bias, of_inputs, of_outputs, kept, strict
    check(LINEAR, *args)
    _, grad, _ = backward(LINEAR, torch.ones(3, 35), forward(LINEAR, *args), args, [True] * 3)
    assert grad[~connected].eq(0).all() and grad[connected].ne(0).any()


def test_linear_skips_what_no_unit_hears() -> None:
    """The run of a tile ends with the last unit that its columns hear."""
    x, weight, bias, *_ = linear(4, 128, outputs=128)
    order = torch.arange(128)
    products = 0
    multiply_add = masked.multiply_add

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal products
        products += 1
        return multiply_add(*args, **kwargs)

    layer = x, weight, bias, order, order, None, False
    counts = []
    with mock.patch.object(masked, "multiply_add", counted):
        for args in (layer, (*layer[:4], order + 200, None, False)):
            products = 0
            outputs = forward(LINEAR, *args)
            backward(LINEAR, torch.ones(4, 128), outputs, args, [True] * 3)
            counts.append(products)
    # A triangle of 8 by 8 tiles against a square, in three products.
    assert counts[0] / counts[1] == pytest.approx(36 / 64)


def test_linear_layouts() -> None:
    x, weight, bias, of_inputs, of_outputs, _, _ = linear(4, 18, outputs=17)
    rest = of_inputs, of_outputs, None, False
    check(LINEAR, x.T.contiguous().T, weight.T.contiguous().T, bias, *rest)
    check(LINEAR, x[:1].expand(4, 18), weight, torch.randn(34)[::2], *rest)
    check(LINEAR, torch.randn(4, 36)[:, ::2], torch.randn(17, 36)[:, ::2], bias, *rest)
    check(LINEAR, torch.randn(3, 2, 18).transpose(0, 1), weight, bias, *rest)
    check(LINEAR, x, weight, bias, *rest, grad=torch.ones(()).expand(4, 17))
    check(LINEAR, x, weight, bias, of_inputs.int(), of_outputs.to(torch.uint8), None, True)


def test_linear_gradient_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over chunks of many rows."""
    check(LINEAR, *linear(300, 20, outputs=18, kind="shuffled"))
    monkeypatch.setattr(masked, "_PART_ENTRIES", 1)
    check(LINEAR, *linear(300, 20, outputs=18, kind="shuffled"))


def test_linear_masks() -> None:
    check_masks(LINEAR, *linear(4, 18, outputs=17))
    check_masks(LINEAR, *linear(4, 8, outputs=7, kind="mask"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_network(dtype: torch.dtype) -> None:
    check(FVSBN, *network(5, 37, dtype))


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (0, 3), (3, 2), (19, 70)])
def test_network_sizes(rows: int, size: int) -> None:
    check(FVSBN, *network(rows, size))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_network_data_dtypes(dtype: torch.dtype) -> None:
    x, weight, bias = network(4, 19)
    check(FVSBN, x.to(dtype), weight, bias)
    x = torch.rand(4, 19)
    check(FVSBN, x, weight.bfloat16(), bias.bfloat16())


def test_network_bad_values_and_samples_without_weight() -> None:
    x, weight, bias = network(4, 19)
    weight = torch.where(torch.ones(19, 19).tril(-1) > 0, weight, INF)
    x[1, 3], x[2, 18] = NAN, -0.5
    args = x, weight, bias
    outputs = forward(FVSBN, *args)
    assert outputs[0].isnan().tolist() == [False, True, True, False]
    grads = backward(FVSBN, torch.tensor([1.0, 0.0, 0.0, 1.0]), outputs, args, [True] * 3)
    assert all(g.isfinite().all() for g in grads)
    assert grads[0][1:3].eq(0).all()
    assert grads[1].triu().eq(0).all()


def test_network_extreme_logits() -> None:
    x, weight, bias = network(4, 19)
    bias[::2], bias[1::2] = 1e4, -1e4
    check(FVSBN, x, weight, bias)


def test_network_masks() -> None:
    check_masks(FVSBN, *network(4, 9))
