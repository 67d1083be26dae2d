"""Limits, extreme values, bad data values, and properties of the mathematics."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import dgm_fast
from dgm_fast import functional as F
from dgm_fast import ops

INF = math.inf


@pytest.fixture(params=["auto", "reference"], autouse=True)
def backend(request: pytest.FixtureRequest):
    with dgm_fast.backend(request.param):
        yield request.param


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def gradient(function, at: Tensor) -> tuple[Tensor, Tensor]:
    leaf = at.detach().clone().requires_grad_()
    out = function(leaf)
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    return out.detach(), grad


def test_bernoulli_sums_to_one() -> None:
    logits = torch.randn(5, dtype=torch.float64)
    everything = torch.tensor(list(itertools.product((0, 1), repeat=5)))
    log_prob = F.bernoulli_log_prob(logits.expand(32, 5), everything)
    torch.testing.assert_close(log_prob.exp().sum().item(), 1.0)


def test_categorical_sums_to_one() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64).T.contiguous()  # [C = 4, D = 3]
    everything = torch.tensor(list(itertools.product(range(4), repeat=3)))
    log_prob = F.categorical_log_prob(logits.expand(64, 4, 3), everything)
    torch.testing.assert_close(log_prob.exp().sum().item(), 1.0)


def test_gaussian_integrates_to_one() -> None:
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64).unsqueeze(1)
    log_prob = F.gaussian_log_prob(
        grid, torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    )
    torch.testing.assert_close(torch.trapezoid(log_prob.exp(), grid[:, 0]).item(), 1.0)


def test_kl_matches_torch_distributions() -> None:
    m, lv, pm, plv = torch.randn(4, 6, 7, dtype=torch.float64)
    q = torch.distributions.Normal(m, (lv / 2).exp())
    p = torch.distributions.Normal(pm, (plv / 2).exp())
    want = torch.distributions.kl_divergence(q, p).sum(-1)
    torch.testing.assert_close(F.gaussian_kl(m, lv, pm, plv), want)


def test_kl_of_equal_distributions_is_zero() -> None:
    mean, log_var = torch.randn(2, 4, 19)
    assert torch.equal(F.gaussian_kl(mean, log_var, mean, log_var), torch.zeros(4))
    tiny = torch.full((2, 19), 1e-4)
    want = 0.5 * 19 * (math.expm1(1e-4) - 1e-4)
    got = F.gaussian_kl(torch.zeros(2, 19), tiny)
    torch.testing.assert_close(got, torch.full((2,), want), rtol=2e-3, atol=0)


def test_extreme_logits() -> None:
    logits = tensor(1e4, -1e4, 1e4, -1e4).repeat(5)
    x = tensor(1, 0, 0, 1).repeat(5)
    out, grad = gradient(lambda t: F.bernoulli_log_prob(t, x), logits)
    assert out.item() == -1e5
    torch.testing.assert_close(grad, tensor(0, 0, -1, 1).repeat(5))
    spread = torch.zeros(1, 3, 20)
    spread[:, 0], spread[:, 1] = 1e4, -1e4
    best = torch.zeros(1, 20, dtype=torch.int64)
    assert F.categorical_log_prob(spread, best).item() == 0
    assert F.categorical_log_prob(spread, best + 1).item() == -20 * 2e4


def test_categorical_is_shift_invariant() -> None:
    # Rounding log-sum-exp at the size of the logits would cost five digits here.
    logits = torch.randn(4, 17, 33)
    x = torch.randint(0, 17, (4, 33))
    shifted = (logits.round(decimals=2) * 64).round() / 64
    torch.testing.assert_close(
        F.categorical_log_prob(shifted + 4096.0, x),
        F.categorical_log_prob(shifted, x),
        rtol=1e-5,
        atol=0,
    )


def test_categorical_with_impossible_classes() -> None:
    logits = torch.zeros(1, 3, 2)
    logits[0, 2] = -INF
    x = torch.zeros(1, 2, dtype=torch.int64)
    out, grad = gradient(lambda t: F.categorical_log_prob(t, x), logits)
    torch.testing.assert_close(out, tensor(2 * math.log(0.5)))
    assert torch.equal(grad[0, 2], tensor(0, 0))
    impossible = torch.full((1, 2), 2)
    assert F.categorical_log_prob(logits, impossible).item() == -INF


def test_log_mean_exp_limits() -> None:
    rows = torch.tensor(
        [[-INF] * 3, [-INF, 0.0, -INF], [1.0, INF, 2.0], [INF, INF, -INF], [1e4, -1e4, 1e4]]
    )
    want = tensor(-INF, -math.log(3), INF, INF, 1e4 + math.log(2 / 3))
    weights = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 1, 0], [0.5, 0.5, 0], [0.5, 0, 0.5]])
    for dim, matrix in ((1, rows), (0, rows.T.contiguous())):
        out, grad = gradient(lambda t, dim=dim: F.log_mean_exp(t, dim), matrix)
        torch.testing.assert_close(out, want)
        torch.testing.assert_close(grad if dim == 1 else grad.T, weights)


def test_log_mean_exp_propagates_nan() -> None:
    rows = torch.tensor([[1.0, math.nan], [INF, math.nan], [-INF, math.nan]])
    assert F.log_mean_exp(rows).isnan().all()


def test_log_mean_exp_of_one_is_the_identity() -> None:
    log_w = torch.randn(5, 1)
    torch.testing.assert_close(F.log_mean_exp(log_w), log_w[:, 0])


def bound_inputs(batch: int, samples: int, size: int = 9, latent: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mean, log_var = torch.randn(2, batch, latent, generator=generator) * 0.3
    return {
        "x": (torch.rand(batch, size, generator=generator) < 0.5).float(),
        "decoder_out": torch.randn(batch, samples, size, generator=generator),
        "z": torch.randn(batch, samples, latent, generator=generator),
        "mean": mean,
        "log_var": log_var,
    }


def test_single_sample_bound_is_the_monte_carlo_elbo() -> None:
    args = bound_inputs(6, 1)
    z, mean, log_var = args["z"][:, 0], args["mean"], args["log_var"]
    want = (
        F.bernoulli_log_prob(args["decoder_out"][:, 0], args["x"])
        + F.gaussian_log_prob(z, torch.zeros(()))
        - F.gaussian_log_prob(z, mean, log_var)
    )
    torch.testing.assert_close(F.iwae_bound(**args), want)


def test_bound_with_impossible_samples() -> None:
    args = bound_inputs(2, 3)
    log_prior = torch.zeros(2, 3)
    log_prior[0] = -INF
    log_prior[1, :2] = -INF
    leaf = args["decoder_out"].clone().requires_grad_()
    bound = F.iwae_bound(**{**args, "decoder_out": leaf}, prior=log_prior)
    assert bound[0].item() == -INF
    assert bound[1].isfinite()
    (grad,) = torch.autograd.grad(bound.sum(), leaf)
    assert torch.equal(grad[0], torch.zeros_like(grad[0]))
    assert torch.equal(grad[1, :2], torch.zeros_like(grad[1, :2]))
    assert grad[1, 2].abs().sum() > 0


def test_bound_with_negligible_samples_has_no_denormal_gradients() -> None:
    args = bound_inputs(2, 5, size=40)
    args["decoder_out"] = args["decoder_out"] * tensor(1, 4, 8, 12, 16)[None, :, None]
    leaf = args["decoder_out"].clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.iwae_bound(**{**args, "decoder_out": leaf}).sum(), leaf)
    smallest = grad[grad != 0].abs().min()
    assert grad.isfinite().all()
    if ops.active_isa() is not None and dgm_fast.get_backend() == "auto":
        assert smallest > torch.finfo(torch.float32).tiny


def test_values_outside_the_unit_interval_raise() -> None:
    logits = torch.zeros(4, 20)
    for bad in (1.5, -0.25, math.nan):
        x = torch.zeros(4, 20)
        x[2, 17] = bad
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            F.bernoulli_log_prob(logits, x)
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            F.elbo(x, logits, torch.zeros(4, 2), torch.zeros(4, 2))
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            args = {**bound_inputs(4, 3, size=20), "x": x}
            F.iwae_bound(**args)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        F.bernoulli_log_prob(logits, torch.full((4, 20), 2, dtype=torch.uint8))


@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_class_indices_out_of_range_raise(bad: int) -> None:
    x = torch.zeros(4, 5, dtype=torch.int64)
    x[1, 3] = bad
    latent = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="class indices between 0 and 2"):
        F.categorical_log_prob(torch.zeros(4, 3, 5), x)
    with pytest.raises(ValueError, match="class indices between 0 and 2"):
        F.elbo(x, torch.zeros(4, 3, 5), latent, latent, likelihood="categorical")
    with pytest.raises(ValueError, match="class indices between 0 and 2"):
        F.iwae_bound(
            x,
            torch.zeros(4, 6, 3, 5),
            torch.zeros(4, 6, 2),
            latent,
            latent,
            likelihood="categorical",
        )


def test_fractional_class_indices_raise() -> None:
    with pytest.raises(ValueError, match="class indices"):
        F.categorical_log_prob(torch.zeros(2, 3, 4), torch.full((2, 4), 0.5))


def test_bad_values_are_nan_where_a_check_would_synchronise() -> None:
    x = torch.zeros(2, 3)
    x[1, 0] = 2.0
    marked = torch.func.vmap(F.bernoulli_log_prob)(torch.zeros(2, 3), x)
    assert marked[0].isfinite()
    assert marked[1].isnan()


@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 5), (4, 0, 5), (3, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    logits = torch.zeros(shape, requires_grad=True)
    x = torch.zeros(shape)
    for out in (
        F.bernoulli_log_prob(logits, x),
        F.gaussian_log_prob(x, logits, logits),
        F.gaussian_kl(logits, logits),
    ):
        assert out.shape == shape[:-1]
        assert (out == 0).all()
        (grad,) = torch.autograd.grad(out.sum(), logits, retain_graph=True)
        assert grad.shape == shape


def test_empty_batch_of_bounds() -> None:
    latent = torch.zeros(0, 2)
    assert F.elbo(torch.zeros(0, 5), torch.zeros(0, 5), latent, latent).shape == (0,)
    out = F.iwae_bound(
        torch.zeros(0, 5), torch.zeros(0, 3, 5), torch.zeros(0, 3, 2), latent, latent
    )
    assert out.shape == (0,)
    assert F.categorical_log_prob(torch.zeros(0, 3, 5), torch.zeros(0, 5)).shape == (0,)
    assert F.log_mean_exp(torch.zeros(0, 3)).shape == (0,)
    assert F.reparameterize(latent, latent, 4).shape == (0, 4, 2)


def test_inputs_are_not_written() -> None:
    args = bound_inputs(3, 4)
    before = {name: value.clone() for name, value in args.items()}
    leaves = {k: v.requires_grad_() for k, v in args.items() if k != "x"}
    F.iwae_bound(**{**args, **leaves}).sum().backward()
    assert all(torch.equal(args[name].detach(), before[name]) for name in args)


def test_mixed_precision_arguments_give_float32() -> None:
    args = bound_inputs(3, 4)
    args["decoder_out"] = args["decoder_out"].bfloat16()
    assert F.iwae_bound(**args).dtype == torch.float32
    args["mean"] = args["mean"].double()
    assert F.iwae_bound(**args).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = F.bernoulli_log_prob(torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3))
    assert out.dtype == torch.float32


def test_integer_data_is_not_rounded_to_the_dtype_of_the_mean() -> None:
    for dtype, value in ((torch.bfloat16, 1001), (torch.float16, 70000)):
        mean = torch.tensor([[1000.0]], dtype=dtype)
        want = -0.5 * ((value - 1000.0) ** 2 + math.log(2 * math.pi))
        got = F.gaussian_log_prob(torch.tensor([[value]]), mean)
        torch.testing.assert_close(got, tensor(want))


def test_wide_unsigned_integers_are_data() -> None:
    for dtype in (torch.uint16, torch.uint32, torch.uint64):
        x = torch.tensor([[0, 1, 1]]).to(dtype)
        logits = torch.tensor([[0.5, -1.0, 2.0]])
        want = F.bernoulli_log_prob(logits, x.float())
        torch.testing.assert_close(F.bernoulli_log_prob(logits, x), want)
        classes = torch.randn(1, 2, 3)
        want = F.categorical_log_prob(classes, x.long())
        torch.testing.assert_close(F.categorical_log_prob(classes, x), want)
        with pytest.raises(ValueError, match="class indices between 0 and 1"):
            F.categorical_log_prob(classes, torch.tensor([[0, 1, 2]]).to(dtype))


def test_forward_mode_derivatives() -> None:
    # C++ autograd functions know no forward mode: a tangent would vanish without a word.
    args = bound_inputs(3, 4)
    direction = torch.randn_like(args["decoder_out"])

    def bound(out: Tensor) -> Tensor:
        return F.iwae_bound(**{**args, "decoder_out": out})

    leaf = args["decoder_out"].clone().requires_grad_()
    want = torch.autograd.functional.jvp(bound, leaf, direction)[1]
    for primal in (args["decoder_out"], leaf):
        with forward_ad.dual_level():
            out = forward_ad.unpack_dual(bound(forward_ad.make_dual(primal, direction)))
        torch.testing.assert_close(out.tangent, want)


def test_same_tensor_in_two_arguments() -> None:
    t = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda t: F.gaussian_log_prob(t, t * 1.0, t), (t,))
    torch.autograd.gradgradcheck(lambda t: F.gaussian_kl(t, t), (t,))
