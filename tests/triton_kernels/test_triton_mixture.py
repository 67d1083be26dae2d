"""The mixture kernels in Triton's interpreter against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from dgm_fast.kernels import gaussian_mixture
from launchers import DTYPES, backward, check, check_masks, forward

pytestmark = pytest.mark.interpreter

LOGISTIC, GAUSSIAN = "discretized_logistic_mixture_log_prob", "gaussian_mixture_log_prob"
INF, NAN = math.inf, math.nan


def pixels(*shape: int, levels: int = 256) -> Tensor:
    """Levels in [-1, 1], with both outermost ones in every image."""
    x = torch.randint(0, levels, shape)
    if x.numel():
        x[..., 0, 0], x[..., -1, -1] = 0, levels - 1
    return x * (2 / (levels - 1)) - 1


def logistic(
    batch: int, channels: int, height: int, width: int, mixtures: int, levels: int = 256
) -> tuple[Tensor, Tensor]:
    """(params, x): components near the data, most of them narrow."""
    rows = (10 if channels == 3 else 3) * mixtures
    params = torch.randn(batch, rows, height, width) * 0.5
    # Which rows are log-scales depends on the packing; a shift of the later half suits both.
    params[:, rows // 2 :] -= 2.0
    return params, pixels(batch, channels, height, width, levels=levels)


def check_logistic(
    params: Tensor, x: Tensor, mixtures: int, levels: int = 256, parameter_major: bool = False
) -> None:
    check(LOGISTIC, params, x, mixtures, levels, parameter_major)


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


@pytest.mark.parametrize("mixtures", [1, 13, 40])
@pytest.mark.parametrize("shape", [(1, 1), (5, 17)])
def test_logistic_sizes(shape: tuple[int, int], mixtures: int) -> None:
    """One block of mixtures, and several; several blocks of pixels."""
    check_logistic(*logistic(2, 3, *shape, mixtures), mixtures)
    check_logistic(*logistic(1, 1, *shape, mixtures), mixtures)


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 3, 0, 2), (2, 1, 2, 0)])
def test_logistic_empty(shape: tuple[int, ...]) -> None:
    check_logistic(*logistic(*shape, 2), 2)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_logistic_data_dtypes(dtype: torch.dtype) -> None:
    params, x = logistic(2, 1, 3, 4, 2)
    check_logistic(params, (x > 0).to(dtype), 2)


def test_logistic_layouts() -> None:
    params, x = logistic(3, 3, 4, 5, 2)
    check_logistic(params, x[:1], 2)
    check_logistic(params, x[0], 2)
    check_logistic(torch.randn(1, 6, 4, 5), x[:, :1], 2)
    check_logistic(params[:1].expand(3, 20, 4, 5), x, 2)
    check_logistic(params.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0), x, 2)
    check_logistic(params.contiguous(memory_format=torch.channels_last), x, 2)
    check_logistic(params, x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 2)
    check_logistic(torch.randn(3, 20, 4, 10)[..., ::2], x, 2)
    check_logistic(params.transpose(2, 3), pixels(3, 3, 5, 4), 2)
    unasked = [False]
    check(LOGISTIC, params, x, 2, 256, False, mask=unasked)
    check(LOGISTIC, params, x, 2, 256, False, grad=torch.ones(()).expand(3))


@pytest.mark.parametrize("log_scale", [-30.0, -7.5, 0.0, 20.0])
@pytest.mark.parametrize("levels", [2, 256])
def test_logistic_extreme_scales(log_scale: float, levels: int) -> None:
    params, x = logistic(2, 1, 3, 4, 2, levels)
    params[:, 4:] = log_scale
    check_logistic(params, x, 2, levels)


def test_logistic_huge_scales() -> None:
    """Inverse scales that underflow: the density, whose derivative by the log-scale is -1."""
    params, x = logistic(1, 1, 1, 3, 1)
    params[:, 2:] = 120.0
    args = (params, x[..., 1:2].expand(1, 1, 1, 3), 1, 256, False)
    (out,) = forward(LOGISTIC, *args)
    expected = torch.tensor([3 * (-2 * math.log(2) - 120 - math.log(127.5))])
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=0)
    (grad,) = backward(LOGISTIC, torch.ones(1), (), args, [True])
    assert grad[0, 2].eq(-1).all() and grad[0, :2].eq(0).all()


def test_logistic_below_the_clamp_gets_no_gradient() -> None:
    params, x = logistic(1, 1, 2, 3, 1)
    params[:, 2, 0] = -7.1
    (grad,) = backward(LOGISTIC, torch.ones(1), (), (params, x, 1, 256, False), [True])
    assert grad[0, 2, 0].eq(0).all() and grad[0, 2, 1].ne(0).all()


@pytest.mark.parametrize("log_scale", [-1.0, -2.0, -4.0])
def test_logistic_confident_model(log_scale: float) -> None:
    """Probabilities close to 1: what is missing is below the rounding error of 1."""
    x = pixels(2, 1, 6, 8, levels=2)
    scales = log_scale - 0.5 * torch.rand(x.shape)
    check_logistic(torch.cat([torch.zeros_like(x), 1.2 * x, scales], 1), x, 1, 2)


def test_logistic_far_component() -> None:
    """A mixture without a share gets plain zeros, even where its derivatives overflow."""
    params, x = logistic(2, 1, 2, 3, 2)
    params[:, 2] = 1e30
    args = (params, x, 2, 256, False)
    (out,) = forward(LOGISTIC, *args)
    assert out.isfinite().all()
    (grad,) = backward(LOGISTIC, torch.ones(2), (), args, [True])
    assert grad.isfinite().all() and grad[:, [2, 4]][:, :, 0, 1].eq(0).all()


def test_logistic_extreme_logits() -> None:
    params, x = logistic(7, 1, 1, 2, 2)
    rows = [(1e4, -1e4), (1e4, 1e4 + 1), (-INF, 0.0), (0.0, -INF), (-INF, -INF), (INF, 0.0)]
    for i, (a, b) in enumerate([*rows, (INF, INF)]):
        params[i, 0], params[i, 1] = a, b
    check_logistic(params, x, 2)
    args = (params, x, 2, 256, False)
    (out,) = forward(LOGISTIC, *args)
    assert out.isinf().tolist() == [False] * 4 + [True] + [False] * 2
    (grad,) = backward(LOGISTIC, torch.ones(7), (), args, [True])
    assert grad[4].eq(0).all() and grad[5:, :2].eq(0).all()


def test_logistic_marks_pixels_out_of_range() -> None:
    params, x = logistic(4, 3, 2, 2, 2)
    x[1, 0, 1, 1], x[2, 2, 0, 0], x[3, 1, 0, 1] = 1.5, NAN, -1.01
    (out,) = forward(LOGISTIC, params, x, 2, 256, False)
    assert out.isnan().tolist() == [False, True, True, True]


def test_logistic_without_weight_writes_zeros() -> None:
    params, x = logistic(2, 3, 2, 2, 2)
    params[0, 5] = NAN
    args = (params, x, 2, 256, False)
    (grad,) = backward(LOGISTIC, torch.tensor([0.0, 1.0]), (), args, [True])
    assert grad[0].eq(0).all() and grad[1].isfinite().all()


def test_logistic_sums_to_one() -> None:
    params = torch.randn(1, 6, 1, 1, dtype=torch.float64)
    x = torch.arange(16, dtype=torch.float64).view(16, 1, 1, 1) / 7.5 - 1
    (out,) = forward(LOGISTIC, params, x, 2, 16, False)
    torch.testing.assert_close(out.exp().sum().item(), 1.0, rtol=1e-12, atol=0)


def gaussian(*z_shape: int, components: int) -> list[Tensor]:
    size = z_shape[-1]
    return [
        torch.randn(z_shape) * 1.5,
        torch.randn(components, size),
        torch.randn(components, size) * 0.5,
        torch.randn(components),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("uniform", [False, True])
def test_gaussian(uniform: bool, dtype: torch.dtype, blocks: None) -> None:
    z, means, log_vars, logits = (t.to(dtype) for t in gaussian(3, 4, 5, components=7))
    check(GAUSSIAN, z, means, log_vars, None if uniform else logits)


@pytest.mark.parametrize("components", [1, 2, 5, 150])
@pytest.mark.parametrize("size", [1, 3, 35])
def test_gaussian_sizes(size: int, components: int, grouped: None) -> None:
    """Sums over dimensions and components in one run or block, and in several."""
    check(GAUSSIAN, *gaussian(11, size, components=components))


def test_gaussian_many_components(grouped: None) -> None:
    check(GAUSSIAN, *gaussian(9, 2, components=1030))


@pytest.mark.parametrize("z_shape", [(2,), (1, 1), (0, 4), (3, 0)])
def test_gaussian_small_and_empty(z_shape: tuple[int, ...]) -> None:
    check(GAUSSIAN, *gaussian(*z_shape, components=3))


def test_gaussian_gradients_in_parts(monkeypatch: pytest.MonkeyPatch, grouped: None) -> None:
    """More dimensions than a program keeps the gradients of, and few chunks for want of room."""
    monkeypatch.setattr(gaussian_mixture, "_MAX_GRADIENTS", 32)
    monkeypatch.setattr(gaussian_mixture, "_MAX_ENTRIES", 1)
    check(GAUSSIAN, *gaussian(9, 35, components=3))


def test_gaussian_layouts(grouped: None) -> None:
    z, means, log_vars, logits = gaussian(12, 4, components=5)
    check(GAUSSIAN, z.T.contiguous().T, means, log_vars, logits)
    check(GAUSSIAN, z[:1].expand(12, 4), means.T.contiguous().T, log_vars, logits)
    check(GAUSSIAN, torch.randn(12, 8)[:, ::2], means, means[:1].expand(5, 4), logits)
    check(GAUSSIAN, torch.randn(3, 2, 4).transpose(0, 1), means, log_vars, torch.randn(10)[::2])
    # Leading dimensions that no two dimensions describe.
    check(GAUSSIAN, torch.randn(2, 3, 2, 4).permute(2, 1, 0, 3), means, log_vars, None)
    check(GAUSSIAN, z, means, log_vars, logits, grad=torch.ones(()).expand(12))
    check(GAUSSIAN, z, means, log_vars, logits, mask=[False] * 4)


@pytest.mark.parametrize("uniform", [False, True])
def test_gaussian_masks(uniform: bool, grouped: None) -> None:
    z, means, log_vars, logits = gaussian(6, 4, components=5)
    check_masks(GAUSSIAN, z, means, log_vars, None if uniform else logits)


@pytest.mark.parametrize("log_var", [-80.0, -20.0, 20.0, 80.0])
def test_gaussian_extreme_variances(log_var: float) -> None:
    z, means, log_vars, logits = gaussian(6, 4, components=3)
    log_vars[0] = log_var
    check(GAUSSIAN, z, means, log_vars, logits)


def test_gaussian_capped_variance() -> None:
    """Beyond the cap the quadratic term keeps its value there and has no gradient."""
    z, means = torch.full((2, 1), 1e-19), torch.zeros(1, 1)
    log_vars = torch.full((1, 1), -90.0)
    check(GAUSSIAN, z, means, log_vars, None)
    args = (z, means, log_vars, None)
    outputs = forward(GAUSSIAN, *args)
    grads = backward(GAUSSIAN, torch.ones(2), outputs, args, [True, True, True, False])
    assert grads[2].item() == -1.0
    torch.testing.assert_close(grads[1].item(), 2 * 1e-19 * math.exp(86), rtol=1e-5, atol=0)


def test_gaussian_far_from_the_origin() -> None:
    """Differences do not cancel: data at 1000 with standard deviations around 1."""
    z, means, log_vars, logits = gaussian(6, 4, components=3)
    check(GAUSSIAN, z + 1000, means + 1000, log_vars, logits)


def test_gaussian_far_component() -> None:
    """Distances whose squares overflow: no responsibility, and zeros for gradients."""
    z, means, log_vars, logits = gaussian(4, 3, components=3)
    means[1] = 1e25
    args = (z, means, log_vars, logits)
    outputs = forward(GAUSSIAN, *args)
    grads = backward(GAUSSIAN, torch.ones(4), outputs, args, [True] * 4)
    assert outputs[0].isfinite().all() and all(g.isfinite().all() for g in grads)
    assert grads[1][1].eq(0).all() and grads[2][1].eq(0).all()


def test_gaussian_responsibilities_are_normalised() -> None:
    """Log-densities of -1e5, which round at 1e-2: weights still sum to 1, and their gradients to 0."""
    z, means, log_vars, logits = gaussian(8, 3, components=20)
    args = (z + 300, means * 1e-3, torch.zeros_like(log_vars), logits)
    outputs = forward(GAUSSIAN, *args)
    assert outputs[0].lt(-1e5).all()
    mask = [True, True, False, True]
    g_z, g_means, _, g_logits = backward(GAUSSIAN, torch.ones(8), outputs, args, mask)
    torch.testing.assert_close(g_means.sum(0), -g_z.sum(0), rtol=2e-6, atol=0)
    torch.testing.assert_close(g_z, args[1].mean() - args[0], rtol=2e-5, atol=0)
    assert abs(g_logits.double().sum().item()) < 1e-5
    check(GAUSSIAN, *args)


@pytest.mark.parametrize(
    "logits",
    [
        (1e4, -1e4, 0.0),
        (1e4, 1e4 + 1, 1e4),
        (-INF, 0.0, 1.0),
        (INF, 0.0, 1.0),
        (INF, -INF, INF),
        (-INF, -INF, -INF),
    ],
)
def test_gaussian_extreme_logits(logits: tuple[float, ...]) -> None:
    z, means, log_vars, _ = gaussian(6, 4, components=3)
    check(GAUSSIAN, z, means, log_vars, torch.tensor(logits))


def test_gaussian_bad_values_reach_their_rows_only() -> None:
    z, means, log_vars, logits = gaussian(4, 3, components=3)
    z[1, 2] = NAN
    (out,) = forward(GAUSSIAN, z, means, log_vars, logits)
    assert out.isnan().tolist() == [False, True, False, False]
    grad = torch.tensor([1.0, 0.0, 1.0, 1.0])
    args = (z, means, log_vars, logits)
    grads = backward(GAUSSIAN, grad, (out,), args, [True] * 4)
    assert grads[0][1].eq(0).all()
    assert all(g.isfinite().all() for g in grads)
