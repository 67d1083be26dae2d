"""Sums over long rows, many rows and many samples keep the error rule, as PyTorch's pairwise sums do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from helpers.op_checks import OpCase, check_reference
from torch import Tensor

from dgm_fast import functional as F
from dgm_fast import ops
from dgm_fast import reference as R

LONG, MANY = 200_000, 20_000
Builder = Callable[[torch.Generator], tuple[Tensor, ...]]


@pytest.fixture(params=ops.runnable_isas() or [None], autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[None]:
    active = ops.active_isa()
    if active is None:
        pytest.skip("the C++ extension is not built")
    ops.use_isa(request.param)
    yield
    ops.use_isa(active)


def randn(generator: torch.Generator, *shape: int, scale: float = 1.0, shift: float = 0.0):
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift


def bits(generator: torch.Generator, *shape: int) -> Tensor:
    return (torch.rand(shape, generator=generator) < 0.4).double()


def case(function, reference, build: Builder, grads=(0,)) -> OpCase:
    def inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
        tensors = build(torch.Generator().manual_seed(0))
        return tuple(t.to(dtype) if t.is_floating_point() else t for t in tensors)

    return OpCase(function.__name__, function.__name__, function, reference, inputs, grads)


ROWS = {
    "bernoulli": case(
        F.bernoulli_log_prob,
        R.bernoulli_log_prob,
        lambda g: (randn(g, 2, LONG, scale=3.0), bits(g, 2, LONG)),
    ),
    "gaussian": case(
        F.gaussian_log_prob,
        R.gaussian_log_prob,
        lambda g: tuple(randn(g, 2, LONG) for _ in range(3)),
    ),
    "gaussian-unit": case(
        F.gaussian_log_prob, R.gaussian_log_prob, lambda g: (randn(g, 2, LONG), randn(g, 2, LONG))
    ),
    "gaussian-shared": case(
        F.gaussian_log_prob,
        R.gaussian_log_prob,
        lambda g: (randn(g, 2, LONG), randn(g, 2, LONG), randn(g, LONG)),
    ),
    "gaussian-equal-terms": case(
        F.gaussian_log_prob,
        R.gaussian_log_prob,
        lambda g: (torch.full((1, 3000), 30.0), torch.zeros(1, 3000), torch.full((1, 3000), 1e-4)),
    ),
    "kl": case(F.gaussian_kl, R.gaussian_kl, lambda g: (randn(g, 2, LONG), randn(g, 2, LONG))),
    "kl-small-beside-large": case(
        F.gaussian_kl,
        R.gaussian_kl,
        lambda g: (randn(g, 2, 3000, scale=20.0), torch.full((2, 3000), 0.02)),
    ),
    "categorical": case(
        F.categorical_log_prob,
        R.categorical_log_prob,
        lambda g: (randn(g, 2, 3, LONG), torch.randint(0, 3, (2, LONG), generator=g)),
    ),
    "categorical-classes": case(
        F.categorical_log_prob,
        R.categorical_log_prob,
        lambda g: (randn(g, 2, 50_000, 9), torch.zeros(2, 9, dtype=torch.int64)),
        (0,),
    ),
    "log_mean_exp": case(
        lambda t: F.log_mean_exp(t), R.log_mean_exp, lambda g: (randn(g, 2, LONG, scale=2.0),), (0,)
    ),
    "log_mean_exp-columns": case(
        lambda t: F.log_mean_exp(t, 1),
        lambda t: R.log_mean_exp(t, 1),
        lambda g: (randn(g, 2, 50_000, 9),),
        (0,),
    ),
    "log_mean_exp-alike": case(
        # log(sum) - log(count) cancels here.
        lambda t: F.log_mean_exp(t),
        R.log_mean_exp,
        lambda g: (randn(g, 33, 100, scale=0.1),),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_long_rows(name: str) -> None:
    check_reference(ROWS[name], torch.float32)


def _iwae(module):
    def iwae_bound(x, out, z, mean, log_var):
        return module.iwae_bound(x, out, z, mean, log_var)

    return iwae_bound


def _gaussian_iwae(module):
    def iwae_bound(x, out, out_log_var, z, mean, log_var):
        pair = (out, out_log_var)
        return module.iwae_bound(x, pair, z, mean, log_var, likelihood="gaussian")

    return iwae_bound


GRADIENTS = {
    "gaussian-shared": case(
        F.gaussian_log_prob,
        R.gaussian_log_prob,
        lambda g: (randn(g, LONG, 4, shift=3.0), randn(g, 4), randn(g, 4)),
        (1, 2),
    ),
    "kl-shared-prior": case(
        F.gaussian_kl,
        R.gaussian_kl,
        lambda g: (randn(g, LONG, 4, shift=1.0), randn(g, LONG, 4), randn(g, 4), randn(g, 4)),
        (2, 3),
    ),
    "reparameterize": case(
        lambda mean, log_var, eps: F.reparameterize(mean, log_var, MANY, noise=eps),
        R.reparameterize,
        lambda g: (randn(g, 2, 8), randn(g, 2, 8), randn(g, 2, MANY, 8)),
        (0, 1),
    ),
    # Samples alike, so that the rounding of their weights does not hide the sums'.
    "iwae": case(
        _iwae(F),
        _iwae(R),
        lambda g: (
            bits(g, 2, 7),
            randn(g, 2, 1, 7, scale=0.2).expand(2, MANY, 7).contiguous(),
            randn(g, 2, 1, 3, shift=1.0).expand(2, MANY, 3).contiguous(),
            randn(g, 2, 3),
            randn(g, 2, 3),
        ),
        (0, 3, 4),
    ),
    "iwae-gaussian": case(
        _gaussian_iwae(F),
        _gaussian_iwae(R),
        lambda g: (
            randn(g, 2, 7),
            randn(g, 2, 1, 7, scale=0.2).expand(2, MANY, 7).contiguous(),
            randn(g, 7, scale=0.2),
            randn(g, 2, 1, 3, shift=1.0).expand(2, MANY, 3).contiguous(),
            randn(g, 2, 3),
            randn(g, 2, 3),
        ),
        (0, 2, 4, 5),
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_what_many_rows_share(name: str) -> None:
    check_reference(GRADIENTS[name], torch.float32)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_sure_predictions_beside_unsure_ones(size: float) -> None:
    # x l and log(1 + e^l) are both near `size` for the sure ones, and their difference is 0.
    logits = torch.full((1, 257), 0.1)
    x = torch.zeros(1, 257)
    logits[0, 64:], x[0, 64:] = size, 1.0
    inputs = (logits, x)
    bernoulli = OpCase(
        "bernoulli", "bernoulli", F.bernoulli_log_prob, R.bernoulli_log_prob, lambda _: inputs, (0,)
    )
    check_reference(bernoulli, torch.float32, inputs)
