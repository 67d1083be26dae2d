"""The mixture kernels in Triton's interpreter against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from launchers import DTYPES, check, check_masks, forward

pytestmark = pytest.mark.interpreter

INF, NAN = math.inf, math.nan


def logistic(
    batch: int, channels: int, height: int, width: int, mixtures: int, levels: int = 256
) -> tuple[Tensor, Tensor]:
    """(params, x): components near the data, and pixels in both outermost bins."""
    rows = (10 if channels == 3 else 3) * mixtures
    params = torch.randn(batch, rows, height, width) * 0.5
    params[:, rows // 2 :] -= 2.0
    x = torch.randint(0, levels, (batch, channels, height, width))
    if x.numel():
        x[..., 0, 0], x[..., -1, -1] = 0, levels - 1
    return params, x * (2 / (levels - 1)) - 1


def check_logistic(
    params: Tensor, x: Tensor, mixtures: int, levels: int = 256, parameter_major: bool = False
) -> None:
    check("discretized_logistic_mixture_log_prob", params, x, mixtures, levels, parameter_major)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("parameter_major", [False, True])
def test_logistic(channels: int, parameter_major: bool, dtype: torch.dtype) -> None:
    params, x = logistic(2, channels, 3, 5, 4)
    x = x.double() if dtype == torch.float64 else x
    check_logistic(params.to(dtype), x, 4, parameter_major=parameter_major)


@pytest.mark.parametrize("levels", [2, 16, 1024])
@pytest.mark.parametrize("channels", [1, 3])
def test_logistic_levels(channels: int, levels: int) -> None:
    check_logistic(*logistic(2, channels, 3, 4, 2, levels), 2, levels)


@pytest.mark.parametrize("mixtures", [1, 13])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 31)])
def test_logistic_sizes(shape: tuple[int, int], mixtures: int) -> None:
    check_logistic(*logistic(2, 3, *shape, mixtures), mixtures)
    check_logistic(*logistic(1, 1, *shape, mixtures), mixtures)


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 3, 0, 2)])
def test_logistic_empty(shape: tuple[int, ...]) -> None:
    check_logistic(*logistic(*shape, 2), 2)


def test_logistic_layouts() -> None:
    params, x = logistic(3, 3, 4, 5, 2)
    check_logistic(params, x[:1], 2)
    check_logistic(params, x[0], 2)
    check_logistic(params.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0), x, 2)
    check_logistic(params.contiguous(memory_format=torch.channels_last), x, 2)
    check_logistic(params, x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 2)
    check_logistic(torch.randn(3, 20, 4, 10)[..., ::2], x, 2)


@pytest.mark.parametrize("log_scale", [-30.0, -7.5, 0.0, 20.0])
def test_logistic_extreme_scales(log_scale: float) -> None:
    params, x = logistic(2, 1, 3, 4, 2)
    params[:, 4:] = log_scale
    check_logistic(params, x, 2)


def test_logistic_extreme_logits() -> None:
    params, x = logistic(6, 1, 1, 2, 2)
    for i, (a, b) in enumerate(
        [(1e4, -1e4), (-INF, 0.0), (0.0, -INF), (-INF, -INF), (INF, 0.0), (INF, INF)]
    ):
        params[i, 0], params[i, 1] = a, b
    check_logistic(params, x, 2)


def test_logistic_marks_pixels_out_of_range() -> None:
    params, x = logistic(3, 3, 2, 2, 2)
    x[1, 0, 1, 1], x[2, 2, 0, 0] = 1.5, NAN
    (out,) = forward("discretized_logistic_mixture_log_prob", params, x, 2, 256, False)
    assert out.isnan().tolist() == [False, True, True]


def gaussian(*z_shape: int, components: int) -> list[Tensor]:
    size = z_shape[-1]
    return [
        torch.randn(z_shape) * 1.5,
        torch.randn(components, size),
        torch.randn(components, size) * 0.5,
        torch.randn(components),
    ]


def check_gaussian(*args: Tensor | None) -> None:
    check("gaussian_mixture_log_prob", *args)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("uniform", [False, True])
def test_gaussian(uniform: bool, dtype: torch.dtype, blocks: None) -> None:
    z, means, log_vars, logits = (t.to(dtype) for t in gaussian(3, 4, 5, components=7))
    check_gaussian(z, means, log_vars, None if uniform else logits)


@pytest.mark.parametrize("components", [1, 5, 300])
@pytest.mark.parametrize("size", [1, 3, 37])
def test_gaussian_sizes(size: int, components: int) -> None:
    check_gaussian(*gaussian(11, size, components=components))


def test_gaussian_long_and_empty() -> None:
    check_gaussian(*gaussian(5, 301, components=3))
    check_gaussian(*gaussian(2, components=3))
    check_gaussian(*gaussian(0, 4, components=3))


def test_gaussian_layouts(grouped: None) -> None:
    z, means, log_vars, logits = gaussian(6, 4, components=5)
    check_gaussian(z.T.contiguous().T, means, log_vars, logits)
    check_gaussian(z[:1].expand(6, 4), means.T.contiguous().T, log_vars, logits)
    check_gaussian(torch.randn(6, 8)[:, ::2], means, means[:1].expand(5, 4), logits)
    check_masks("gaussian_mixture_log_prob", z, means, log_vars, logits)


@pytest.mark.parametrize("log_var", [-80.0, -20.0, 20.0, 80.0])
def test_gaussian_extreme_variances(log_var: float) -> None:
    z, means, log_vars, logits = gaussian(6, 4, components=3)
    log_vars[0] = log_var
    check_gaussian(z, means, log_vars, logits)


@pytest.mark.parametrize(
    "logits",
    [(1e4, -1e4, 0.0), (-INF, 0.0, 1.0), (INF, 0.0, 1.0), (INF, -INF, INF), (-INF, -INF, -INF)],
)
def test_gaussian_extreme_logits(logits: tuple[float, ...]) -> None:
    z, means, log_vars, _ = gaussian(6, 4, components=3)
    check_gaussian(z, means, log_vars, torch.tensor(logits))
