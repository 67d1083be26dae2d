"""The latent kernels in Triton's interpreter against the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from launchers import DTYPES, backward, check, check_masks, forward

pytestmark = pytest.mark.interpreter

INF, NAN = math.inf, math.nan
BERNOULLI, GAUSSIAN, CATEGORICAL = 0, 1, 2
LIKELIHOODS = ["bernoulli", "unit", "scalar", "event", "own", "categorical"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gaussian_kl(dtype: torch.dtype, blocks: None) -> None:
    mean, log_var = torch.randn(2, 5, 19).to(dtype)
    check("gaussian_kl", mean, log_var, None, None, 1)
    check("gaussian_kl", mean, log_var, torch.randn(19).to(dtype), torch.randn(19).to(dtype), 1)
    check("gaussian_kl", mean, log_var, None, torch.tensor(0.3).to(dtype), 1)


def test_gaussian_kl_layouts(grouped: None) -> None:
    mean, log_var = torch.randn(3, 4, 20).chunk(2, -1)
    for prior in (torch.randn(3, 1, 1), torch.randn(1, 4, 10), torch.randn(4, 10)):
        check("gaussian_kl", mean, log_var, prior, None, 1)
        check("gaussian_kl", mean, log_var, None, prior, 2)
    check("gaussian_kl", mean, log_var.transpose(0, 1).contiguous().transpose(0, 1), None, None, 0)
    check("gaussian_kl", mean.permute(2, 1, 0), log_var.permute(2, 1, 0), None, None, 1)
    check_masks("gaussian_kl", mean, log_var, torch.randn(10), torch.randn(()), 1)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 513), (0, 5), (3, 0)])
def test_gaussian_kl_sizes(shape: tuple[int, ...]) -> None:
    mean, log_var = torch.randn(2, *shape)
    check("gaussian_kl", mean, log_var, torch.randn(()), torch.randn(shape[-1:]), 1)


@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.3, 0.99, 1.01, 5.0, 20.0])
def test_gaussian_kl_close_to_and_far_from_the_prior(size: float) -> None:
    log_var = (torch.rand(4, 9) - 0.5) * 2 * size
    check("gaussian_kl", torch.zeros(4, 9), log_var, None, None, 1)
    if size >= 0.3:
        check("gaussian_kl", torch.zeros(4, 9).double(), log_var.double(), None, None, 1)


def test_gaussian_kl_does_not_cancel() -> None:
    """Close to the prior: (e^t - 1 - t)/2 = t^2/4 (1 + t/3 + t^2/12 + ...), to full precision."""
    t = (torch.rand(4, 9, dtype=torch.float64) - 0.5) * 1e-5
    (out,) = forward("gaussian_kl", torch.zeros_like(t), t, None, None, 1)
    series = (t.square() / 4 * (1 + t / 3 + t.square() / 12)).sum(1)
    torch.testing.assert_close(out, series, rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reparameterize(dtype: torch.dtype, blocks: None) -> None:
    mean, log_var = torch.randn(2, 5, 19).to(dtype)
    check("reparameterize", mean, log_var, torch.randn(5, 19).to(dtype))
    check("reparameterize", mean, log_var, torch.randn(5, 6, 19).to(dtype))


def test_reparameterize_layouts(grouped: None) -> None:
    mean, log_var = torch.randn(3, 4, 14).chunk(2, -1)
    eps = torch.randn(3, 4, 6, 7)
    check("reparameterize", mean, log_var, eps)
    check("reparameterize", mean.transpose(0, 1), log_var.transpose(0, 1), eps.transpose(0, 1))
    check("reparameterize", mean[..., ::2], log_var[..., ::2], eps[..., ::2])
    grad = torch.ones(()).expand(3, 4, 6, 7)
    check("reparameterize", mean, log_var, eps, grad=grad)
    check_masks("reparameterize", mean, log_var, eps)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 513), (0, 5), (3, 0)])
def test_reparameterize_sizes(shape: tuple[int, ...]) -> None:
    mean, log_var = torch.randn(2, *shape)
    check("reparameterize", mean, log_var, torch.randn(shape))
    check("reparameterize", mean, log_var, torch.randn(*shape[:-1], 3, shape[-1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_mean_exp(dtype: torch.dtype, dim: int, grouped: None) -> None:
    check("log_mean_exp", (torch.randn(3, 7, 5) * 5).to(dtype), dim)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1100), (0, 5)])
def test_log_mean_exp_sizes(shape: tuple[int, ...]) -> None:
    check("log_mean_exp", torch.randn(shape), -1)


def test_log_mean_exp_layouts(grouped: None) -> None:
    check("log_mean_exp", torch.randn(3, 14)[:, ::2], 1)
    check("log_mean_exp", torch.randn(1, 7).expand(3, 7), 1)
    check("log_mean_exp", torch.randn(4, 3, 2, 5).permute(2, 0, 3, 1), 1)
    check("log_mean_exp", torch.randn(3, 7), 1, grad=torch.ones(()).expand(3))
    # Leading dimensions that no two dimensions describe.
    check("log_mean_exp", torch.randn(2, 3, 4, 5).permute(2, 1, 0, 3), 1)


def test_log_mean_exp_far_from_zero() -> None:
    check("log_mean_exp", torch.randn(5, 9) * 3 - 700, 1)
    check("log_mean_exp", torch.tensor([[1e4, -1e4, 1e4 - 1], [-1e30, -1e30, -1e30]]), 1)


def test_log_mean_exp_limits() -> None:
    rows = [
        [-INF, -INF, -INF],
        [-INF, 0.5, -INF],
        [INF, 0.0, -INF],
        [INF, 1.0, INF],
        [NAN, 1.0, -INF],
        [NAN, INF, 0.0],
        [0.0, 300.0, -300.0],
    ]
    log_w = torch.tensor(rows)
    (out,) = forward("log_mean_exp", log_w, 1)
    expected = [-INF, 0.5 - math.log(3), INF, INF, NAN, NAN, 300 - math.log(3)]
    torch.testing.assert_close(out, torch.tensor(expected), equal_nan=True)
    (grad,) = backward("log_mean_exp", torch.full((7,), 2.0), (out,), (log_w, 1), [True])
    expected_grad = [
        [0.0, 0.0, 0.0],
        [0.0, 2.0, 0.0],
        [2.0, 0.0, 0.0],
        [1.0, 0.0, 1.0],
        [NAN] * 3,
        [NAN] * 3,
        [0.0, 2.0, 0.0],
    ]
    torch.testing.assert_close(grad, torch.tensor(expected_grad), rtol=0, atol=0, equal_nan=True)
    check("log_mean_exp", log_w, 1)


def decoder(
    kind: str, dtype: torch.dtype, *lead: int, size: int = 21
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, int]:
    """Decoder output, its log-variance, data [B, size] and the likelihood's code."""
    batch = lead[0]
    if kind == "categorical":
        out = torch.randn(*lead, 5, size).to(dtype)
        return out, None, torch.randint(0, 5, (batch, size)), CATEGORICAL
    out = torch.randn(*lead, size).to(dtype)
    if kind == "bernoulli":
        return out * 3, None, (torch.rand(batch, size) < 0.5).to(dtype), BERNOULLI
    shape = {"unit": None, "scalar": (), "event": (size,), "own": (*lead, size)}[kind]
    log_var = None if shape is None else torch.randn(shape).to(dtype)
    return out, log_var, torch.randn(batch, size).to(dtype), GAUSSIAN


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_elbo(kind: str, dtype: torch.dtype, blocks: None) -> None:
    out, out_log_var, x, code = decoder(kind, dtype, 4)
    mean, log_var = torch.randn(2, 4, 6).to(dtype)
    check("elbo", out, out_log_var, x, mean, log_var, code, 0.7)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_elbo_layouts(kind: str, grouped: None) -> None:
    out, out_log_var, x, code = decoder(kind, torch.float32, 4)
    mean, log_var = torch.randn(4, 12).chunk(2, -1)
    check("elbo", out, out_log_var, x[0].expand_as(x), mean, log_var, code, 4.0)
    wide = torch.randn(*out.shape[:-1], 2 * out.shape[-1])
    check("elbo", wide[..., ::2], out_log_var, x, mean, log_var, code, 0.0)
    check_masks("elbo", out, out_log_var, x, mean, log_var, code, 0.1)
    check("elbo", out[:0], None, x[:0], mean[:0], log_var[:0], code, 1.0)
    check("elbo", out[..., :0], None, x[:, :0], mean, log_var, code, 1.0)
    check("elbo", out[..., :1], None, x[:, :1], mean[:, :0], log_var[:, :0], code, 1.0)


def latents(
    dtype: torch.dtype, batch: int, samples: int, size: int = 6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mean, log_var = torch.randn(2, batch, size).to(dtype)
    return torch.randn(batch, samples, size).to(dtype), mean, log_var


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_iwae_bound(kind: str, dtype: torch.dtype, grouped: None) -> None:
    out, out_log_var, x, code = decoder(kind, dtype, 64, 4)
    check("iwae_bound", out, out_log_var, x, *latents(dtype, 64, 4), None, code, False)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_iwae_bound_prior_and_estimator(kind: str, grouped: None) -> None:
    out, out_log_var, x, code = decoder(kind, torch.float32, 64, 5)
    z = latents(torch.float32, 64, 5)
    prior = torch.randn(64, 5)
    check("iwae_bound", out, out_log_var, x, *z, prior, code, False)
    check("iwae_bound", out, out_log_var, x, *z, None, code, True)
    check("iwae_bound", out, out_log_var, x, *z, prior, code, True)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_iwae_bound_layouts(kind: str, grouped: None) -> None:
    out, out_log_var, x, code = decoder(kind, torch.float32, 3, 4)
    z, mean, log_var = latents(torch.float32, 3, 4)
    swapped = out.transpose(0, 1).contiguous().transpose(0, 1)
    strided = torch.randn(3, 4, 12)[..., ::2]
    both = torch.randn(3, 12)
    prior = torch.randn(4, 3).t()
    data = x[0].expand_as(x)
    check("iwae_bound", swapped, out_log_var, data, strided, *both.chunk(2, 1), prior, code, False)
    grad = torch.ones(()).expand(3)
    check("iwae_bound", out, out_log_var, x, z, mean, log_var, None, code, False, grad=grad)
    check_masks("iwae_bound", out, out_log_var, x, z, mean, log_var, prior, code, False)
    unasked = [False] * 7
    check("iwae_bound", out, out_log_var, x, z, mean, log_var, None, code, False, mask=unasked)


@pytest.mark.parametrize("kind", ["bernoulli", "own", "categorical"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 1, 3, 2), (1, 70, 2, 3), (2, 2, 530, 520)])
def test_iwae_bound_sizes(kind: str, sizes: tuple[int, int, int, int]) -> None:
    """One row per program, and several programs per row in backward."""
    batch, samples, size, latent = sizes
    out, out_log_var, x, code = decoder(kind, torch.float32, batch, samples, size=size)
    z = latents(torch.float32, batch, samples, latent)
    check("iwae_bound", out, out_log_var, x, *z, None, code, False)


@pytest.mark.parametrize("kind", ["bernoulli", "event", "categorical"])
def test_iwae_bound_empty(kind: str) -> None:
    out, out_log_var, x, code = decoder(kind, torch.float32, 2, 3)
    z, mean, log_var = latents(torch.float32, 2, 3)
    empty = (t[:0] for t in (z, mean, log_var))
    check("iwae_bound", out[:0], out_log_var, x[:0], *empty, None, code, False)
    no_latents = (t[..., :0] for t in (z, mean, log_var))
    check("iwae_bound", out, out_log_var, x, *no_latents, None, code, False)
    out, x = out[..., :0], x[:, :0]
    check("iwae_bound", out, None, x, z, mean, log_var, None, code, False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_iwae_bound_integer_data(dtype: torch.dtype) -> None:
    out, _, x, code = decoder("bernoulli", torch.float32, 3, 4)
    check("iwae_bound", out, None, x.to(dtype), *latents(torch.float32, 3, 4), None, code, False)


def test_iwae_bound_zero_weights() -> None:
    """A sample far below the best one adds plain zeros, even where its derivatives overflow."""
    out, _, x, code = decoder("unit", torch.float32, 2, 3)
    out[0, 1] = 1e25
    out[1, 2] = 200.0
    z, mean, log_var = latents(torch.float32, 2, 3)
    args: tuple[Any, ...] = (out, None, x, z, mean, log_var, None, code, False)
    bound, log_w = forward("iwae_bound", *args)
    assert bound.isfinite().all()
    assert log_w[0, 1] == -INF
    mask = [True, False, True, True, True, True, False]
    g_out, _, g_x, g_z, *rest = backward("iwae_bound", torch.ones(2), (bound, log_w), args, mask)
    assert g_out[0, 1].eq(0).all() and g_out[1, 2].eq(0).all() and g_z[0, 1].eq(0).all()
    assert all(g.isfinite().all() for g in (g_out, g_x, g_z, *rest[:2]))


def test_iwae_bound_without_any_weight() -> None:
    """All log-weights -inf: the bound is -inf and every gradient zero."""
    out, _, x, code = decoder("bernoulli", torch.float32, 2, 3)
    z = latents(torch.float32, 2, 3)
    prior = torch.zeros(2, 3)
    prior[0] = -INF
    args: tuple[Any, ...] = (out, None, x, *z, prior, code, False)
    outputs = forward("iwae_bound", *args)
    assert outputs[0][0] == -INF and outputs[0][1].isfinite()
    mask = [True, False, True, True, True, True, True]
    grads = backward("iwae_bound", torch.ones(2), outputs, args, mask)
    for wanted, grad in zip(mask, grads, strict=True):
        if wanted:
            assert grad[0].eq(0).all() and grad[1].isfinite().all()
    assert grads[0][1].ne(0).any()


def test_iwae_bound_shares_infinite_weights() -> None:
    out, _, x, code = decoder("bernoulli", torch.float32, 1, 3)
    prior = torch.tensor([[INF, 0.0, INF]])
    args: tuple[Any, ...] = (out, None, x, *latents(torch.float32, 1, 3), prior, code, False)
    outputs = forward("iwae_bound", *args)
    assert outputs[0].item() == INF
    mask = [True, False, False, False, False, False, True]
    grads = backward("iwae_bound", torch.ones(1), outputs, args, mask)
    assert grads[6].tolist() == [[0.5, 0.0, 0.5]]
    torch.testing.assert_close(grads[0][0, 0], 0.5 * (x[0] - out[0, 0].sigmoid()))


def test_iwae_bound_marks_bad_data() -> None:
    out, _, x, code = decoder("categorical", torch.float32, 3, 4)
    x[1, 2] = 5
    bound, _ = forward("iwae_bound", out, None, x, *latents(torch.float32, 3, 4), None, code, False)
    assert bound.isnan().tolist() == [False, True, False]


def test_one_sample_is_the_monte_carlo_elbo() -> None:
    out, _, x, code = decoder("bernoulli", torch.float64, 4, 1)
    z, mean, log_var = latents(torch.float64, 4, 1)
    bound, log_w = forward("iwae_bound", out, None, x, z, mean, log_var, None, code, False)
    torch.testing.assert_close(bound, log_w[:, 0])
    normal = torch.distributions.Normal
    log_ratio = normal(0.0, 1.0).log_prob(z[:, 0]) - normal(mean, (log_var / 2).exp()).log_prob(
        z[:, 0]
    )
    log_prob = torch.distributions.Bernoulli(logits=out[:, 0]).log_prob(x)
    torch.testing.assert_close(bound, log_prob.sum(1) + log_ratio.sum(1))
