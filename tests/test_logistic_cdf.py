"""CDFs of logistic mixtures and their inverse: mathematics, limits, bad values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dgm_fast import functional as F
from dgm_fast import ops


def mixture(
    *shape: int, components: int = 5, log_scale: float = -0.5, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(scale: float) -> Tensor:
        size = (*shape, components)
        return scale * torch.randn(size, generator=generator, dtype=torch.float64)

    return normal(1.0).to(dtype), normal(2.0).to(dtype), (normal(0.7) + log_scale).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_scale", [-0.5, -5.0, 3.0])
def test_round_trip(log_scale: float, dtype: torch.dtype) -> None:
    # Between narrow components far apart the CDF is flat, and Newton steps alone would run away.
    parameters = mixture(300, components=7, log_scale=log_scale, dtype=dtype)
    z = torch.rand(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = z.clamp(1e-4, 1 - 1e-4).to(dtype)
    x, log_det_back = F.logistic_mixture_cdf(z, *parameters, inverse=True)
    again, log_det = F.logistic_mixture_cdf(x, *parameters)
    spacing = 4 * torch.finfo(dtype).eps * (1 + x.abs()) * log_det.exp()
    assert ((again - z).abs() <= 20 * torch.finfo(dtype).eps + spacing).all()
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("z", [1e-30, 1e-12, 1e-6, 0.5, 1 - 1e-6])
def test_inverse_in_the_tails(z: float) -> None:
    parameters = mixture(50, dtype=torch.float32)
    value = torch.full((50,), z)
    x, log_det = F.logistic_mixture_cdf(value, *parameters, inverse=True)
    double = [t.double() for t in parameters]
    want, want_log_det = F.logistic_mixture_cdf(value.double(), *double, inverse=True)
    assert x.isfinite().all()
    torch.testing.assert_close(x.double(), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_det.double(), want_log_det, rtol=1e-4, atol=1e-3)


def test_ends_of_the_unit_interval() -> None:
    parameters = mixture(2)
    z = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for backend in ("auto", "reference"):
        with ops.backend(backend):
            x, log_det = F.logistic_mixture_cdf(z, *parameters, inverse=True)
        assert x.tolist() == [-math.inf, math.inf]
        assert log_det.tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_density_far_from_every_component(dtype: torch.dtype) -> None:
    parameters = [t.to(dtype).requires_grad_() for t in mixture(4, dtype=torch.float32)]
    x = torch.tensor([-1e4, 1e4, -1e30, 1e30]).to(dtype).requires_grad_()
    z, log_density = F.logistic_mixture_cdf(x, *parameters)
    assert z.tolist() == pytest.approx([0.0, 1.0, 0.0, 1.0], abs=1e-6)
    assert log_density.isfinite().all() and (log_density < -1e3).all()
    grads = torch.autograd.grad([z.float().sum(), log_density.sum()], [x, *parameters])
    assert grads[0].sign().tolist() == [1.0, -1.0, 1.0, -1.0]
    assert all(g[:2].isfinite().all() for g in grads)


def test_extreme_scales_stay_finite() -> None:
    logits, means, _ = mixture(6, dtype=torch.float32)
    x = torch.linspace(-3, 3, 6)
    for value in (-80.0, -30.0, 30.0, 80.0):
        log_scales = torch.full_like(means, value)
        leaves = [t.clone().requires_grad_() for t in (x, logits, means, log_scales)]
        z, log_density = F.logistic_mixture_cdf(*leaves)
        assert ((z >= 0) & (z <= 1)).all() and log_density.isfinite().all()
        grads = torch.autograd.grad([z.sum(), log_density.sum()], leaves)
        assert not any(g.isnan().any() for g in grads)


def test_an_absent_component_changes_nothing() -> None:
    logits, means, log_scales = mixture(40)
    x = torch.linspace(-4, 4, 40, dtype=torch.float64)
    more = torch.cat([logits, torch.full((40, 1), -math.inf, dtype=torch.float64)], -1)
    wider = [
        torch.cat([t, 100 * torch.ones(40, 1, dtype=torch.float64)], -1)
        for t in (means, log_scales)
    ]
    for inverse in (False, True):
        point = torch.sigmoid(x) if inverse else x
        want = F.logistic_mixture_cdf(point, logits, means, log_scales, inverse=inverse)
        torch.testing.assert_close(
            F.logistic_mixture_cdf(point, more, *wider, inverse=inverse), want
        )


def test_density_integrates_to_one_and_is_the_derivative() -> None:
    grid = torch.linspace(-60, 60, 200_001, dtype=torch.float64)
    parameters = mixture(1)
    z, log_density = F.logistic_mixture_cdf(grid, *parameters)
    assert torch.trapezoid(log_density.exp(), grid).item() == pytest.approx(1.0, abs=1e-8)
    x = grid[90_000:110_000:50].clone().requires_grad_()
    z, log_density = F.logistic_mixture_cdf(x, *parameters)
    (slope,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(slope.log(), log_density.detach())


def test_values_outside_the_unit_interval() -> None:
    parameters = mixture(2)
    for bad in (-0.1, 1.1, math.nan):
        for backend in ("auto", "reference"):
            with ops.backend(backend), pytest.raises(ValueError, match=r"\[0, 1\]"):
                F.logistic_mixture_cdf(
                    torch.tensor([0.5, bad], dtype=torch.float64), *parameters, inverse=True
                )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(4, 0)}, "logits must have shape"),
        ({"means": torch.zeros(4, 2)}, "means must have 3 components"),
        ({"log_scales": torch.zeros(5, 3)}, "log_scales has shape"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "x": torch.zeros(4),
        **{name: torch.zeros(4, 3) for name in ("logits", "means", "log_scales")},
    }
    with pytest.raises(ValueError, match=message):
        F.logistic_mixture_cdf(**(arguments | change))
    with pytest.raises(TypeError, match="x must be floating point"):
        F.logistic_mixture_cdf(**(arguments | {"x": torch.zeros(4, dtype=torch.int64)}))
