"""The NADE kernels in Triton's interpreter against the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.cases_nade import binary_inputs, categorical_inputs, mixture_inputs
from torch import Tensor

pytest.importorskip("triton")

from dgm_fast.kernels import nade, nade_outputs, nade_sampling
from launchers import DTYPES, backward, check, check_masks, forward, relative_error

from dgm_fast import reference

pytestmark = pytest.mark.interpreter

BINARY, CATEGORICAL, MIXTURE = "nade_log_prob", "nade_categorical_log_prob", "rnade_log_prob"
INF, NAN = math.inf, math.nan


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a large problem: blocks of dimensions, groups of units, tiles in a program, chunks of rows."""
    monkeypatch.setattr(nade_outputs, "_STEPS", (3, 3))
    for name in ("_UNITS", "_BACKWARD_UNITS"):
        monkeypatch.setattr(nade_outputs, name, 32)
    for name in ("_TILE", "_BACKWARD_TILE"):
        monkeypatch.setattr(nade_outputs, name, 64)
    monkeypatch.setattr(nade_outputs, "spread", lambda block, rows: block)
    monkeypatch.setattr(nade_outputs, "_PART_ENTRIES", 1)
    monkeypatch.setattr(nade_outputs, "_ROW_ENTRIES", 1)
    monkeypatch.setattr(nade_outputs, "_ROWS", 5)


def mixture(
    rows: int,
    size: int,
    hidden: int,
    mixtures: int,
    dtype: torch.dtype = torch.float32,
    *,
    uniform: bool = False,
    scaled: bool = True,
) -> list[Any]:
    """The op's arguments up to ``mixture``."""
    build = mixture_inputs((rows,), size, hidden, mixtures, uniform=uniform, scaled=scaled)
    args: list[Any] = list(build(dtype))
    if uniform:
        args[3:3] = [None, None]
    return args if scaled else [*args, None]


@pytest.mark.parametrize("dtype", DTYPES)
def test_binary(dtype: torch.dtype) -> None:
    check(BINARY, *binary_inputs((3,), 11, 5)(dtype))


def test_binary_split(split: None) -> None:
    check(BINARY, *binary_inputs((7,), 10, 37)(torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_categorical(dtype: torch.dtype) -> None:
    check(CATEGORICAL, *categorical_inputs((3,), 9, 5, 3)(dtype))


def test_categorical_split(split: None) -> None:
    check(CATEGORICAL, *categorical_inputs((7,), 8, 35, 3)(torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize("uniform", [False, True])
def test_mixture(uniform: bool, code: int, dtype: torch.dtype) -> None:
    check(MIXTURE, *mixture(2, 9, 4, 3, dtype, uniform=uniform, scaled=not uniform), code)


@pytest.mark.parametrize("uniform", [False, True])
def test_mixture_split(uniform: bool, split: None) -> None:
    check(MIXTURE, *mixture(7, 7, 35, 2, uniform=uniform), int(uniform))


@pytest.mark.parametrize(("rows", "size", "hidden"), [(1, 1, 1), (0, 3, 2), (2, 1, 3), (9, 5, 1)])
def test_small_and_empty(rows: int, size: int, hidden: int) -> None:
    check(BINARY, *binary_inputs((rows,), size, hidden)(torch.float32))
    check(CATEGORICAL, *categorical_inputs((rows,), size, hidden, 1)(torch.float32))
    check(MIXTURE, *mixture(rows, size, hidden, 1), 0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_data_dtypes(dtype: torch.dtype) -> None:
    check(BINARY, *binary_inputs((2,), 4, 3, dtype)(torch.float32))
    check(CATEGORICAL, *categorical_inputs((2,), 4, 3, 2, dtype)(torch.float32))


def test_values_between_zero_and_one(split: None) -> None:
    check(BINARY, *binary_inputs((3,), 7, 5, soft=True)(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_real_data_of_any_size(dtype: torch.dtype) -> None:
    """A step of 1e6 leaves no trace in the pre-activations before it."""
    args = mixture(3, 8, 5, 2, dtype)
    args[0][0, 3], args[0][1, 6] = 1e6, -1e6
    check(MIXTURE, *args, 1)


def test_layouts(split: None) -> None:
    def strided(t: Any) -> Any:
        return t.repeat_interleave(2, -1)[..., ::2] if isinstance(t, Tensor) else t

    def transposed(t: Any) -> Any:
        return t.transpose(0, -1).contiguous().transpose(0, -1) if isinstance(t, Tensor) else t

    for change in (strided, transposed):
        check(BINARY, *map(change, binary_inputs((3,), 4, 3)(torch.float32)))
        check(CATEGORICAL, *map(change, categorical_inputs((3,), 4, 3, 2)(torch.float32)))
        check(MIXTURE, *map(change, mixture(3, 4, 3, 2)), 0)
    x, *weights = binary_inputs((3,), 4, 3)(torch.float32)
    check(BINARY, x[:1].expand(3, 4), *weights, grad=torch.ones(()).expand(3))


def test_masks() -> None:
    check_masks(BINARY, *binary_inputs((3,), 4, 3)(torch.float32))
    check_masks(CATEGORICAL, *categorical_inputs((3,), 4, 3, 2)(torch.float32))
    check_masks(MIXTURE, *mixture(2, 3, 3, 2), 0)
    check(BINARY, *binary_inputs((3,), 4, 3)(torch.float32), mask=[False] * 4)


def test_bad_values_make_their_sample_nan() -> None:
    x, *weights = binary_inputs((4,), 9, 3)(torch.float32)
    x[1, 2], x[3, 8] = 1.5, NAN
    assert forward(BINARY, x, *weights)[0].isnan().tolist() == [False, True, False, True]
    x, *weights = categorical_inputs((4,), 9, 3, 2)(torch.float32)
    x[1, 2], x[3, 8] = -1, 2
    assert forward(CATEGORICAL, x, *weights)[0].isnan().tolist() == [False, True, False, True]
    args = mixture(3, 4, 3, 2)
    args[0][1, 2] = NAN
    assert forward(MIXTURE, *args, 0)[0].isnan().tolist() == [False, True, False]


def test_samples_without_weight_need_no_data() -> None:
    grad = torch.tensor([1.0, 0.0, 1.0])
    x, *weights = binary_inputs((3,), 9, 3)(torch.float32)
    x[1, 2] = NAN
    args: tuple[Any, ...] = x, *weights
    grads = backward(BINARY, grad, forward(BINARY, *args), args, [True] * 4)
    assert all(g.isfinite().all() for g in grads)
    x, *weights = categorical_inputs((3,), 9, 3, 2)(torch.float32)
    x[1, 2] = 7
    args = x, *weights
    grads = backward(CATEGORICAL, grad, forward(CATEGORICAL, *args), args, [True] * 4)
    assert all(g.isfinite().all() for g in grads)
    args = *mixture(3, 4, 3, 2), 0
    args[0][1, 2] = NAN
    grads = backward(MIXTURE, grad, forward(MIXTURE, *args), args, [True] * 10)
    assert all(g.isfinite().all() for g in grads) and grads[0][1].eq(0).all()


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_extreme_weights(scale: float) -> None:
    x, *weights = binary_inputs((3,), 9, 4)(torch.float32)
    check(BINARY, x, *(scale * w for w in weights))
    x, *weights = categorical_inputs((3,), 5, 4, 2)(torch.float32)
    check(CATEGORICAL, x, *(scale * w for w in weights))


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize(
    "logits", [(1e4, -1e4, 0.0), (-INF, 0.0, 1.0), (INF, 0.0, INF), (-INF, -INF, -INF)]
)
def test_extreme_mixture_logits(logits: tuple[float, ...], code: int) -> None:
    args = mixture(3, 4, 3, 3)
    args[4][1] = torch.tensor(logits)
    args[4][2:, 1] = 0.5
    check(MIXTURE, *args, code)


@pytest.mark.parametrize("log_scale", [-60.0, -30.0, 30.0])
def test_extreme_scales(log_scale: float) -> None:
    args = mixture(3, 4, 3, 2, uniform=True)
    args[8][1, 0] = log_scale
    check(MIXTURE, *args, 0)
    args[8][1, 1] = log_scale
    outputs = forward(MIXTURE, *args, 1)
    grads = backward(
        MIXTURE, torch.ones(3), outputs, (*args, 1), [True] * 3 + [False] * 2 + [True] * 5
    )
    assert outputs[0].isfinite().all() and all(g.isfinite().all() for g in grads)


def given_values(x: Tensor, noise_shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    noise = torch.rand(noise_shape, generator=generator)
    return noise, x, torch.rand(x.shape, generator=generator) < 0.4


@pytest.fixture(params=["registers", "memory"])
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few hidden units, which a program keeps, and many; outputs at once and in several groups."""
    if request.param == "memory":
        monkeypatch.setattr(nade_sampling, "_UNITS", 32)
        monkeypatch.setattr(nade_sampling, "_TILE", 64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_samples(dtype: torch.dtype, units: None) -> None:
    x, *weights = binary_inputs((5,), 6, 37)(dtype)
    noise, values, given = given_values(x, (5, 6))
    for condition in ((None, None), (values, given)):
        out = nade.nade_sample_fwd(*weights, noise, *condition)
        assert torch.equal(out, reference.nade_sample(*weights, noise, *condition))


def test_categorical_samples(units: None) -> None:
    x, *weights = categorical_inputs((5,), 6, 35, 5)(torch.float32)
    noise, values, given = given_values(x, (5, 6))
    for condition in ((None, None), (values, given), (values.to(torch.uint8), given)):
        out = nade.nade_categorical_sample_fwd(*weights, noise, *condition)
        assert out.dtype == torch.int64
        assert torch.equal(out, reference.nade_categorical_sample(*weights, noise, *condition))


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize("uniform", [False, True])
def test_mixture_samples(uniform: bool, code: int, units: None) -> None:
    x, *weights = mixture(5, 4, 35, 3, torch.float64, uniform=uniform)
    noise, values, given = given_values(x, (5, 4, 2))
    for condition in ((None, None), (values, given)):
        out = nade.rnade_sample_fwd(*weights, noise, *condition, code)
        scale = weights.pop()
        expected = reference.rnade_sample(
            *weights,
            noise,
            *condition,
            activation_scale=scale,
            mixture=("gaussian", "logistic")[code],
        )
        weights.append(scale)
        assert relative_error(out, expected) < 1e-13
        if condition[1] is not None:
            assert torch.equal(out[given], values[given])


def test_samples_of_no_rows_and_bad_values() -> None:
    x, *weights = binary_inputs((3,), 4, 3)(torch.float32)
    assert nade.nade_sample_fwd(*weights, torch.rand(0, 4), None, None).shape == (0, 4)
    x[1, 1] = 2.0
    given = torch.tensor([False, True, False, False]).expand(3, 4)
    out = nade.nade_sample_fwd(*weights, torch.rand(3, 4), x, given)
    assert out.isnan().any(1).tolist() == [False, True, False]
    # The last class, and none beyond it, for noise of 1.
    x, *weights = categorical_inputs((3,), 4, 3, 5)(torch.float32)
    out = nade.nade_categorical_sample_fwd(*weights, torch.ones(3, 4), None, None)
    assert out.eq(4).all()
