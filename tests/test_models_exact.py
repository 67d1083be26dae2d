"""Models whose log p(x) is known: bounds lie below it in order, and the estimate reaches it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from dgm_fast.models import IWAE, VAE

D, L = 5, 2


def linear_gaussian(orthogonal: bool, spread: float = 1.0) -> tuple[VAE, MultivariateNormal]:
    """x = W z + b + unit noise, its marginal, and an encoder at the exact posterior mean.

    With orthogonal columns the posterior is diagonal; ``spread`` scales the encoder's variance.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(D, L, dtype=torch.float64, generator=generator)
    bias = torch.randn(D, dtype=torch.float64, generator=generator)
    if orthogonal:
        weight = torch.linalg.qr(weight).Q * torch.tensor([1.5, 0.7]).double()
    model = VAE(D, L, hidden_sizes=(), likelihood="gaussian").double()
    covariance = torch.linalg.inv(torch.eye(L).double() + weight.T @ weight)
    gain = covariance @ weight.T  # [L, D]
    with torch.no_grad():
        model.decoder.output.weight.copy_(weight)
        model.decoder.output.bias.copy_(bias)
        model.encoder.output.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
        log_var = torch.log(spread * covariance.diagonal())
        model.encoder.output.bias.copy_(torch.cat([-gain @ bias, log_var]))
    return model, MultivariateNormal(bias, torch.eye(D).double() + weight @ weight.T)


def draw(marginal: MultivariateNormal, n: int) -> Tensor:
    torch.manual_seed(1)
    return marginal.sample((n,))


def test_exact_posterior_makes_every_bound_tight() -> None:
    model, marginal = linear_gaussian(orthogonal=True)
    x = draw(marginal, 8)
    exact = marginal.log_prob(x)
    for samples in (1, 2, 7):
        torch.testing.assert_close(model.iwae_bound(x, samples), exact)
    torch.testing.assert_close(model.log_prob(x, 100, chunk_size=9), exact)


def test_bounds_are_ordered() -> None:
    model, marginal = linear_gaussian(orthogonal=False, spread=2.0)
    x = draw(marginal, 1)
    exact = marginal.log_prob(x)
    rows = x.expand(20_000, D)
    means, errors = [], []
    with torch.no_grad():
        for values in (
            model.elbo(rows),
            model.iwae_bound(rows, 1),
            model.iwae_bound(rows, 5),
            model.iwae_bound(rows, 50),
        ):
            means.append(values.mean().item())
            errors.append(values.std().item() / math.sqrt(len(values)))
    elbo, single, five, fifty = means
    assert elbo == pytest.approx(single, abs=5 * (errors[0] + errors[1]))
    assert elbo + 5 * (errors[0] + errors[2]) < five
    assert five + 5 * (errors[2] + errors[3]) < fifty
    assert fifty < exact.item() + 5 * errors[3]


def test_log_prob_converges_to_the_exact_value() -> None:
    model, marginal = linear_gaussian(orthogonal=False, spread=1.5)
    x = draw(marginal, 8)
    torch.manual_seed(2)
    error = (model.log_prob(x, 20_000) - marginal.log_prob(x)).abs()
    assert error.max() < 0.03
    coarse = (model.log_prob(x, 5) - marginal.log_prob(x)).abs()
    assert error.mean() < coarse.mean() / 5


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
def test_log_prob_matches_quadrature_and_sums_to_one(likelihood: str) -> None:
    dims, classes = (4, 2) if likelihood == "bernoulli" else (3, 3)
    torch.manual_seed(3)
    model = VAE(
        dims,
        1,
        hidden_sizes=(6,),
        likelihood=likelihood,
        num_classes=classes if likelihood == "categorical" else None,
        activation=nn.Tanh,
    ).double()
    with torch.no_grad():
        model.decoder.output.weight.mul_(4)
    x = torch.cartesian_prod(*[torch.arange(classes)] * dims)  # every outcome
    grid = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    z = grid.view(1, -1, 1).expand(len(x), -1, 1)
    log_joint = model.log_likelihood(x, z) + model.log_prior(z)
    exact = torch.logsumexp(log_joint, 1) + math.log(grid[1] - grid[0])
    assert exact.exp().sum().item() == pytest.approx(1.0, abs=1e-9)
    estimate = model.log_prob(x, 20_000, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(estimate, exact.detach(), rtol=0, atol=0.05)
    assert estimate.exp().sum().item() == pytest.approx(1.0, abs=0.01)


class LearnedPrior(IWAE):
    """A mixture of two Gaussians in place of N(0, I): the hook that other priors use."""

    standard_normal_prior = False

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.means = nn.Parameter(torch.linspace(-2, 2, 2 * self.latent_dim).view(2, -1))

    def log_prior(self, z: Tensor) -> Tensor:
        components = -0.5 * (z.unsqueeze(-2) - self.means).square().sum(-1)
        constant = math.log(2) + 0.5 * self.latent_dim * math.log(2 * math.pi)
        return torch.logsumexp(components, -1) - constant

    def sample_prior(
        self,
        n: int,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        component = torch.randint(2, (n,), generator=generator)
        return self.means[component] + super().sample_prior(n, noise=noise, generator=generator)


def reference_gradients(
    model: IWAE, x: Tensor, noise: Tensor, context: Tensor | None = None
) -> dict[str, dict[str, Tensor]]:
    """Gradients of the summed bound per estimator, each from its definition.

    "iwae": d/d(theta, phi) log mean w. With the score of q stopped and w~ the normalised weights,
    "stl": sum_k w~_k d log w_k for all parameters; "dreg": the same for theta, and
    sum_k w~_k^2 (d log w_k / d z_k) (d z_k / d phi) for phi, here as a vector-Jacobian product.
    """

    def log_q(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        terms = log_var + (z - mean).square() / log_var.exp() + math.log(2 * math.pi)
        return -0.5 * terms.sum(-1)

    names, parameters = zip(*model.named_parameters(), strict=True)
    mean, log_var = (t.unsqueeze(1) for t in model.encode(x, context=context))
    z = mean + torch.exp(log_var / 2) * noise  # [B, K, L]

    def log_joint(z: Tensor) -> Tensor:
        return model.log_likelihood(x, z, context=context) + model.log_prior(z)

    def gradients(value: Tensor) -> dict[str, Tensor]:
        grads = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
        return dict(zip(names, grads, strict=True))

    log_w = log_joint(z) - log_q(z, mean, log_var)
    weight = torch.softmax(log_w.detach(), 1)
    stopped = log_joint(z) - log_q(z, mean.detach(), log_var.detach())
    leaf = z.detach().requires_grad_()
    at_leaf = log_joint(leaf) - log_q(leaf, mean.detach(), log_var.detach())
    (path,) = torch.autograd.grad(at_leaf.sum(), leaf, retain_graph=True)
    through_z = gradients((z * (weight.square().unsqueeze(-1) * path)).sum())
    direct = gradients((at_leaf * weight).sum())
    return {
        "iwae": gradients(torch.logsumexp(log_w, 1).sum()),
        "stl": gradients((stopped * weight).sum()),
        "dreg": {name: through_z[name] + direct[name] for name in names},
    }


@pytest.mark.parametrize("estimator", ["iwae", "stl", "dreg"])
@pytest.mark.parametrize("model_class", [IWAE, LearnedPrior])
@pytest.mark.parametrize("context_dim", [None, 3])
def test_estimators_from_their_definitions(
    model_class: type[IWAE], estimator: str, context_dim: int | None
) -> None:
    torch.manual_seed(5)
    model = model_class(
        6, 2, hidden_sizes=(7,), num_samples=4, estimator=estimator, context_dim=context_dim
    ).double()
    x = torch.randint(2, (5, 6))
    context = None if context_dim is None else torch.randn(5, context_dim).double()
    noise = torch.randn(5, 4, 2, dtype=torch.float64)
    expected = reference_gradients(model, x, noise, context)
    bound = model.iwae_bound(x, context=context, noise=noise)
    bound.sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[estimator][name], msg=name)
    # The three differ, so that the comparison tells them apart.
    encoder = "encoder.output.weight"
    others = [expected[other][encoder] for other in expected if other != estimator]
    assert all((expected[estimator][encoder] - g).abs().max() > 1e-4 for g in others)


def test_learned_prior_enters_bounds_and_samples() -> None:
    torch.manual_seed(6)
    model = LearnedPrior(6, 2, hidden_sizes=(7,)).double()
    x, noise = torch.randint(2, (5, 6)), torch.randn(5, 1, 2, dtype=torch.float64)
    # The sampled divergence of the ELBO is the one of the bound with K = 1.
    torch.testing.assert_close(
        model.elbo(x, noise=noise[:, 0]), model.iwae_bound(x, 1, noise=noise)
    )
    z = model.sample_prior(4000, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(z.mean(0), model.means.mean(0), rtol=0, atol=0.15)
    assert model.sample(3).shape == (3, 6)
