"""Mixture densities: probabilities, samples, peers, limits, bad arguments."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import dgm_fast
from dgm_fast import functional as F
from dgm_fast.perf import plain

INF = math.inf


@pytest.fixture(params=["auto", "reference"], autouse=True)
def backend(request: pytest.FixtureRequest):
    with dgm_fast.backend(request.param):
        yield request.param


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def gradients(out: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out.sum(), leaves)


def grid(levels: int) -> Tensor:
    """The values of one channel, [levels]."""
    return torch.arange(levels, dtype=torch.float64) * (2 / (levels - 1)) - 1


def every_pixel(levels: int, channels: int) -> Tensor:
    """All colours of one pixel, [levels^channels, channels, 1, 1]."""
    values = itertools.product(grid(levels).tolist(), repeat=channels)
    return torch.tensor(list(values), dtype=torch.float64)[:, :, None, None]


def logistic_params(
    channels: int, mixtures: int, log_scale: float, packing: str = "channel", seed: int = 0
) -> Tensor:
    """Parameters of one pixel [1, P, 1, 1]; every log-scale near ``log_scale``."""
    params = randn(channels, 3 if channels == 3 else 2, mixtures, seed=seed) * 0.4
    params[:, 1] = log_scale + 0.1 * params[:, 1]
    if packing == "parameter":
        params = params.permute(1, 2, 0)
    logits = randn(mixtures, seed=seed + 1)
    return torch.cat([logits, params.flatten()])[None, :, None, None]


@pytest.mark.parametrize("log_scale", [-3.0, -1.0, 2.0])
@pytest.mark.parametrize(("levels", "channels"), [(256, 1), (1000, 1), (2, 1), (8, 3), (2, 3)])
@pytest.mark.parametrize("packing", ["channel", "parameter"])
def test_logistic_probabilities_sum_to_one(
    levels: int, channels: int, log_scale: float, packing: str
) -> None:
    params = logistic_params(channels, 3, log_scale, packing)
    x = every_pixel(levels, channels)
    log_prob = F.discretized_logistic_mixture_log_prob(
        params.expand(len(x), -1, -1, -1), x, num_mixtures=3, levels=levels, packing=packing
    )
    # Bins of less than 1e-5 have the density times their width instead of their probability.
    assert log_prob.exp().sum().item() == pytest.approx(1.0, abs=2e-4)


def test_logistic_matches_the_published_form() -> None:
    """The formula as the released code of PixelCNN++ writes it, away from rounding in its CDFs."""
    params = randn(3, 40, 5, 7) * 0.5
    params[:, 8:12] -= 2.0
    x = (torch.randint(0, 256, (3, 3, 5, 7), generator=seeded()).double()) / 127.5 - 1
    got = F.discretized_logistic_mixture_log_prob(params, x, num_mixtures=4)
    torch.testing.assert_close(got, plain.discretized_logistic_mixture(params, x))


def test_packings_hold_the_same_mixture() -> None:
    mixtures = 4
    params = randn(2, 10 * mixtures, 3, 5)
    logits, rest = params[:, :mixtures], params[:, mixtures:]
    # [colour, parameter, mixture] -> [parameter, mixture, colour]
    moved = rest.reshape(2, 3, 3, mixtures, 3, 5).permute(0, 2, 3, 1, 4, 5).reshape(rest.shape)
    x = (torch.randint(0, 256, (2, 3, 3, 5), generator=seeded()).double()) / 127.5 - 1
    torch.testing.assert_close(
        F.discretized_logistic_mixture_log_prob(params, x, num_mixtures=mixtures),
        F.discretized_logistic_mixture_log_prob(
            torch.cat([logits, moved], 1), x, num_mixtures=mixtures, packing="parameter"
        ),
        rtol=1e-12,
        atol=0,
    )


def test_log_scales_below_the_clamp_act_as_the_clamp() -> None:
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for mean in (0.0, 1e-4, 0.5):
        clamped = torch.tensor([0.0, mean, -7.0], dtype=torch.float64)[None, :, None, None]
        below = clamped.clone()
        below[:, 2] = -30.0
        below.requires_grad_()
        out = F.discretized_logistic_mixture_log_prob(below, x, num_mixtures=1)
        torch.testing.assert_close(
            out, F.discretized_logistic_mixture_log_prob(clamped, x, num_mixtures=1)
        )
        (grad,) = gradients(out, below)
        assert grad[0, 2].item() == 0
        assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_scale", [-1e4, -7.0, 0.0, 20.0, 1e4])
@pytest.mark.parametrize("mean", [-1e4, -1.0, 0.0, 0.3, 1e4])
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_logistic_extremes_are_finite(
    value: float, mean: float, log_scale: float, dtype: torch.dtype
) -> None:
    params = torch.tensor([1e4, mean, log_scale], dtype=dtype)[None, :, None, None]
    params.requires_grad_()
    x = torch.full((1, 1, 1, 1), value, dtype=dtype)
    out = F.discretized_logistic_mixture_log_prob(params, x, num_mixtures=1)
    assert out.isfinite().all()
    assert gradients(out, params)[0].isfinite().all()


def test_logistic_weights_have_the_right_limits() -> None:
    x = torch.zeros(4, 1, 1, 1, dtype=torch.float64)
    params = torch.zeros(4, 6, 1, 1, dtype=torch.float64)
    params[:, 2:4, 0, 0] = torch.tensor([0.1, -0.6])  # means
    params[0, :2, 0, 0] = torch.tensor([-INF, -INF])
    params[1, :2, 0, 0] = torch.tensor([-INF, 3.0])
    params[2, :2, 0, 0] = torch.tensor([INF, 0.0])
    params[3, :2, 0, 0] = torch.tensor([INF, INF])
    params.requires_grad_()
    out = F.discretized_logistic_mixture_log_prob(params, x, num_mixtures=2)
    only = [
        F.discretized_logistic_mixture_log_prob(
            torch.tensor([0.0, mean, 0.0], dtype=torch.float64)[None, :, None, None],
            x[:1],
            num_mixtures=1,
        ).item()
        for mean in (0.1, -0.6)
    ]
    assert out[0].item() == -INF
    assert out[1].item() == pytest.approx(only[1])
    assert out[2].item() == pytest.approx(only[0])
    assert out[3].exp().item() == pytest.approx(0.5 * sum(math.exp(v) for v in only))
    (grad,) = gradients(out[1:], params)
    assert grad.isfinite().all()
    assert not grad[0].any()
    assert not grad[:, :2].any()
    assert grad[1, 2].item() == 0
    assert grad[1, 3].item() != 0


@pytest.mark.parametrize("channels", [1, 3])
def test_logistic_samples_follow_the_density(channels: int) -> None:
    levels, mixtures, draws = (9, 3, 20000) if channels == 1 else (3, 2, 20000)
    params = logistic_params(channels, mixtures, -1.0, seed=3)
    samples = F.sample_discretized_logistic_mixture(
        params.expand(1, -1, draws, 1),
        num_mixtures=mixtures,
        levels=levels,
        generator=seeded(5),
    )  # [1, C, draws, 1]
    index = ((samples[0, :, :, 0] + 1) * (levels - 1) / 2).round().long()  # [C, draws]
    code = sum(index[c] * levels ** (channels - 1 - c) for c in range(channels))
    counts = torch.bincount(code, minlength=levels**channels).numpy()
    x = every_pixel(levels, channels)
    expected = F.discretized_logistic_mixture_log_prob(
        params.expand(len(x), -1, -1, -1), x, num_mixtures=mixtures, levels=levels
    ).exp()
    expected = (expected / expected.sum() * draws).numpy()
    enough = expected > 5
    assert (
        scipy.stats.chisquare(
            np.append(counts[enough], counts[~enough].sum() + 1e-9),
            np.append(expected[enough], expected[~enough].sum() + 1e-9),
            sum_check=False,
        ).pvalue
        > 1e-3
    )


def test_samples_depend_on_the_noise_alone() -> None:
    params = randn(2, 30, 4, 5).float()
    noise = torch.rand(2, 4, 4, 5, generator=seeded())
    draw = F.sample_discretized_logistic_mixture(params, num_mixtures=3, noise=noise)
    again = F.sample_discretized_logistic_mixture(params, num_mixtures=3, noise=noise)
    by_generator = F.sample_discretized_logistic_mixture(params, num_mixtures=3, generator=seeded())
    assert torch.equal(draw, again)
    assert torch.equal(draw, by_generator)
    assert draw.shape == (2, 3, 4, 5)
    levels = (draw + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    unrounded = F.sample_discretized_logistic_mixture(
        params, num_mixtures=3, levels=None, noise=noise
    )
    assert (unrounded.abs() <= 1).all()
    assert not torch.equal(unrounded, draw)


def test_sampler_ignores_components_without_weight() -> None:
    params = torch.zeros(1, 9, 1, 200)
    params[:, 0], params[:, 1], params[:, 2] = -INF, 0.0, -INF
    params[:, 3], params[:, 4], params[:, 5] = -0.9, 0.5, 0.9  # means
    params[:, 6:] = -7.0
    draw = F.sample_discretized_logistic_mixture(params, num_mixtures=3, generator=seeded())
    assert (draw - 0.5).abs().max() < 0.05


def mixture(components: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    means, log_vars = randn(2, components, size, seed=seed)
    return means, log_vars, randn(components, seed=seed + 1)


def test_gaussian_mixture_integrates_to_one() -> None:
    means, log_vars, logits = mixture(4, 1)
    line = torch.linspace(-25, 25, 20001, dtype=torch.float64)[:, None]
    density = F.gaussian_mixture_log_prob(line, means, log_vars, logits).exp()
    assert torch.trapezoid(density, line[:, 0]).item() == pytest.approx(1.0, abs=1e-9)
    means, log_vars, logits = mixture(3, 2)
    axis = torch.linspace(-15, 15, 601, dtype=torch.float64)
    plane = torch.cartesian_prod(axis, axis)
    density = F.gaussian_mixture_log_prob(plane, means, log_vars, logits).exp().view(601, 601)
    total = torch.trapezoid(torch.trapezoid(density, axis), axis)
    assert total.item() == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize(("components", "size"), [(1, 1), (3, 5), (40, 2)])
def test_gaussian_mixture_matches_scipy(components: int, size: int) -> None:
    means, log_vars, logits = mixture(components, size)
    z = randn(9, size, seed=7)
    weights = torch.softmax(logits, 0).numpy()
    want = sum(
        w * scipy.stats.multivariate_normal(m, np.diag(v)).pdf(z.numpy())
        for w, m, v in zip(weights, means.numpy(), log_vars.exp().numpy(), strict=True)
    )
    got = F.gaussian_mixture_log_prob(z, means, log_vars, logits)
    torch.testing.assert_close(got, torch.as_tensor(np.log(want)).view(9))


def test_gaussian_mixture_matches_scikit_learn() -> None:
    sklearn_mixture = pytest.importorskip("sklearn.mixture")
    data = randn(200, 4, seed=3).numpy()
    model = sklearn_mixture.GaussianMixture(3, covariance_type="diag", random_state=0).fit(data)
    got = F.gaussian_mixture_log_prob(
        torch.as_tensor(data),
        torch.as_tensor(model.means_),
        torch.as_tensor(model.covariances_).log(),
        torch.as_tensor(model.weights_).log(),
    )
    torch.testing.assert_close(got, torch.as_tensor(model.score_samples(data)))


def test_one_component_is_a_gaussian() -> None:
    means, log_vars, logits = mixture(1, 6)
    z = randn(4, 3, 6)
    want = F.gaussian_log_prob(z, means[0], log_vars[0])
    torch.testing.assert_close(F.gaussian_mixture_log_prob(z, means, log_vars), want)
    torch.testing.assert_close(F.gaussian_mixture_log_prob(z, means, log_vars, logits), want)


def test_equal_logits_are_uniform_weights() -> None:
    means, log_vars, _ = mixture(1000, 3)
    z = randn(5, 3)
    uniform = F.gaussian_mixture_log_prob(z, means, log_vars)
    for level in (-1e4, 0.0, 1e4):
        logits = torch.full((1000,), level, dtype=torch.float64)
        torch.testing.assert_close(F.gaussian_mixture_log_prob(z, means, log_vars, logits), uniform)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_var", [-1e4, -90.0, -20.0, 20.0, 90.0, 1e4])
def test_components_of_extreme_variance(log_var: float, dtype: torch.dtype) -> None:
    means = torch.tensor([[0.0, 0.0], [1.0, -1.0]], dtype=dtype)
    log_vars = torch.tensor([[log_var, log_var], [0.0, 0.0]], dtype=dtype)
    leaves = [t.requires_grad_() for t in (means, log_vars, torch.zeros(2, dtype=dtype))]
    z = torch.tensor([[0.5, 0.5], [-3.0, 2.0]], dtype=dtype, requires_grad=True)
    out = F.gaussian_mixture_log_prob(z, *leaves)
    grads = gradients(out, z, *leaves)
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in grads)
    if abs(log_var) >= 90:
        # Nothing of z can come from it: the other component is left, with half the weight.
        other = F.gaussian_log_prob(z, means[1], log_vars[1]) - math.log(2)
        torch.testing.assert_close(out, other)
        torch.testing.assert_close(grads[0], means[1] - z)
        assert (grads[1][0].abs() < 1e-30).all()


def test_gaussian_mixture_weight_limits() -> None:
    means, log_vars, _ = mixture(3, 4)
    z = randn(5, 4)
    parts = torch.stack([F.gaussian_log_prob(z, means[k], log_vars[k]) for k in range(3)])
    for values, want in (
        ((-INF, 1.0, -INF), parts[1]),
        ((INF, 1.0, -INF), parts[0]),
        ((INF, 1.0, INF), torch.logsumexp(parts[[0, 2]], 0) - math.log(2)),
        ((-INF, -INF, -INF), torch.full((5,), -INF, dtype=torch.float64)),
    ):
        leaves = [t.detach().clone().requires_grad_() for t in (z, means, log_vars)]
        logits = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        out = F.gaussian_mixture_log_prob(*leaves, logits)
        torch.testing.assert_close(out.detach(), want)
        grads = gradients(out, *leaves, logits)
        assert all(g.isfinite().all() for g in grads)
        assert not grads[3].any()
        if values[0] == values[1] == -INF:
            assert not any(g.any() for g in grads)


def test_far_from_every_component() -> None:
    means, log_vars, logits = (t.float() for t in mixture(20, 3))
    z = torch.full((2, 3), 1e4, requires_grad=True)
    out = F.gaussian_mixture_log_prob(z, means, log_vars * 0, logits)
    assert out.isfinite().all()
    (grad,) = gradients(out, z)
    torch.testing.assert_close(grad, torch.full_like(grad, -1e4), rtol=1e-3, atol=0)


def test_gaussian_mixture_keeps_its_result_only(backend: str) -> None:
    if backend == "reference":
        pytest.skip("the plain formula stores its intermediates")
    leaves = [t.float().requires_grad_() for t in (randn(2000, 10), *mixture(300, 10))]
    own = {t.untyped_storage().data_ptr() for t in leaves}
    saved = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = F.gaussian_mixture_log_prob(*leaves)
    kept = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in saved
        if t.untyped_storage().data_ptr() not in own
    }
    assert out.shape == (2000,)
    if dgm_fast.ops.active_isa() is not None:
        assert sum(kept.values()) <= 4 * 2000


def test_empty() -> None:
    params = torch.zeros(0, 30, 4, 4, requires_grad=True)
    out = F.discretized_logistic_mixture_log_prob(params, torch.zeros(0, 3, 4, 4), num_mixtures=3)
    assert out.shape == (0,)
    assert gradients(out, params)[0].shape == params.shape
    no_pixels = torch.zeros(2, 30, 0, 4, requires_grad=True)
    out = F.discretized_logistic_mixture_log_prob(
        no_pixels, torch.zeros(2, 3, 0, 4), num_mixtures=3
    )
    assert torch.equal(out, torch.zeros(2))
    z = torch.zeros(0, 4, requires_grad=True)
    means = torch.zeros(3, 4, requires_grad=True)
    out = F.gaussian_mixture_log_prob(z, means, torch.zeros(3, 4))
    assert out.shape == (0,)
    grads = gradients(out, z, means)
    assert grads[0].shape == (0, 4)
    assert torch.equal(grads[1], torch.zeros(3, 4))


@pytest.mark.parametrize("bad", [1.5, -1.01, math.nan])
def test_pixels_out_of_range_raise(bad: float) -> None:
    x = torch.zeros(2, 3, 4, 4)
    x[1, 2, 3, 1] = bad
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        F.discretized_logistic_mixture_log_prob(torch.zeros(2, 30, 4, 4), x, num_mixtures=3)


PARAMS = torch.zeros(2, 30, 4, 5)
PIXELS = torch.zeros(2, 3, 4, 5)
Z = torch.zeros(6, 4)
MEANS = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "params must have shape", lambda f: f(PARAMS[:, :29], PIXELS)),
        (ValueError, "params must have shape", lambda f: f(PARAMS[0], PIXELS, num_mixtures=3)),
        (ValueError, "x has event shape", lambda f: f(PARAMS, PIXELS[:, :1], num_mixtures=3)),
        (ValueError, "x has shape", lambda f: f(PARAMS, PIXELS[:, 0, 0], num_mixtures=3)),
        (ValueError, "broadcast", lambda f: f(PARAMS, PIXELS.repeat(2, 1, 1, 1), num_mixtures=3)),
        (ValueError, "num_mixtures must be at least", lambda f: f(PARAMS, PIXELS, num_mixtures=0)),
        (TypeError, "num_mixtures must be an int", lambda f: f(PARAMS, PIXELS, num_mixtures=3.0)),
        (ValueError, "levels", lambda f: f(PARAMS, PIXELS, num_mixtures=3, levels=1)),
        (ValueError, "packing must be", lambda f: f(PARAMS, PIXELS, num_mixtures=3, packing="x")),
        (TypeError, "params must be floating", lambda f: f(PARAMS.int(), PIXELS, num_mixtures=3)),
        (TypeError, "x must be a torch.Tensor", lambda f: f(PARAMS, None, num_mixtures=3)),
        (
            ValueError,
            "require grad",
            lambda f: f(PARAMS, PIXELS.clone().requires_grad_(), num_mixtures=3),
        ),
        (ValueError, "x is on meta", lambda f: f(PARAMS, PIXELS.to("meta"), num_mixtures=3)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_of_the_logistic_mixture(error, match: str, call) -> None:
    with pytest.raises(error, match=match):
        call(F.discretized_logistic_mixture_log_prob)


@pytest.mark.parametrize(
    ("error", "match", "args"),
    [
        (ValueError, "means and log_vars", (Z, MEANS, MEANS[:2])),
        (ValueError, "means and log_vars", (Z, MEANS[0], MEANS[0])),
        (ValueError, "z must have shape", (Z[:, :3], MEANS, MEANS)),
        (ValueError, "logits must have shape", (Z, MEANS, MEANS, torch.zeros(4))),
        (ValueError, "no components", (Z, MEANS[:0], MEANS[:0])),
        (TypeError, "z must be floating", (Z.long(), MEANS, MEANS)),
        (TypeError, "means must be a torch.Tensor", (Z, [0.0], MEANS)),
        (ValueError, "log_vars is on meta", (Z, MEANS, MEANS.to("meta"))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_of_the_gaussian_mixture(error, match: str, args) -> None:
    with pytest.raises(error, match=match):
        F.gaussian_mixture_log_prob(*args)


def test_bad_arguments_of_the_sampler() -> None:
    with pytest.raises(ValueError, match="noise must have shape"):
        F.sample_discretized_logistic_mixture(PARAMS, num_mixtures=3, noise=torch.rand(2, 3, 4, 5))
    with pytest.raises(TypeError, match="noise must be"):
        F.sample_discretized_logistic_mixture(PARAMS, num_mixtures=3, noise=0.5)
