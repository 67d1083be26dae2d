"""The linear-head kernels in Triton's interpreter against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from dgm_fast.kernels import _gemm
from launchers import DTYPES, backward, check, check_masks, forward

pytestmark = pytest.mark.interpreter

BERNOULLI, CATEGORICAL = "linear_bernoulli_log_prob", "linear_categorical_log_prob"
VARIABLE, CLASS, PIXEL = 0, 1, 2
INF = math.inf


def layer(
    inputs: int, rows: int, dtype: torch.dtype = torch.float32, scale: float = 1.5
) -> tuple[Tensor, Tensor]:
    weight = torch.randn(rows, inputs) * (scale / max(inputs, 1) ** 0.5)
    return weight.to(dtype), (torch.randn(rows) * 0.5).to(dtype)


def bits(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(shape) < 0.4).to(dtype)


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of logit gradients of 16 rows, and of part of the columns."""
    monkeypatch.setattr(_gemm, "_CHUNK_BYTES", (1024, 1024))
    monkeypatch.setattr(_gemm, "_CHUNK_ROWS", 16)
    monkeypatch.setattr(_gemm, "_ROW_STEP", 16)
    monkeypatch.setattr(_gemm, "_COLUMN_STEP", 16)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bernoulli(dtype: torch.dtype, bias: bool, blocks: None) -> None:
    h = torch.randn(3, 7, 19).to(dtype)
    weight, b = layer(19, 70, dtype)
    check(BERNOULLI, h, weight, b if bias else None, bits(3, 1, 70, dtype=dtype))
    check(BERNOULLI, h, weight, b if bias else None, torch.rand(3, 7, 70).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bernoulli_chunks(dtype: torch.dtype, chunked: None) -> None:
    h = torch.randn(37, 2, 5).to(dtype)
    weight, bias = layer(5, 35, dtype)
    assert _gemm.chunk_shape(74, 35, 1, h.element_size()) < (74, 35)
    check(BERNOULLI, h, weight, bias, bits(37, 1, 35))
    check_masks(BERNOULLI, h, weight, bias, torch.rand(37, 2, 35))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_bernoulli_data_dtypes(dtype: torch.dtype) -> None:
    check(BERNOULLI, torch.randn(3, 5), *layer(5, 9), bits(3, 9, dtype=dtype))


@pytest.mark.parametrize("x_shape", [(9,), (1, 1, 9), (4, 1, 9), (1, 3, 9), (4, 3, 9)])
def test_bernoulli_shared_data(x_shape: tuple[int, ...]) -> None:
    args = torch.randn(4, 3, 5), *layer(5, 9), torch.rand(x_shape)
    check(BERNOULLI, *args)
    check_masks(BERNOULLI, *args)


@pytest.mark.parametrize("h_shape", [(5,), (1, 5), (1, 3, 5)])
def test_bernoulli_shared_inputs(h_shape: tuple[int, ...]) -> None:
    check(BERNOULLI, torch.randn(h_shape), *layer(5, 9), torch.rand(4, 3, 9))


def test_bernoulli_layouts(grouped: None) -> None:
    weight, bias = layer(10, 24)
    h = torch.randn(4, 3, 10)
    x = torch.rand(4, 3, 24)
    for layout in (
        h.transpose(0, 1).contiguous().transpose(0, 1),
        torch.randn(4, 3, 20)[..., ::2],
        torch.randn(10, 3, 4).permute(2, 1, 0),
        torch.randn(1, 3, 10).expand(4, 3, 10),
        torch.randn(4, 3, 1).expand(4, 3, 10),
        torch.randn(4, 3, 11)[..., 1:],
    ):
        check(BERNOULLI, layout, weight, bias, x)
    for layout in (
        torch.randn(10, 24).t(),
        torch.randn(24, 30)[:, ::3],
        torch.randn(24, 11)[:, 1:],
        torch.randn(1, 10).expand(24, 10),
    ):
        check(BERNOULLI, h, layout, torch.randn(48)[::2], x)
    for layout in (
        x.transpose(0, 1).contiguous().transpose(0, 1),
        torch.rand(24, 3, 4).permute(2, 1, 0),
        torch.rand(4, 3, 1).expand(4, 3, 24),
        torch.rand(4, 1, 48)[..., ::2],
    ):
        check(BERNOULLI, h, weight, bias, layout)
    # Positions of x that no two strides describe.
    check(
        BERNOULLI, torch.randn(2, 3, 2, 10), weight, bias, torch.rand(3, 2, 2, 24).transpose(0, 1)
    )


@pytest.mark.parametrize(("inputs", "size"), [(1, 1), (1, 65), (65, 1), (16, 64), (33, 130)])
def test_bernoulli_sizes(inputs: int, size: int) -> None:
    for lead in ((), (1,), (2, 9)):
        check(BERNOULLI, torch.randn(*lead, inputs), *layer(inputs, size), bits(*lead, size))


@pytest.mark.parametrize(("rows", "inputs", "size"), [(0, 3, 5), (4, 3, 0), (4, 0, 5), (0, 0, 0)])
def test_bernoulli_empty(rows: int, inputs: int, size: int) -> None:
    h, x = torch.randn(rows, inputs), torch.rand(rows, size)
    check(BERNOULLI, h, *layer(inputs, size), x)
    check(BERNOULLI, h, *layer(inputs, size), torch.rand(size))


def test_bernoulli_extreme_logits() -> None:
    h = torch.tensor([[1e2], [-1e2], [0.0]])
    weight = torch.tensor([[1e2], [-1e2], [1e2], [0.3]])
    for dtype in DTYPES:
        x = torch.tensor([0.0, 0.0, 1.0, 0.5]).expand(3, 4).to(dtype)
        check(BERNOULLI, h.to(dtype), weight.to(dtype), torch.zeros(4).to(dtype), x)


@pytest.mark.parametrize("size", [8.0, 30.0])
def test_bernoulli_confident_decoder(size: float) -> None:
    """Terms far below 1 survive: log(1 + e) of e below the rounding error of 1."""
    x = bits(3, 200)
    check(BERNOULLI, torch.eye(3), (2 * x - 1).t() * (size + torch.rand(200, 3)), None, x)


def test_bernoulli_zero_logits() -> None:
    """A tile of factors 2 stays in range."""
    args = torch.randn(2, 3), torch.zeros(130, 3), None, bits(2, 130)
    check(BERNOULLI, *args)
    (out,) = forward(BERNOULLI, *args)
    torch.testing.assert_close(out, torch.full((2,), -130 * math.log(2)))


def test_bernoulli_marks_values_outside_the_unit_interval() -> None:
    x = torch.tensor([[0.0, 1.0], [0.5, 1.5], [-0.1, 1.0], [1.0, 0.0], [0.0, math.nan]])
    (out,) = forward(BERNOULLI, torch.randn(5, 3), *layer(3, 2), x)
    assert out.isnan().tolist() == [False, True, True, False, True]


def test_small_gradients_in_float16() -> None:
    """A mean over many samples: logit gradients below the normal range of float16."""
    grad = torch.full((5,), 2e-6)
    h = torch.randn(5, 8).half() * 100
    weight, bias = layer(8, 60, torch.float16)
    check(BERNOULLI, h, weight * 0.01, bias, torch.rand(5, 60), grad=grad)
    x = torch.randint(0, 6, (5, 10))
    check(CATEGORICAL, h, weight * 0.01, bias, x, 6, VARIABLE, grad=grad)


def test_samples_without_weight_write_zeros() -> None:
    h = torch.randn(2, 3)
    h[0] = math.inf
    grad = torch.tensor([0.0, 1.0])
    weight, bias = layer(3, 4)
    for op, args in (
        (BERNOULLI, (h, weight, bias, bits(2, 4))),
        (CATEGORICAL, (h, weight, bias, torch.randint(0, 2, (2, 2)), 2, VARIABLE)),
    ):
        mask = [i in (0, 2) for i in range(4 if op == BERNOULLI else 3)]
        grads = backward(op, grad, (), args, mask)
        assert grads[0][0].tolist() == [0.0, 0.0, 0.0]
        assert grads[0].isfinite().all() and grads[2].isfinite().all()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("packing", [VARIABLE, CLASS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_categorical(dtype: torch.dtype, packing: int, bias: bool, blocks: None) -> None:
    weight, b = layer(19, 9 * 17, dtype)
    x = torch.randint(0, 17, (3, 1, 9))
    args = torch.randn(3, 7, 19).to(dtype), weight, b if bias else None, x, 17, packing
    check(CATEGORICAL, *args)
    if dtype == torch.bfloat16:
        check_masks(CATEGORICAL, *args)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_categorical_pixels(dtype: torch.dtype, bias: bool, blocks: None) -> None:
    weight, b = layer(9, 17, dtype)
    x = torch.randint(0, 17, (3, 21))
    args = torch.randn(3, 9, 21).to(dtype), weight, b if bias else None, x, 17, PIXEL
    check(CATEGORICAL, *args)
    if dtype == torch.float16:
        check_masks(CATEGORICAL, *args)


@pytest.mark.parametrize("packing", [VARIABLE, CLASS, PIXEL])
@pytest.mark.parametrize("classes", [1, 2, 3, 33, 100, 256, 257, 300])
def test_categorical_classes(packing: int, classes: int) -> None:
    """Few to a tile, one tile, and tiles whose sums run along."""
    entries = 1 if packing == PIXEL else 3
    weight, bias = layer(5, entries * classes)
    h = torch.randn(2, 5, 3) if packing == PIXEL else torch.randn(2, 5)
    x = torch.randint(0, classes, (2, 3))
    check(CATEGORICAL, h, weight, bias, x, classes, packing)


@pytest.mark.parametrize("packing", [VARIABLE, CLASS, PIXEL])
@pytest.mark.parametrize("classes", [5, 259])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_categorical_chunks(dtype: torch.dtype, classes: int, packing: int, chunked: None) -> None:
    entries = 1 if packing == PIXEL else 6
    weight, bias = layer(4, entries * classes, dtype)
    # Several images a chunk, and several chunks an image.
    for lead in ((5, 7), (2, 37)) if packing == PIXEL else ((37,),):
        h = torch.randn(lead[0], 4, *lead[1:]) if packing == PIXEL else torch.randn(*lead, 4)
        x = torch.randint(0, classes, lead if packing == PIXEL else (*lead, entries))
        check(CATEGORICAL, h.to(dtype), weight, bias, x, classes, packing)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32, torch.bool])
def test_categorical_data_dtypes(dtype: torch.dtype) -> None:
    x = torch.randint(0, 2, (3, 4)).to(dtype)
    check(CATEGORICAL, torch.randn(3, 5), *layer(5, 8), x, 2, VARIABLE)
    check(CATEGORICAL, torch.randn(3, 5, 4), *layer(5, 2), x, 2, PIXEL)


@pytest.mark.parametrize("x_shape", [(6,), (1, 1, 6), (4, 1, 6), (1, 3, 6), (4, 3, 6)])
def test_categorical_shared_data(x_shape: tuple[int, ...]) -> None:
    x = torch.randint(0, 3, x_shape)
    check(CATEGORICAL, torch.randn(4, 3, 5), *layer(5, 18), x, 3, CLASS)
    check(CATEGORICAL, torch.randn(4, 5, 6), *layer(5, 3), x.view(-1, 6)[:1], 3, PIXEL)


def test_categorical_layouts(grouped: None) -> None:
    weight, bias = layer(10, 12)
    x = torch.randint(0, 3, (4, 2, 4))
    h = torch.randn(4, 2, 10)
    for packing in (VARIABLE, CLASS):
        for layout in (torch.randn(4, 2, 20)[..., ::2], torch.randn(10, 2, 4).permute(2, 1, 0)):
            check(CATEGORICAL, layout, weight, bias, x, 3, packing)
        for layout in (torch.randn(10, 12).t(), torch.randn(12, 20)[:, ::2]):
            check(CATEGORICAL, h, layout, torch.randn(24)[::2], x, 3, packing)
        for layout in (
            torch.randint(0, 3, (4, 2, 8))[..., ::2],
            torch.randint(0, 3, (4, 2, 4)).permute(2, 1, 0).contiguous().permute(2, 1, 0),
            torch.randint(0, 3, (4, 2, 1)).expand(4, 2, 4),
        ):
            check(CATEGORICAL, h, weight, bias, layout, 3, packing)
    weight, bias = layer(10, 3)
    x = torch.randint(0, 3, (4, 16))
    for layout in (
        torch.randn(4, 16, 10).mT,
        torch.randn(4, 20, 32)[:, ::2, ::2],
        torch.randn(10, 4, 16).transpose(0, 1),
        torch.randn(1, 10, 16).expand(4, 10, 16),
    ):
        check(CATEGORICAL, layout, weight, bias, x, 3, PIXEL)
        check(CATEGORICAL, layout, weight, bias, torch.randint(0, 3, (16, 4)).t(), 3, PIXEL)


@pytest.mark.parametrize("packing", [VARIABLE, CLASS, PIXEL])
def test_categorical_sizes(packing: int) -> None:
    for inputs, size, rows in ((1, 1, 1), (1, 70, 2), (33, 1, 1), (16, 16, 17)):
        if packing == PIXEL:
            h, weights = torch.randn(rows, inputs, size), layer(inputs, 2)
        else:
            h, weights = torch.randn(rows, inputs), layer(inputs, 2 * size)
        check(CATEGORICAL, h, *weights, torch.randint(0, 2, (rows, size)), 2, packing)
    if packing != PIXEL:
        check(CATEGORICAL, torch.randn(3), *layer(3, 8), torch.tensor([3, 0]), 4, packing)


@pytest.mark.parametrize("packing", [VARIABLE, CLASS, PIXEL])
@pytest.mark.parametrize(("rows", "inputs", "size"), [(0, 3, 5), (4, 3, 0), (4, 0, 5)])
def test_categorical_empty(rows: int, inputs: int, size: int, packing: int) -> None:
    x = torch.randint(0, 4, (rows, size))
    if packing == PIXEL:
        check(CATEGORICAL, torch.randn(rows, inputs, size), *layer(inputs, 4), x, 4, PIXEL)
    else:
        check(CATEGORICAL, torch.randn(rows, inputs), *layer(inputs, 4 * size), x, 4, packing)


@pytest.mark.parametrize("classes", [4, 259])
def test_categorical_extreme_logits(classes: int) -> None:
    bias = torch.randn(classes)
    bias[:4] = torch.tensor([1e4, -1e4, -INF, 0.0])
    x = torch.tensor([[0], [1], [3]])
    args = torch.randn(3, 2), torch.randn(classes, 2), bias, x, classes, VARIABLE
    check(CATEGORICAL, *args)
    # A class that cannot be, picked: value -inf, finite gradients.
    (out,) = forward(CATEGORICAL, *args[:3], torch.tensor([[0], [2], [3]]), *args[4:])
    assert out.isfinite().tolist() == [True, False, True] and out[1] == -INF
    check(CATEGORICAL, *args[:3], torch.tensor([[0], [2], [3]]), *args[4:])
    # Classes beyond the first tile of them alone.
    low = torch.full((classes,), -INF)
    low[-1] = 0.5
    check(CATEGORICAL, *args[:2], low, torch.full((3, 1), classes - 1), classes, VARIABLE)
    (out,) = forward(CATEGORICAL, *args[:2], torch.full((classes,), -INF), x, classes, VARIABLE)
    assert out.isnan().all()


@pytest.mark.parametrize("classes", [4, 259])
def test_categorical_marks_indices_out_of_range(classes: int) -> None:
    x = torch.randint(0, 4, (5, 3))
    x[1, 0], x[3, 2], x[4, 1] = classes, -1, 2**40
    h = torch.randn(5, 2)
    for packing in (VARIABLE, CLASS):
        (out,) = forward(CATEGORICAL, h, *layer(2, 3 * classes), x, classes, packing)
        assert out.isnan().tolist() == [False, True, False, True, True]
    weights = layer(2, classes)
    (out,) = forward(CATEGORICAL, torch.randn(5, 2, 3), *weights, x, classes, PIXEL)
    assert out.isnan().tolist() == [False, True, False, True, True]
    fractional = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.5, 2.0], [0.0, math.nan, 2.0]])
    (out,) = forward(CATEGORICAL, torch.randn(3, 2, 3), *weights, fractional, classes, PIXEL)
    assert out.isnan().tolist() == [False, True, True]


def test_probabilities_sum_to_one() -> None:
    weight, bias = layer(6, 300)
    x = torch.arange(300).view(300, 1)
    h = torch.randn(6)
    (out,) = forward(CATEGORICAL, h.expand(300, 6), weight, bias, x, 300, VARIABLE)
    torch.testing.assert_close(out.exp().sum(), torch.tensor(1.0))


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_chunks_stay_small(itemsize: int) -> None:
    """Of a large problem's logits, less than a tenth have their gradients in memory at a time."""
    for rows, width, group in (
        (100_000, 784, 1),
        (6400, 10_000, 1),
        (200, 784 * 256, 256),
        (64 * 784, 1000, 1000),
        (1_000_000, 17 * 784, 17),
        (50_000, 50_257, 50_257),
    ):
        count, columns = _gemm.chunk_shape(rows, width, group, itemsize)
        assert columns % group == 0 and 0 < columns <= width
        size = count * columns * itemsize
        assert size <= max(rows * width * itemsize / 10, 1.3 * 2**22)
        assert size <= 2 * 2**26


def test_float32_is_multiplied_as_f_linear_does(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = layer(4, 6)
    before = torch.backends.cuda.matmul.fp32_precision
    assert _gemm.precision(weight) == "ieee"
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert _gemm.precision(weight) == "tf32"
        assert _gemm.precision(weight.double()) == "ieee"
        check(BERNOULLI, torch.randn(200, 4), weight, bias, bits(200, 6))
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
