"""The likelihood kernels in Triton's interpreter against the reference."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from launchers import DTYPES, backward, check, check_masks, forward

pytestmark = pytest.mark.interpreter


def bits(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.rand(shape) < 0.5).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bernoulli(dtype: torch.dtype, blocks: None) -> None:
    logits = (torch.randn(3, 4, 37) * 3).to(dtype)
    check("bernoulli_log_prob", logits, bits(3, 1, 37, dtype=dtype), 1)
    check_masks("bernoulli_log_prob", logits, torch.rand(3, 4, 37).to(dtype), 1)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_bernoulli_data_dtypes(dtype: torch.dtype) -> None:
    check("bernoulli_log_prob", torch.randn(3, 5), bits(3, 5, dtype=dtype), 1)


def test_bernoulli_layouts(grouped: None) -> None:
    logits = torch.randn(4, 3, 10)
    for layout in (
        logits.transpose(0, 1).contiguous().transpose(0, 1),
        torch.randn(4, 3, 20)[..., ::2],
        torch.randn(10, 3, 4).permute(2, 1, 0),
        torch.randn(1, 3, 10).expand(4, 3, 10),
    ):
        check("bernoulli_log_prob", layout, bits(4, 1, 10), 1)
    check("bernoulli_log_prob", logits, torch.rand(10), 1)
    check("bernoulli_log_prob", logits, torch.rand(3, 10), 2)
    check("bernoulli_log_prob", logits, torch.rand(4, 1, 1), 1)
    check("bernoulli_log_prob", logits, bits(4, 3, 10), 0)
    check("bernoulli_log_prob", logits, bits(10), 0)
    check("bernoulli_log_prob", logits, bits(4, 3, 10), 3)
    # Strides that no three dimensions describe.
    check(
        "bernoulli_log_prob", torch.randn(2, 2, 3, 4).permute(2, 1, 0, 3), torch.rand(3, 1, 2, 4), 1
    )
    check("bernoulli_log_prob", torch.randn(2, 3, 4).permute(0, 2, 1), torch.rand(2, 4, 3), 2)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 513), (1, 1100)])
def test_bernoulli_sizes(shape: tuple[int, ...]) -> None:
    check("bernoulli_log_prob", torch.randn(shape) * 4, bits(*shape), 1)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0,)])
def test_bernoulli_empty(shape: tuple[int, ...]) -> None:
    check("bernoulli_log_prob", torch.randn(shape), torch.rand(shape), 1)
    check("bernoulli_log_prob", torch.randn(shape), torch.rand(shape[-1:]), 1)


def test_bernoulli_extreme_logits() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 60.0], [1e4, -1e4, -0.0, -60.0]])
    x = torch.tensor([[0.0, 1.0, 1.0, 0.5], [1.0, 0.0, 0.0, 0.0]])
    check("bernoulli_log_prob", logits, x, 1)
    check("bernoulli_log_prob", logits, x, 0)


@pytest.mark.parametrize("size", [4.0, 8.0, 15.0, 30.0])
def test_bernoulli_confident_decoder(size: float) -> None:
    """Terms far below 1 survive: log(1 + e) of e below the rounding error of 1."""
    x = bits(3, 200)
    logits = (2 * x - 1) * (size + torch.rand(3, 200))
    check("bernoulli_log_prob", logits, x, 1)


def test_bernoulli_long_row() -> None:
    """More factors than one product may hold."""
    check("bernoulli_log_prob", torch.rand(1, 34000) * 1e-2, bits(1, 34000), 1)


def test_bernoulli_marks_values_outside_the_unit_interval() -> None:
    x = torch.tensor([[0.0, 1.0], [0.5, 1.5], [-0.1, 1.0], [1.0, 0.0]])
    (out,) = forward("bernoulli_log_prob", torch.randn(4, 2), x, 1)
    assert out.isnan().tolist() == [False, True, True, False]


def test_bernoulli_without_weight_writes_zeros() -> None:
    logits = torch.tensor([[float("nan"), 1.0], [0.5, 1.0]])
    grads = backward(
        "bernoulli_log_prob", torch.tensor([0.0, 1.0]), (), (logits, bits(2, 2), 1), [True, True]
    )
    assert grads[0][0].tolist() == [0.0, 0.0]
    assert grads[1][0].tolist() == [0.0, 0.0]
    assert grads[0][1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variance", ["unit", "scalar", "event", "own"])
def test_gaussian(dtype: torch.dtype, variance: str, blocks: None) -> None:
    log_var = {
        "unit": None,
        "scalar": torch.tensor(-0.7),
        "event": torch.randn(37),
        "own": torch.randn(3, 4, 37),
    }[variance]
    log_var = log_var if log_var is None else log_var.to(dtype)
    x, mean = torch.randn(3, 1, 37).to(dtype), torch.randn(3, 4, 37).to(dtype)
    check("gaussian_log_prob", x, mean, log_var, 1)


def test_gaussian_float_data_beside_reduced_parameters() -> None:
    mean, log_var = torch.randn(2, 3, 37).bfloat16()
    check("gaussian_log_prob", torch.randn(3, 37), mean, log_var, 1)
    check("gaussian_log_prob", torch.randn(37), mean, log_var, 1)


def test_gaussian_layouts(grouped: None) -> None:
    x, mean = torch.randn(4, 3, 10), torch.randn(4, 3, 10)
    for log_var in (torch.randn(4, 1, 1), torch.randn(1, 3, 10), torch.randn(1, 1, 1)):
        check("gaussian_log_prob", x, mean, log_var, 1)
    both = torch.randn(4, 3, 20)
    check("gaussian_log_prob", x, *both.chunk(2, -1), 1)
    check("gaussian_log_prob", x, torch.tensor(0.3), None, 1)
    check("gaussian_log_prob", x[:, :1], mean.transpose(0, 1).contiguous().transpose(0, 1), None, 2)
    check("gaussian_log_prob", x, mean[0], torch.randn(3, 10), 2)
    check("gaussian_log_prob", x, mean, torch.randn(10), 0)
    check(
        "gaussian_log_prob", torch.randn(2, 3, 4, 5), torch.randn(4, 1), torch.randn(2, 1, 4, 5), 2
    )
    check("gaussian_log_prob", x.permute(2, 1, 0), mean.permute(2, 0, 1).transpose(1, 2), None, 1)
    check_masks("gaussian_log_prob", x[:, :1].contiguous(), mean, torch.randn(10), 1)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 513), (0, 5), (3, 0)])
def test_gaussian_sizes(shape: tuple[int, ...]) -> None:
    args = torch.randn(shape), torch.randn(shape)
    check("gaussian_log_prob", *args, torch.randn(shape), 1)
    check("gaussian_log_prob", *args, torch.randn(()), 1)


def test_gaussian_extreme_variances() -> None:
    log_var = torch.tensor([[-20.0, 20.0, 30.0, 14.5], [-14.5, 5.0, -5.0, 80.0]])
    check("gaussian_log_prob", torch.randn(2, 4), torch.randn(2, 4), log_var, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 17])
def test_categorical(dtype: torch.dtype, classes: int, blocks: None) -> None:
    logits = (torch.randn(3, classes, 37) * 3).to(dtype)
    check("categorical_log_prob", logits, torch.randint(0, classes, (3, 37)), 1, 1)


@pytest.mark.parametrize(
    ("shape", "class_dim", "event_ndim"),
    [
        ((3, 5, 2, 4), 1, 2),
        ((3, 5, 2, 4), 1, 1),
        ((3, 5, 2, 4), 1, 0),
        ((3, 2, 5, 4), 2, 1),
        ((3, 2, 5, 4), 2, 2),
        ((3, 2, 5, 4), 2, 3),
        ((3, 2, 4, 5), 3, 0),
        ((3, 2, 4, 5), 3, 2),
        ((5, 3, 4), 0, 1),
        ((5, 3, 4), 0, 2),
        ((3, 300), 1, 0),
        ((1, 1, 1), 1, 1),
        ((2, 1100), 1, 0),
        ((1, 3, 1100), 1, 1),
        ((0, 5, 3), 1, 1),
        ((3, 5, 0), 1, 1),
    ],
)
def test_categorical_shapes(
    shape: tuple[int, ...], class_dim: int, event_ndim: int, grouped: None
) -> None:
    logits = torch.randn(shape) * 2
    data = shape[:class_dim] + shape[class_dim + 1 :]
    x = torch.randint(0, shape[class_dim], data)
    check("categorical_log_prob", logits, x, class_dim, event_ndim)
    if event_ndim < len(data) and 0 not in shape:
        lead = len(data) - event_ndim
        check("categorical_log_prob", logits, x[:1], class_dim, event_ndim)
        check("categorical_log_prob", logits, x[(0,) * lead], class_dim, event_ndim)


def test_categorical_layouts() -> None:
    x = torch.randint(0, 5, (3, 2, 4))
    for logits in (
        torch.randn(3, 2, 4, 5).permute(0, 3, 1, 2),
        torch.randn(4, 2, 5, 3).permute(3, 2, 1, 0),
        torch.randn(3, 5, 2, 8)[..., ::2],
        torch.randn(1, 5, 2, 4).expand(3, 5, 2, 4),
    ):
        check("categorical_log_prob", logits, x, 1, 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32, torch.float16])
def test_categorical_data_dtypes(dtype: torch.dtype) -> None:
    x = torch.randint(0, 7, (3, 6)).to(dtype)
    check("categorical_log_prob", torch.randn(3, 7, 6), x, 1, 1)


def test_categorical_booleans() -> None:
    check("categorical_log_prob", torch.randn(3, 2, 6), bits(3, 6, dtype=torch.bool), 1, 1)


def test_categorical_extreme_logits() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4 + 1, -1e4 - 1], [3.0, float("-inf"), 1.0]])
    check("categorical_log_prob", logits, torch.tensor([1, 2, 0]), 1, 0)


def test_categorical_marks_indices_out_of_range() -> None:
    logits = torch.randn(5, 4, 3)
    x = torch.randint(0, 4, (5, 3))
    x[1, 0], x[3, 2], x[4, 1] = 4, -1, 2**40
    (out,) = forward("categorical_log_prob", logits, x, 1, 1)
    assert out.isnan().tolist() == [False, True, False, True, True]
    fractional = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.5, 2.0], [0.0, float("nan"), 2.0]])
    (out,) = forward("categorical_log_prob", logits[:3], fractional, 1, 1)
    assert out.isnan().tolist() == [False, True, True]
    (out,) = forward(
        "categorical_log_prob", logits, torch.full((5, 3), 255, dtype=torch.uint8), 1, 1
    )
    assert out.isnan().all()
