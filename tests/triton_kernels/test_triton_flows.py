"""The kernels of couplings and splines in Triton's interpreter against the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from launchers import DTYPES, backward, check, check_masks, forward

from dgm_fast import ops

pytestmark = pytest.mark.interpreter

SPLINE, CDF, AFFINE = "rational_quadratic_spline", "logistic_mixture_cdf", "affine_coupling"


def spline(
    *shape: int, bins: int = 5, slopes: int | None = None, bound: float = 1.0
) -> list[Tensor]:
    """x, widths, heights, derivatives; some of x beyond the bound."""
    number = bins - 1 if slopes is None else slopes
    parameters = [torch.randn(*shape, k) for k in (bins, bins, number)]
    return [0.7 * bound * torch.randn(*shape), *parameters]


def options(
    bound: float | Tensor = 1.0,
    *,
    inverse: bool = False,
    ends: str = "fixed",
    tails: bool = True,
    parameterization: str = "nflows",
    sum_log_det: bool = False,
    minimum: float = 1e-3,
) -> tuple[Any, ...]:
    tensor = bound if isinstance(bound, Tensor) else None
    edge = 1.0 if isinstance(bound, Tensor) else bound
    domain = (-edge, edge, -edge, edge)
    codes = ops.SPLINE_ENDS[ends], tails
    return (
        tensor,
        inverse,
        *codes,
        *domain,
        minimum,
        minimum,
        minimum,
        ops.PARAMETERIZATIONS[parameterization],
        sum_log_det,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inverse", [False, True])
def test_spline(inverse: bool, dtype: torch.dtype) -> None:
    check(SPLINE, *(t.to(dtype) for t in spline(97, 11)), *options(inverse=inverse))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("ends", ["periodic", "free"])
def test_spline_ends(ends: str, inverse: bool) -> None:
    slopes = 5 if ends == "periodic" else 6
    check(SPLINE, *spline(40, 9, slopes=slopes), *options(inverse=inverse, ends=ends))


@pytest.mark.parametrize("parameterization", ["zuko", "distrax", "madnis"])
@pytest.mark.parametrize("inverse", [False, True])
def test_spline_parameterizations(parameterization: str, inverse: bool) -> None:
    arguments = options(2.0, inverse=inverse, parameterization=parameterization)
    check(SPLINE, *spline(60, 5, bound=2.0), *arguments)


def test_spline_of_shares() -> None:
    x, widths, heights, derivatives = spline(60, 5)
    arguments = [x, widths.softmax(-1), heights.softmax(-1), derivatives.exp()]
    for inverse in (False, True):
        check(SPLINE, *arguments, *options(inverse=inverse, parameterization="pyro"))


@pytest.mark.parametrize("bins", [1, 2, 8, 17])
def test_spline_sizes(bins: int) -> None:
    for shape in ((1,), (300,), (7, 3, 2)):
        x, *parameters = spline(*shape, bins=bins)
        outputs = forward(SPLINE, x, *parameters, *options())
        assert outputs[0].shape == outputs[1].shape == shape
    check(SPLINE, *spline(200, bins=bins), *options())


def test_spline_layouts() -> None:
    x, widths, heights, derivatives = spline(4, 3, 5)
    check(SPLINE, x, widths[:1], heights[0], derivatives[:, :1, :1], *options())
    packed = torch.randn(4, 3, 5, 14)
    check(SPLINE, x, *packed.split([5, 5, 4], -1), *options())
    image = torch.randn(4, 14, 3, 5).permute(0, 2, 3, 1)
    check(SPLINE, x, *image.split([5, 5, 4], -1), *options(sum_log_det=True))
    check(
        SPLINE,
        x.transpose(0, 2).contiguous().transpose(0, 2),
        widths,
        heights,
        derivatives,
        *options(),
    )
    check(SPLINE, x, widths, heights, derivatives, *options(torch.rand(3, 1) + 0.5))


def test_spline_masks_and_absent_gradients() -> None:
    arguments = *spline(30, 3), *options(sum_log_det=True)
    check_masks(SPLINE, *arguments)
    outputs = forward(SPLINE, *arguments)
    for grad in ((torch.randn(30, 3), None), (None, torch.randn(30))):
        check(SPLINE, *arguments, grad=grad)
    zeros = backward(SPLINE, (torch.zeros(30, 3), None), outputs, arguments, [True] * 4)
    assert not any(g.any() for g in zeros)


def test_spline_limits() -> None:
    x = torch.tensor([-math.inf, -1e30, -1.0, 1.0, 1e30, math.inf, math.nan])
    _, *parameters = spline(7)
    y, log_det = forward(SPLINE, x, *parameters, *options())
    torch.testing.assert_close(y, x, equal_nan=True)
    assert torch.equal(log_det[[0, 1, 4, 5, 6]], torch.zeros(5))
    grads = backward(
        SPLINE,
        (torch.full((7,), 2.0), torch.ones(7)),
        (y, log_det),
        (x, *parameters, *options()),
        [True] * 4,
    )
    outside = [0, 1, 4, 5, 6]
    assert torch.equal(grads[0][outside], torch.full((5,), 2.0))
    assert all(not g[outside].any() for g in grads[1:])
    y, _ = forward(SPLINE, x, *spline(7, slopes=6)[1:], *options(ends="free", tails=False))
    assert y.isnan().tolist() == [True, True, False, False, True, True, True]


def mixture(*shape: int, components: int = 4, unit: bool = False) -> list[Tensor]:
    x = torch.randn(*shape)
    x = 0.02 + 0.96 * torch.sigmoid(x) if unit else x
    size = (*shape, components)
    return [x, torch.randn(size), 1.5 * torch.randn(size), 0.5 * torch.randn(size) - 0.5]


@pytest.mark.parametrize("dtype", DTYPES)
def test_cdf(dtype: torch.dtype) -> None:
    check(CDF, *(t.to(dtype) for t in mixture(40, 9)), False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("components", [1, 4, 33])
def test_quantile(components: int, dtype: torch.dtype) -> None:
    check(CDF, *(t.to(dtype) for t in mixture(40, 5, components=components, unit=True)), True)


def test_cdf_layouts_and_masks() -> None:
    x, logits, means, log_scales = mixture(5, 3, 2)
    check(CDF, x, logits[:1], means[0], log_scales[:, :1], False)
    check_masks(CDF, x, logits, means, log_scales, False)
    z, *parameters = mixture(3, unit=True)
    z = torch.tensor([0.0, 1.0, 1.5])
    y, log_det = forward(CDF, z, *parameters, True)
    assert y[:2].tolist() == [-math.inf, math.inf] and y[2].isnan()
    assert log_det[:2].tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale", tuple(ops.SCALES))
def test_affine(scale: str, inverse: bool, dtype: torch.dtype) -> None:
    arguments = (torch.randn(9, 37).to(dtype) for _ in range(3))
    check(AFFINE, *arguments, None, inverse, 1, ops.SCALES[scale], 1.5)


@pytest.mark.parametrize("inverse", [False, True])
def test_affine_layouts(inverse: bool) -> None:
    x, hidden = torch.randn(3, 4, 5, 2), torch.randn(3, 8, 5, 2)
    tail = (inverse, 3, 0, 2.0)
    check(AFFINE, x, *hidden.chunk(2, 1), None, *tail)
    check(AFFINE, x, hidden[:, 0::2], hidden[:, 1::2], None, *tail)
    check(AFFINE, x, torch.randn(4, 1, 1), torch.randn(()), None, *tail)
    check(AFFINE, x, *hidden.chunk(2, 1), torch.rand(5, 2) < 0.5, *tail)
    check_masks(AFFINE, x, *hidden.chunk(2, 1), None, *tail)
    for grad in ((torch.randn(3, 4, 5, 2), None), (None, torch.randn(3))):
        check(AFFINE, x, *hidden.chunk(2, 1), None, *tail, grad=grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (70, 13), (4, 3, 6, 7), (2, 3, 1100)])
def test_actnorm(shape: tuple[int, ...], inverse: bool, dtype: torch.dtype) -> None:
    channels = shape[1]
    arguments = (torch.randn(s).to(dtype) for s in (shape, (channels,), (channels,)))
    check("actnorm", *arguments, inverse)


def test_actnorm_masks() -> None:
    check_masks("actnorm", torch.randn(4, 3, 5), torch.randn(3), torch.randn(3), False)
