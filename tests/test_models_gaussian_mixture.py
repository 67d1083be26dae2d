"""GaussianMixture: densities, conditional samples, and fits by EM and by gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import dgm_fast
from dgm_fast.models import GaussianMixture, _em, _mixture

B, D, K = 40, 4, 3
KINDS = ("diagonal", "full")


def make(covariance: str, num_dims: int = D, num_components: int = K) -> GaussianMixture:
    """Components of different shapes, in float64."""
    torch.manual_seed(0)
    model = GaussianMixture(num_dims, num_components, covariance=covariance).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.8 * torch.randn(parameter.shape))
    return model


def distribution(model: GaussianMixture) -> MixtureSameFamily:
    covariances = model.covariances
    if model.covariance == "diagonal":
        covariances = torch.diag_embed(covariances)
    components = MultivariateNormal(model.means, covariances)
    return MixtureSameFamily(Categorical(logits=model.logits), components)


def normals(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uniforms(n: int, seed: int = 2) -> Tensor:
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def clusters(n: int = 600, spread: float = 0.3) -> tuple[Tensor, Tensor]:
    """Rows around three corners of a square, with their cluster."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    label = torch.arange(n) % 3
    return centres[label] + spread * torch.randn(n, 2, generator=generator), label


@pytest.mark.parametrize("covariance", KINDS)
def test_log_prob_against_torch_distributions(covariance: str) -> None:
    model, x = make(covariance), normals(B, D).requires_grad_()
    ours = torch.autograd.grad(model.log_prob(x).sin().sum(), [x, *model.parameters()])
    expected = distribution(model).log_prob(x)
    torch.testing.assert_close(model.log_prob(x), expected)
    theirs = torch.autograd.grad(expected.sin().sum(), [x, *model.parameters()])
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(model.loss(x), -expected.mean())
    torch.testing.assert_close(model(x), -expected.mean())
    torch.testing.assert_close(model.bits_per_dim(x), -expected / (D * math.log(2)))
    torch.testing.assert_close(
        model.component_log_prob(x), distribution(model).component_distribution.log_prob(x[:, None])
    )
    torch.testing.assert_close(model.scale_tril @ model.scale_tril.mT, matrices(model))


def matrices(model: GaussianMixture) -> Tensor:
    covariances = model.covariances
    return covariances if covariances.ndim == 3 else torch.diag_embed(covariances)


@pytest.mark.parametrize("covariance", KINDS)
def test_log_prob_against_scipy_and_scikit_learn(covariance: str) -> None:
    stats = pytest.importorskip("scipy.stats")
    sklearn_mixture = pytest.importorskip("sklearn.mixture")
    model, x = make(covariance, 5, 4), 2 * normals(B, 5)
    weights, means = model.weights.detach().numpy(), model.means.detach().numpy()
    densities = [
        w * stats.multivariate_normal(m, c).pdf(x.numpy())
        for w, m, c in zip(weights, means, matrices(model).detach().numpy(), strict=True)
    ]
    np.testing.assert_allclose(
        model.log_prob(x).detach().numpy(), np.log(np.sum(densities, 0)), rtol=1e-10
    )
    kind = "diag" if covariance == "diagonal" else "full"
    other = sklearn_mixture.GaussianMixture(4, covariance_type=kind)
    other.weights_, other.means_ = weights, means
    other.covariances_ = model.covariances.detach().numpy()
    precision = np.linalg.inv(matrices(model).detach().numpy())
    other.precisions_cholesky_ = (
        np.sqrt(np.diagonal(precision, axis1=1, axis2=2))
        if kind == "diag"
        else np.linalg.cholesky(precision)
    )
    np.testing.assert_allclose(
        model.log_prob(x).detach().numpy(), other.score_samples(x.numpy()), rtol=1e-10
    )
    np.testing.assert_allclose(
        model.responsibilities(x).numpy(), other.predict_proba(x.numpy()), atol=1e-12
    )
    assert model.predict(x).tolist() == other.predict(x.numpy()).tolist()


@pytest.mark.parametrize("covariance", KINDS)
def test_density_integrates_to_one(covariance: str) -> None:
    model = make(covariance, 2)
    axis = torch.linspace(-14, 14, 401, dtype=torch.float64)
    with torch.no_grad():
        total = model.log_prob(torch.cartesian_prod(axis, axis)).exp().sum()
    assert (total * (axis[1] - axis[0]) ** 2).item() == pytest.approx(1.0, abs=1e-6)


def test_full_covariances_that_are_diagonal_are_the_diagonal_model() -> None:
    diagonal = make("diagonal")
    full = GaussianMixture(D, K, covariance="full").double()
    with torch.no_grad():
        full.logits.copy_(diagonal.logits)
        full.means.copy_(diagonal.means)
        full.factors.copy_(torch.diag_embed(diagonal.log_vars / 2))
        # What is above the diagonal is not used.
        full.factors += torch.ones(D, D).triu(1)
    x = normals(B, D)
    torch.testing.assert_close(full.log_prob(x), diagonal.log_prob(x))
    noise = (uniforms(9), normals(9, D))
    torch.testing.assert_close(full.sample(9, noise=noise), diagonal.sample(9, noise=noise))
    given = torch.tensor([True, False, True, False])
    condition = (x[:9], given)
    torch.testing.assert_close(
        full.sample(9, conditioned_on=condition, noise=noise),
        diagonal.sample(9, conditioned_on=condition, noise=noise),
    )


def test_ill_conditioned_covariances_keep_their_digits() -> None:
    """Condition number 1e12, where a covariance formed in float32 is not positive definite."""
    torch.manual_seed(0)
    model = GaussianMixture(3, 1, covariance="full")
    with torch.no_grad():
        scales = torch.tensor([1.0, 1e-3, 1e-6]).log()
        model.factors.copy_(
            torch.diag(scales) + torch.tensor([[0, 0, 0], [0.9, 0, 0], [0.5, 1e-3, 0]])
        )
    eps = torch.randn(200, 3)
    exact = GaussianMixture(3, 1, covariance="full").double()
    exact.load_state_dict(model.state_dict())
    x = exact.sample(200, noise=(torch.rand(200).double(), eps.double()))
    expected = (
        -0.5 * eps.double().square().sum(1) - scales.double().sum() - 1.5 * math.log(2 * math.pi)
    )
    torch.testing.assert_close(exact.log_prob(x), expected, rtol=1e-6, atol=1e-6)
    # The given entry decides the others almost entirely; the conditional keeps their spread.
    given = torch.tensor([True, False, False])
    drawn = exact.sample(
        200, conditioned_on=(x, given), noise=(torch.rand(200).double(), eps.double())
    )
    torch.testing.assert_close(drawn, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("covariance", KINDS)
def test_evaluation_without_gradients_comes_in_chunks(
    covariance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = make(covariance), normals(B, D)
    given = torch.rand(B, D, generator=torch.Generator().manual_seed(5)) < 0.5
    noise = (uniforms(B), normals(B, D, seed=6))

    def everything() -> list[Tensor]:
        with torch.no_grad():
            return [
                model.log_prob(x),
                model.component_log_prob(x),
                model.responsibilities(x),
                model.sample(B, conditioned_on=(x, given), noise=noise),
            ]

    whole = everything()
    monkeypatch.setattr(_mixture, "_CHUNK_ELEMENTS", 7 * K * D)
    sizes = []
    inner = model._component_log_prob
    monkeypatch.setattr(model, "_component_log_prob", lambda x: (sizes.append(len(x)), inner(x))[1])
    for got, want in zip(everything(), whole, strict=True):
        torch.testing.assert_close(got, want)
    assert max(sizes) == 7


@pytest.mark.parametrize("covariance", KINDS)
def test_samples_are_a_function_of_the_noise(covariance: str) -> None:
    model, n = make(covariance), 50
    u, eps = uniforms(n), normals(n, D)
    u[0], u[1] = 0.0, 1 - 2**-53
    cdf = model.weights.detach().cumsum(0).numpy()
    component = np.searchsorted(cdf, u.numpy() * cdf[-1], "right")
    assert component[:2].tolist() == [0, K - 1] and len(set(component)) == K
    lower = torch.linalg.cholesky(matrices(model))[component]
    expected = model.means[component] + (lower @ eps.unsqueeze(2)).squeeze(2)
    x = model.sample(n, noise=(u, eps))
    torch.testing.assert_close(x, expected.detach())
    assert not x.requires_grad
    # The uniforms are drawn before the normals.
    source = torch.Generator().manual_seed(1)
    outside = (
        torch.rand(n, dtype=torch.float64, generator=source),
        torch.randn(n, D, dtype=torch.float64, generator=source),
    )
    drawn = model.sample(n, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.sample(n, noise=outside), drawn)


@pytest.mark.parametrize("covariance", KINDS)
def test_samples_have_the_moments_of_the_mixture(covariance: str) -> None:
    model, n = make(covariance), 60_000
    x = model.sample(n, generator=torch.Generator().manual_seed(7))
    weights, means = model.weights, model.means
    mean = weights @ means
    diff = means - mean
    second = (weights.view(-1, 1, 1) * (matrices(model) + diff[:, :, None] * diff[:, None])).sum(0)
    error = second.diagonal().sqrt() / math.sqrt(n)
    assert ((x.mean(0) - mean).abs() < 5 * error).all()
    scale = second.diagonal().sqrt()
    difference = (torch.cov(x.T) - second) / (scale[:, None] * scale)
    assert difference.abs().max() < 0.05


def exact_conditional(model: GaussianMixture, x: Tensor, given: Tensor) -> MixtureSameFamily:
    """p(missing | given) of one row by the textbook formulas (Bishop 2006, equations 2.81, 2.82)."""
    covariance, mean = matrices(model).detach(), model.means.detach()
    g, m = given.nonzero().squeeze(1), (~given).nonzero().squeeze(1)
    gg, gm, mm = covariance[:, g][:, :, g], covariance[:, g][:, :, m], covariance[:, m][:, :, m]
    gain = torch.linalg.solve(gg, gm).mT  # [K, m, g]
    conditional_mean = mean[:, m] + (gain @ (x[g] - mean[:, g]).unsqueeze(2)).squeeze(2)
    conditional = MultivariateNormal(conditional_mean, mm - gain @ gm)
    evidence = MultivariateNormal(mean[:, g], gg).log_prob(x[g])
    return MixtureSameFamily(Categorical(logits=model.logits.detach() + evidence), conditional)


@pytest.mark.parametrize("covariance", KINDS)
def test_conditional_samples_are_exact(covariance: str) -> None:
    model, n = make(covariance), 30
    x, u, eps = normals(n, D), uniforms(n), normals(n, D, seed=4)
    given = torch.rand(n, D, generator=torch.Generator().manual_seed(8)) < 0.5
    given[0], given[1] = False, True
    hidden = torch.where(given, x, math.nan)  # what is missing may be anything
    drawn = model.sample(n, conditioned_on=(hidden, given), noise=(u, eps))
    assert torch.equal(drawn[given], x[given])
    torch.testing.assert_close(drawn[0], model.sample(n, noise=(u, eps))[0])
    for row in range(2, n):
        missing = ~given[row]
        if not given[row].any() or not missing.any():
            continue
        mixture = exact_conditional(model, x[row], given[row])
        cdf = mixture.mixture_distribution.probs.cumsum(0)
        k = int((cdf <= u[row] * cdf[-1]).sum())
        component = mixture.component_distribution
        expected = component.loc[k] + component.scale_tril[k] @ eps[row][missing]
        torch.testing.assert_close(drawn[row][missing], expected)


@pytest.mark.parametrize("covariance", KINDS)
def test_conditional_samples_have_the_conditional_moments(covariance: str) -> None:
    model, n = make(covariance), 40_000
    values, given = normals(D), torch.tensor([True, False, False, True])
    x = model.sample(n, conditioned_on=(values, given), generator=torch.Generator().manual_seed(9))
    assert (x[:, given] == values[given]).all()
    exact = exact_conditional(model, values, given)
    error = exact.variance.sqrt() / math.sqrt(n)
    assert ((x[:, ~given].mean(0) - exact.mean).abs() < 5 * error).all()
    torch.testing.assert_close(x[:, ~given].var(0), exact.variance, rtol=0.06, atol=0)


@pytest.mark.parametrize("covariance", KINDS)
def test_one_component_is_the_maximum_likelihood_gaussian(covariance: str) -> None:
    x = 3 * normals(200, D) @ normals(D, D, seed=5) + 100
    model = GaussianMixture(D, 1, covariance=covariance).double()
    result = model.fit_em(x)
    covariances = torch.cov(x.T, correction=0)
    torch.testing.assert_close(model.means[0], x.mean(0))
    expected = covariances.diagonal() if covariance == "diagonal" else covariances
    torch.testing.assert_close(model.covariances[0].detach(), expected)
    assert result.converged and result.iterations == 1
    mean = MultivariateNormal(x.mean(0), torch.diag(expected) if expected.ndim == 1 else expected)
    assert result.log_likelihoods[-1] == pytest.approx(mean.log_prob(x).mean().item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance", KINDS)
def test_em_never_lowers_the_likelihood(covariance: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, D, generator=generator, dtype=dtype) ** 3
    model = GaussianMixture(D, 6, covariance=covariance).to(dtype)
    result = model.fit_em(x, tolerance=0.0, max_iterations=60, generator=generator)
    history = torch.tensor(result.log_likelihoods, dtype=torch.float64)
    assert len(history) == result.iterations + 1 > 10
    assert (history.diff() > -1e-12 * history.abs().max()).all()
    assert history[-1] > history[0] + 0.5
    # The record is of the parameters that the model now has.
    assert model.log_prob(x).mean().item() == pytest.approx(history[-1].item(), rel=1e-5)


@pytest.mark.parametrize("covariance", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_em_finds_clusters(covariance: str, seed: int) -> None:
    x, label = clusters()
    model = GaussianMixture(2, 3, covariance=covariance)
    result = model.fit_em(x, generator=torch.Generator().manual_seed(seed))
    assert result.converged
    found = model.predict(x)
    own = [found[label == k].mode().values.item() for k in range(3)]
    assert sorted(own) == [0, 1, 2] and torch.equal(torch.tensor(own)[label], found)
    torch.testing.assert_close(model.weights.detach(), torch.full((3,), 1 / 3), rtol=0.01, atol=0)
    order = torch.tensor(own)
    centres = torch.stack([x[label == k].mean(0) for k in range(3)])
    torch.testing.assert_close(model.means[order].detach(), centres, rtol=0, atol=1e-3)


def test_em_step_equals_that_of_scikit_learn() -> None:
    sklearn_mixture = pytest.importorskip("sklearn.mixture")
    x = normals(200, D) ** 3
    for covariance, kind in (("diagonal", "diag"), ("full", "full")):
        model = GaussianMixture(D, K, covariance=covariance).double()
        model.initialize(x, generator=torch.Generator().manual_seed(1))
        other = sklearn_mixture.GaussianMixture(
            K,
            covariance_type=kind,
            reg_covar=0.0,
            tol=0.0,
            max_iter=20,
            weights_init=model.weights.detach().numpy(),
            means_init=model.means.detach().numpy(),
            precisions_init=np.linalg.inv(matrices(model).detach().numpy())
            if kind == "full"
            else (1 / model.covariances).detach().numpy(),
        )
        with pytest.warns(UserWarning, match="did not converge"):
            other.fit(x.numpy())
        result = model.fit_em(x, init="current", tolerance=0.0, max_iterations=20)
        assert result.iterations == 20
        np.testing.assert_allclose(model.means.detach().numpy(), other.means_, rtol=1e-6)
        np.testing.assert_allclose(model.weights.detach().numpy(), other.weights_, rtol=1e-6)
        np.testing.assert_allclose(
            model.covariances.detach().numpy(), other.covariances_, rtol=1e-6, atol=1e-10
        )


@pytest.mark.parametrize("covariance", KINDS)
def test_steps_are_a_fit(covariance: str) -> None:
    x = normals(100, D)
    stepped, fitted = make(covariance), make(covariance)
    values = [stepped.em_step(x).item() for _ in range(4)]
    result = fitted.fit_em(x, init="current", max_iterations=4, tolerance=0.0)
    assert values == pytest.approx(result.log_likelihoods[:4], rel=1e-9)
    for got, want in zip(stepped.parameters(), fitted.parameters(), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("covariance", KINDS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_em_in_chunks(covariance: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = normals(101, D)
    whole, parts = make(covariance), make(covariance)
    whole.fit_em(x, max_iterations=5, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(_em, "_CHUNK_ELEMENTS", 7 * K * D)
    with dgm_fast.backend(backend):
        parts.fit_em(x, max_iterations=5, generator=torch.Generator().manual_seed(0))
    for got, want in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("covariance", KINDS)
def test_variances_keep_their_floor(covariance: str) -> None:
    x = normals(50, D)
    x[:, 1] = 2.0  # no variance at all
    x[:, 3] = x[:, 0]  # a singular covariance
    model = GaussianMixture(D, 2, covariance=covariance).double()
    result = model.fit_em(x, min_variance=1e-3)
    lowest = torch.linalg.eigvalsh(matrices(model).detach()).min().item()
    assert lowest == pytest.approx(1e-3, rel=1e-6)
    assert torch.tensor(result.log_likelihoods).diff().min() > -1e-9
    assert model.log_prob(x).isfinite().all()


@pytest.mark.parametrize("covariance", KINDS)
def test_an_empty_component_is_moved_and_the_likelihood_rises(covariance: str) -> None:
    x, label = clusters()
    model = GaussianMixture(2, 3, covariance=covariance).double()
    with torch.no_grad():
        model.means.copy_(torch.tensor([[0.0, 0.0], [4.0, 0.0], [1e4, 1e4]]))
        if covariance == "diagonal":
            model.log_vars.fill_(math.log(0.09))
        else:
            model.factors.copy_(torch.eye(2) * math.log(0.3))
    assert model.responsibilities(x)[:, 2].max() == 0
    result = model.fit_em(x, init="current")
    assert torch.tensor(result.log_likelihoods).diff().min() > -1e-9
    found = model.predict(x)
    assert len(set(found.tolist())) == 3
    assert all(len(set(found[label == k].tolist())) == 1 for k in range(3))


@pytest.mark.parametrize("covariance", KINDS)
def test_an_empty_component_that_cannot_help_stays(covariance: str) -> None:
    x = torch.zeros(20, 2).double()
    model = GaussianMixture(2, 2, covariance=covariance).double()
    with torch.no_grad():
        model.means.copy_(torch.tensor([[0.0, 0.0], [1e4, 1e4]]))
        if covariance == "diagonal":  # as narrow as the floor allows
            model.log_vars.fill_(math.log(1e-6))
        else:
            model.factors.copy_(torch.eye(2) * math.log(1e-3))
    result = model.fit_em(x, init="current")
    assert result.converged
    assert model.weights.tolist() == [1.0, 0.0]
    assert model.means[1].tolist() == [1e4, 1e4]
    assert model.log_prob(x).isfinite().all() and model.sample(50).abs().max() < 1


@pytest.mark.parametrize("covariance", KINDS)
def test_more_components_than_distinct_rows(covariance: str) -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).repeat(10, 1)
    model = GaussianMixture(2, 8, covariance=covariance)
    result = model.fit_em(x, min_variance=1e-4, generator=torch.Generator().manual_seed(0))
    assert torch.tensor(result.log_likelihoods).diff().min() > -1e-9
    assert all(p.isfinite().all() for p in (model.means, model.covariances, model.weights))
    # Half of the weight on each of two points with the smallest variance allowed.
    best = math.log(0.5) - math.log(2 * math.pi * 1e-4)
    assert result.log_likelihoods[-1] == pytest.approx(best, abs=0.01)


def test_initialisation_spreads_over_the_data() -> None:
    x, label = clusters()
    for seed in range(10):
        model = GaussianMixture(2, 3)
        model.initialize(x, generator=torch.Generator().manual_seed(seed))
        own = {int((model.means[k] - x).square().sum(1).argmin()) for k in range(3)}
        assert len({int(label[row]) for row in own}) == 3
        torch.testing.assert_close(model.covariances[0], model.covariances[1])
    states = []
    for seed in (1, 1):
        model.initialize(x, generator=torch.Generator().manual_seed(seed))
        states.append(model.means.detach().clone())
    assert torch.equal(*states)


def test_training_by_gradients() -> None:
    x, label = clusters()
    torch.manual_seed(0)
    for covariance in KINDS:
        model = GaussianMixture(2, 3, covariance=covariance)
        model.initialize(x)
        target = GaussianMixture(2, 3, covariance=covariance)
        best = target.fit_em(x, generator=torch.Generator().manual_seed(0)).log_likelihoods[-1]
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(200):
            optimizer.zero_grad()
            loss = model.loss(x)
            loss.backward()
            optimizer.step()
        assert -loss.item() == pytest.approx(best, abs=0.01)
        assert len(set(model.predict(x)[label == 1].tolist())) == 1


@pytest.mark.parametrize("rows", [1, 2, 7, 9])
def test_gradients_of_high_densities(rows: int) -> None:
    """exp of such a log-density overflows float32: no gradient may pass through it."""
    torch.manual_seed(0)
    model = GaussianMixture(64, 5)
    nn.init.constant_(model.log_vars, -8.0)
    x = model.means.detach()[:1].expand(rows, 64) + 0.01 * torch.randn(rows, 64)
    assert model.log_prob(x).min() > 100
    expected = GaussianMixture(64, 5).double()
    expected.load_state_dict(model.state_dict())
    model.loss(x).backward()
    with dgm_fast.backend("reference"):
        expected.loss(x.double()).backward()
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("covariance", KINDS)
def test_dtypes_and_shapes(covariance: str) -> None:
    torch.manual_seed(0)
    model = GaussianMixture(D, K, covariance=covariance)
    x = torch.randint(3, (B, D))
    expected = model.log_prob(x.float())
    for dtype in (torch.uint8, torch.int64, torch.float64):
        value = model.log_prob(x.to(dtype))
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(model.log_prob(x.reshape(B, 2, 2)), expected)
    assert model.log_prob(x[:0]).shape == (0,)
    small = GaussianMixture(D, K, covariance=covariance).bfloat16()
    small.load_state_dict(model.state_dict())
    assert small.log_prob(x).dtype == small.responsibilities(x).dtype == torch.float32
    torch.testing.assert_close(small.log_prob(x), expected, rtol=0.05, atol=0.05)
    assert small.sample(5).dtype == torch.bfloat16
    drawn = small.sample(B, conditioned_on=(x, x > 1))
    assert drawn.dtype == torch.bfloat16 and (drawn[x > 1] == x[x > 1]).all()
    small.fit_em(torch.randn(50, D))
    assert all(p.isfinite().all() for p in small.parameters())


@pytest.mark.parametrize("covariance", KINDS)
def test_state_dict_round_trip(covariance: str) -> None:
    model, other = make(covariance), GaussianMixture(D, K, covariance=covariance).double()
    x = normals(B, D)
    assert not torch.equal(other.log_prob(x), model.log_prob(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.log_prob(x), model.log_prob(x))
    spread = "log_vars" if covariance == "diagonal" else "factors"
    assert set(model.state_dict()) == {"logits", "means", spread}


@pytest.mark.parametrize("covariance", KINDS)
def test_loss_compiles_in_one_graph(covariance: str) -> None:
    model, x = make(covariance), normals(B, D)
    parameters, results = list(model.parameters()), []
    for loss in (model.loss, torch.compile(model.loss, fullgraph=True, backend="aot_eager")):
        value = loss(x)
        results.append((value, *torch.autograd.grad(value, parameters)))
    for compiled, eager in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(compiled, eager)


X = torch.zeros(6, D)
GIVEN = torch.ones(D, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: GaussianMixture(0, 2), ValueError, "num_dims must be at least 1"),
        (lambda m: GaussianMixture(2, 0), ValueError, "num_components must be at least 1"),
        (lambda m: GaussianMixture(2, 1.0), TypeError, "num_components must be an int"),
        (lambda m: GaussianMixture(2, 2, covariance="tied"), ValueError, "covariance.*'tied'"),
        (lambda m: m.log_prob(torch.zeros(6, D + 1)), ValueError, r"x must have shape \[B, 4\]"),
        (lambda m: m.log_prob(torch.zeros(D)), ValueError, "x must have shape"),
        (lambda m: m.loss([0.0] * D), TypeError, "x must be a torch.Tensor"),
        (lambda m: m.log_prob(X.to("meta")), ValueError, "x is on meta"),
        (lambda m: m.sample(0), ValueError, "n must be at least 1"),
        (lambda m: m.sample(2, noise=torch.zeros(2, D)), TypeError, "noise must be a pair"),
        (
            lambda m: m.sample(2, noise=(torch.zeros(3), torch.zeros(2, D))),
            ValueError,
            "noise of the component must have shape",
        ),
        (
            lambda m: m.sample(2, noise=(torch.zeros(2), torch.zeros(2, 1))),
            ValueError,
            "noise of x must have shape",
        ),
        (lambda m: m.sample(6, conditioned_on=X), TypeError, "must be a pair"),
        (lambda m: m.sample(5, conditioned_on=(X, GIVEN)), ValueError, "values must have shape"),
        (lambda m: m.sample(6, conditioned_on=(X, GIVEN[:2])), ValueError, "given must have shape"),
        (lambda m: m.sample(6, conditioned_on=(X, X)), TypeError, "given must be bool"),
        (lambda m: m.sample(6, conditioned_on=(None, GIVEN)), TypeError, "values must be a torch"),
        (lambda m: m.sample(6, conditioned_on=(X / 0, GIVEN)), ValueError, "must be finite"),
        (lambda m: m.fit_em(torch.zeros(2, D)), ValueError, "at least num_components = 3 rows"),
        (lambda m: m.fit_em(X / 0), ValueError, "x must be finite"),
        (lambda m: m.fit_em(X, max_iterations=0), ValueError, "max_iterations must be at least 1"),
        (lambda m: m.fit_em(X, tolerance=-1.0), ValueError, "tolerance must be at least 0"),
        (lambda m: m.fit_em(X, tolerance=math.nan), ValueError, "tolerance"),
        (lambda m: m.fit_em(X, min_variance=0.0), ValueError, "min_variance must be positive"),
        (lambda m: m.fit_em(X, init="random"), ValueError, "init must be one of .*'random'"),
        (lambda m: m.em_step(X, min_variance=math.inf), ValueError, "min_variance"),
        (lambda m: m.initialize(torch.zeros(2, D)), ValueError, "at least num_components"),
    ],
)
def test_bad_arguments(
    call: Callable[[GaussianMixture], Any], error: type[Exception], message: str
) -> None:
    model = GaussianMixture(D, K)
    with pytest.raises(error, match=message):
        call(model)
