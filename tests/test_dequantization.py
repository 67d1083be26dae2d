"""Densities as models of levels: uniform and variational dequantisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dgm_fast.models import Dequantized, FlowPP, Glow, VariationalDequantizer


def randomize(module: nn.Module, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)


def tiny_flow() -> FlowPP:
    """Of images of 2 by 4 pixels, on (0, 1) to rounding."""
    torch.manual_seed(0)
    flow = FlowPP(
        (2, 4), num_couplings=(2, 0, 1), num_mixtures=2, channels=4, num_blocks=1, logit_alpha=1e-6
    )
    randomize(flow, 0.1)
    return flow.eval()


class Quadratic(nn.Module):
    """A density on [0, 1]^2 with known integrals: (1 + a (x - 1/2)) (1 + b (y - 1/2))."""

    slopes = torch.tensor([1.5, -1.0])

    def log_prob(self, x: Tensor) -> Tensor:
        return (1 + self.slopes * (x - 0.5)).log().sum(1)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        return torch.rand(n, 2, generator=generator) * 1.2 - 0.1


def exact(x: Tensor, levels: int) -> Tensor:
    """Integrals of the density over the cells of x."""
    centres = (x + 0.5) / levels
    return ((1 + Quadratic.slopes * (centres - 0.5)) / levels).log().sum(1)


@pytest.mark.parametrize("levels", [2, 5])
def test_importance_sampling_finds_the_integral(levels: int) -> None:
    model = Dequantized(Quadratic(), levels)
    x = torch.cartesian_prod(*[torch.arange(levels)] * 2)
    torch.manual_seed(0)
    torch.testing.assert_close(model.log_prob(x, 4000), exact(x, levels), atol=0.02, rtol=0)
    bound = torch.stack([model.elbo(x) for _ in range(200)]).mean(0)
    assert (bound < exact(x, levels) + 0.02).all()
    bits = model.bits_per_dim(x, 4000)
    torch.testing.assert_close(bits, -exact(x, levels) / (2 * math.log(2)), atol=0.02, rtol=0)


def test_samples_are_levels() -> None:
    drawn = Dequantized(Quadratic(), 3).sample(500)
    assert drawn.dtype == torch.int64 and set(drawn.unique().tolist()) == {0, 1, 2}
    drawn = Dequantized(Quadratic(), 3, dtype=torch.float32).sample(5)
    assert drawn.dtype == torch.float32


def test_probabilities_of_a_flow_sum_to_one() -> None:
    """Quadrature: the sum over all images of 2 by 2 bits is the integral of the density."""
    torch.manual_seed(0)
    flow = Glow((2, 2), num_levels=1, num_steps=2, channels=4, logit_alpha=1e-6)
    flow.loss(torch.rand(200, 4))  # actnorm
    randomize(flow, 0.05)
    flow.double().eval()
    x = torch.cartesian_prod(*[torch.arange(2)] * 4).double()
    # Midpoints of u in the logit's coordinate, where the density is smooth to the ends.
    count, reach = 14, 8.0
    v = reach * (2 * (torch.arange(count, dtype=torch.float64) + 0.5) / count - 1)
    y, weight = v.sigmoid(), (v.sigmoid() * (-v).sigmoid() * 2 * reach / count).log()
    # One grid over the whole cube has its points in the cells of all images.
    grid = torch.cartesian_prod(*[y] * 4)
    weights = torch.cartesian_prod(*[weight] * 4).sum(1)
    cells = ((2 * grid).floor() * torch.tensor([8, 4, 2, 1])).sum(1).long()
    with torch.no_grad():
        mass = (flow.log_prob(grid) + weights).exp()
    probabilities = torch.zeros(16, dtype=torch.float64).index_add(0, cells, mass)
    assert abs(probabilities.sum().item() - 1) < 2e-3
    # And they are what the model of levels estimates.
    torch.manual_seed(1)
    estimate = Dequantized(flow, 2).log_prob(x, 3000)
    torch.testing.assert_close(estimate.exp(), probabilities, atol=0.015, rtol=0.1)


def test_variational_density_is_normalised() -> None:
    """q(u | x) integrates to 1, and its draws are inside of [0, 1)."""
    torch.manual_seed(0)
    q = VariationalDequantizer((1, 2), 4, num_couplings=3, channels=4)
    randomize(q, 0.3)
    x = torch.tensor([[3.0, 1.0]])
    n = 40000
    u, log_q = q(x.expand(n, 2))
    assert u.shape == (n, 2) and (u >= 0).all() and (u < 1).all()
    # E_q[f(u) / q(u)] is the integral of f over the square, here of 1 and of u_0 (1 - u_1).
    inverse = (-log_q).exp()
    for value, integral in ((inverse, 1.0), (inverse * u[:, 0] * (1 - u[:, 1]), 0.25)):
        error = value.std() / math.sqrt(n)
        assert error < 0.05 and abs(value.mean() - integral) < 5 * error


@pytest.mark.parametrize("coupling", ["affine", "mixture", "spline"])
def test_log_q_is_that_of_the_map_from_noise(coupling: str) -> None:
    torch.manual_seed(0)
    q = VariationalDequantizer((2, 2), 3, channels=4, coupling=coupling)
    randomize(q, 0.2)
    q.double()
    noise = torch.rand(1, 4, dtype=torch.float64) * 0.8 + 0.1
    x = torch.tensor([[0.0, 2.0, 1.0, 2.0]], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda e: q(x, noise=e)[0], noise)
    _, log_q = q(x, noise=noise)
    torch.testing.assert_close(-log_q[0], torch.linalg.slogdet(jacobian.reshape(4, 4))[1])


def test_a_new_variational_dequantiser_is_uniform() -> None:
    q = VariationalDequantizer((2, 2), 3, channels=4)
    noise = torch.rand(5, 4)
    u, log_q = q(torch.zeros(5, 4), noise=noise)
    torch.testing.assert_close(u, noise)
    torch.testing.assert_close(log_q, torch.zeros(5), atol=1e-5, rtol=0)


def test_bounds_lie_below_the_importance_sampled_estimate() -> None:
    flow = tiny_flow()
    q = VariationalDequantizer((2, 4), 4, channels=4)
    randomize(q, 0.05)
    x = torch.randint(0, 4, (20, 8), generator=torch.Generator().manual_seed(2))
    torch.manual_seed(1)
    estimates = []
    for dequantizer in (None, q):
        model = Dequantized(flow, 4, dequantizer=dequantizer)
        weights = model.log_weights(x, 2000)
        estimates.append(weights.logsumexp(1) - math.log(2000))
        assert (weights.mean(1) <= estimates[-1]).all()
    # Both estimate the same probabilities.
    assert abs((estimates[1] - estimates[0]).mean()) < 0.05


def test_training_q_tightens_the_bound() -> None:
    flow = tiny_flow().requires_grad_(False)
    torch.manual_seed(0)
    q = VariationalDequantizer((2, 4), 2, channels=8)
    model = Dequantized(flow, 2, dequantizer=q)
    x = torch.randint(0, 2, (50, 8), generator=torch.Generator().manual_seed(2))
    before = model.log_weights(x, 20).mean()
    optimizer = torch.optim.Adam(q.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step()
    after = model.log_weights(x, 20).mean()
    assert after > before + 0.05
    assert after <= model.log_prob(x, 500).mean()


def test_chunks_context_and_options(monkeypatch) -> None:
    torch.manual_seed(0)
    flow = Glow((2, 2), num_levels=1, num_steps=1, channels=4, context_dim=2, logit_alpha=None)
    randomize(flow, 0.3)
    model = Dequantized(flow.eval(), 2)
    x, context = torch.randint(0, 2, (3, 4)), torch.randn(3, 2)
    torch.manual_seed(1)
    whole = model.log_weights(x, 200, context=context).mean(1)
    monkeypatch.setattr("dgm_fast.models.dequantized._CHUNK_ELEMENTS", 12 * 7)
    torch.manual_seed(1)
    parts = model.log_weights(x, 200, context=context)
    assert parts.shape == (3, 200)
    torch.testing.assert_close(parts.mean(1), whole, atol=0.1, rtol=0)
    for row in range(3):
        alone = model.log_weights(x[row : row + 1], 200, context=context[row])
        torch.testing.assert_close(alone.mean(1), whole[row : row + 1], atol=0.1, rtol=0)
    drawn = model.sample(2, context=context[:2], temperature=0.5)
    assert drawn.shape == (2, 1, 2, 2)
    model.loss(x, context=context).backward()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Dequantized(Quadratic(), 1), "num_levels must be at least 2"),
        (lambda: VariationalDequantizer((2, 3), 2), "odd width 3"),
        (lambda: VariationalDequantizer((2, 2), 1), "num_levels must be at least 2"),
        (lambda: VariationalDequantizer((2, 2), 2, num_couplings=0), "num_couplings"),
    ],
)
def test_bad_arguments(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
