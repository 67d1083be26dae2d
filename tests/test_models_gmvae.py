"""GMVAE: the mixture prior in bounds, gradients, samples and cluster assignments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import dgm_fast
from dgm_fast import functional
from dgm_fast.models import GMVAE, VAE
from dgm_fast.train.measure import saved_bytes

B, D, L, K, S = 6, 12, 3, 5, 4  # K components, S posterior samples


def make(**kwargs: Any) -> GMVAE:
    """A small model in float64 whose prior is far from N(0, I)."""
    torch.manual_seed(0)
    model = GMVAE(D, L, **{"hidden_sizes": (8, 7), "num_components": K, **kwargs}).double()
    with torch.no_grad():
        model.prior_means.copy_(torch.randn(model.num_components, L))
        model.prior_log_vars.copy_(0.5 * torch.randn(model.num_components, L) - 0.5)
        if model.prior_logits is not None:
            model.prior_logits.copy_(torch.randn(model.num_components))
    return model


def normals(*shape: int) -> Tensor:
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))
    )


def make_data() -> Tensor:
    return torch.randint(2, (B, D), generator=torch.Generator().manual_seed(1)).double()


def prior(model: GMVAE) -> MixtureSameFamily:
    """The prior in torch.distributions."""
    logits = model.prior_logits
    if logits is None:
        logits = torch.zeros(model.num_components, dtype=torch.float64)
    components = Normal(model.prior_means, torch.exp(model.prior_log_vars / 2))
    return MixtureSameFamily(Categorical(logits=logits), Independent(components, 1))


def log_weights(model: GMVAE, x: Tensor, noise: Tensor) -> Tensor:
    """log p(x, z) - log q(z | x) from the networks and torch.distributions, [B, S]."""
    out = model.encoder(x)
    mean, scale = out[:, None, :L], torch.exp(out[:, None, L:] / 2)
    z = mean + scale * noise
    logits = model.decoder(z)
    log_likelihood = (x.unsqueeze(1) * logits - nn.functional.softplus(logits)).sum(-1)
    return log_likelihood + prior(model).log_prob(z) - Normal(mean, scale).log_prob(z).sum(-1)


@pytest.mark.parametrize("learn_weights", [False, True])
def test_bounds_from_the_weights(learn_weights: bool) -> None:
    model, x, noise = make(learn_weights=learn_weights), make_data(), normals(B, S, L)
    log_w = log_weights(model, x, noise)
    expected = torch.logsumexp(log_w, 1) - math.log(S)
    torch.testing.assert_close(model.iwae_bound(x, S, noise=noise), expected)
    torch.testing.assert_close(
        model.log_prob(x, S, noise=noise, chunk_size=3), expected.detach(), rtol=1e-12, atol=0
    )
    # The loss is the Monte-Carlo ELBO unless the model was built for more samples.
    torch.testing.assert_close(model.elbo(x, noise=noise[:, 0]), log_w[:, 0])
    torch.testing.assert_close(model.loss(x, noise=noise[:, :1]), -log_w[:, 0].mean())
    many = make(learn_weights=learn_weights, num_samples=S)
    torch.testing.assert_close(many.loss(x, noise=noise), -expected.mean())


def estimator_gradients(
    model: GMVAE, x: Tensor, noise: Tensor, estimator: str
) -> dict[str, Tensor]:
    """Gradients of the summed bound from the papers' formulas.

    With w~ the normalised weights: "iwae" is sum_k w~_k d log w_k for everything. The others drop
    the score of q, and "dreg" squares w~ on the path through z to the encoder's parameters (Tucker et
    al. 2018, equation 8). Parameters of decoder and prior always get sum_k w~_k d log p(x, z_k).
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    out = model.encoder(x)
    mean, log_var = out[:, None, :L], out[:, None, L:]
    z = mean + torch.exp(log_var / 2) * noise

    def log_w(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        logits = model.decoder(z)
        log_likelihood = (x.unsqueeze(1) * logits - nn.functional.softplus(logits)).sum(-1)
        log_q = Normal(mean, torch.exp(log_var / 2)).log_prob(z).sum(-1)
        return log_likelihood + prior(model).log_prob(z) - log_q

    weight = torch.softmax(log_w(z, mean, log_var), 1).detach()
    if estimator == "iwae":
        total = (weight * log_w(z, mean, log_var)).sum()
    else:
        leaf = z.detach().requires_grad_()
        stopped = log_w(leaf, mean.detach(), log_var.detach())
        (slope,) = torch.autograd.grad(stopped.sum(), leaf, retain_graph=True)
        power = 2 if estimator == "dreg" else 1
        total = (weight * stopped).sum() + (weight**power * (slope * z).sum(-1)).sum()
    return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))


@pytest.mark.parametrize("estimator", ["iwae", "stl", "dreg"])
@pytest.mark.parametrize("fused_head", [False, True])
def test_gradients_of_the_estimators(estimator: str, fused_head: bool) -> None:
    model = make(learn_weights=True, num_samples=S, estimator=estimator, fused_head=fused_head)
    x, noise = make_data(), normals(B, S, L)
    expected = {
        name: estimator_gradients(model, x, noise, name) for name in ("iwae", "stl", "dreg")
    }
    model.iwae_bound(x, noise=noise).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[estimator][name], msg=name)
    # The encoder tells the estimators apart; the prior gets the bound's gradient from each.
    for other in expected.keys() - {estimator}:
        difference = expected[other]["encoder.output.weight"] - model.encoder.output.weight.grad
        assert difference.abs().max() > 1e-4
        for name in ("prior_means", "prior_log_vars", "prior_logits"):
            torch.testing.assert_close(expected[other][name], expected[estimator][name])


def test_gradients_agree_with_the_reference_backend() -> None:
    def gradients(backend: str) -> list[Tensor]:
        model = make(learn_weights=True, num_samples=S).float()
        with dgm_fast.backend(backend):
            model.loss(make_data(), generator=torch.Generator().manual_seed(2)).backward()
        return [p.grad for p in model.parameters()]

    for ours, expected in zip(gradients("auto"), gradients("reference"), strict=True):
        assert ours.abs().sum() > 0
        torch.testing.assert_close(ours, expected, rtol=5e-5, atol=5e-6)


def test_log_prob_matches_quadrature_and_sums_to_one() -> None:
    torch.manual_seed(3)
    model = GMVAE(4, 1, hidden_sizes=(6,), num_components=3, activation=nn.Tanh).double()
    with torch.no_grad():
        model.decoder.output.weight.mul_(4)
        model.prior_means.copy_(torch.tensor([[-2.0], [0.0], [1.5]]))
        model.prior_log_vars.copy_(torch.tensor([[-1.0], [0.0], [-2.0]]))
    x = torch.cartesian_prod(*[torch.arange(2)] * 4)
    grid = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    z = grid.view(1, -1, 1).expand(len(x), -1, 1)
    log_joint = model.log_likelihood(x, z) + model.log_prior(z)
    exact = torch.logsumexp(log_joint, 1) + math.log(grid[1] - grid[0])
    assert exact.exp().sum().item() == pytest.approx(1.0, abs=1e-9)
    estimate = model.log_prob(x, 20_000, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(estimate, exact.detach(), rtol=0, atol=0.1)


def test_a_prior_of_one_standard_component_is_the_vae() -> None:
    model = make(num_components=1)
    nn.init.zeros_(model.prior_means)
    nn.init.zeros_(model.prior_log_vars)
    vae = VAE(D, L, hidden_sizes=(8, 7)).double()
    vae.load_state_dict(model.state_dict(), strict=False)
    x, noise = make_data(), normals(B, S, L)
    torch.testing.assert_close(
        model.iwae_bound(x, S, noise=noise), vae.iwae_bound(x, S, noise=noise)
    )


def test_the_prior_starts_near_a_standard_normal() -> None:
    torch.manual_seed(0)
    model = GMVAE(D, 10, hidden_sizes=(4,))
    assert model.prior_means.shape == model.prior_log_vars.shape == (500, 10)
    assert model.prior_means.std().item() == pytest.approx(1 / math.sqrt(5000), rel=0.05)
    z = torch.randn(50, 10)
    standard = Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(model.log_prior(z), standard, rtol=0, atol=0.05)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert "prior_logits" not in model.state_dict() and model.prior_logits is None


def test_course_numbers() -> None:
    """Seeded constants of the XCS236 grader for log_normal and log_normal_mixture."""
    torch.manual_seed(0)
    m = torch.randn(3, 5)
    v = torch.exp(torch.randn_like(m))
    z = m + v.sqrt() * torch.randn_like(m)
    torch.testing.assert_close(
        functional.gaussian_log_prob(z, m, v.log()),
        torch.tensor([-6.98196220, -7.60928249, -4.86915016]),
        rtol=0,
        atol=1e-5,
    )
    torch.manual_seed(0)
    m = torch.randn(3, 4, 5)  # a mixture of 4 components for each row
    v = torch.exp(torch.randn_like(m))
    z = m[:, 0] + v[:, 0].sqrt() * torch.randn(3, 5)
    model = GMVAE(D, 5, num_components=4)
    values = []
    for row in range(3):
        with torch.no_grad():
            model.prior_means.copy_(m[row])
            model.prior_log_vars.copy_(v[row].log())
        values.append(model.log_prior(z[row]))
    expected = torch.tensor([-4.88794518, -7.79891109, -8.33321381])
    torch.testing.assert_close(torch.stack(values), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("learn_weights", [False, True])
def test_prior_samples_are_a_function_of_the_noise(learn_weights: bool) -> None:
    model, n = make(learn_weights=learn_weights), 200
    u = torch.rand(n, dtype=torch.float64)
    u[0], u[1] = 0.0, 1 - 2**-53
    eps = normals(n, L)
    z = model.sample_prior(n, noise=(u, eps))
    cdf = prior(model).mixture_distribution.probs.detach().cumsum(0).numpy()
    component = np.searchsorted(cdf, u.numpy() * cdf[-1], "right")
    assert component[:2].tolist() == [0, K - 1] and len(set(component)) == K
    scale = torch.exp(model.prior_log_vars / 2)
    torch.testing.assert_close(z, model.prior_means[component] + scale[component] * eps)
    # The uniforms are drawn before the normals.
    source = torch.Generator().manual_seed(1)
    outside = (
        torch.rand(7, dtype=torch.float64, generator=source),
        torch.randn(7, L, dtype=torch.float64, generator=source),
    )
    drawn = model.sample_prior(7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.sample_prior(7, noise=outside), drawn)


def test_samples_take_the_noise_of_all_three() -> None:
    model = make()
    source = torch.Generator().manual_seed(1)
    u = torch.rand(7, dtype=torch.float64, generator=source)
    eps = torch.randn(7, L, dtype=torch.float64, generator=source)
    x_noise = torch.rand(7, D, dtype=torch.float64, generator=source)
    x = model.sample(7, noise=((u, eps), x_noise))
    assert torch.equal(model.sample(7, generator=torch.Generator().manual_seed(1)), x)
    z = model.sample_prior(7, noise=(u, eps))
    assert torch.equal(x, (x_noise < torch.sigmoid(model.decode(z))).double())
    assert not x.requires_grad and x.shape == (7, D)


def test_prior_samples_follow_the_prior() -> None:
    model, n = make(learn_weights=True), 40_000
    with torch.no_grad():
        model.prior_logits[1] = -math.inf
        z = model.sample_prior(n, generator=torch.Generator().manual_seed(5))
    distribution = prior(model)
    error = distribution.variance.sqrt() / math.sqrt(n)
    assert ((z.mean(0) - distribution.mean).abs() < 5 * error).all()
    torch.testing.assert_close(z.var(0), distribution.variance, rtol=0.05, atol=0)
    # Inversion never reaches a component without weight, at no level.
    far = make(learn_weights=True)
    with torch.no_grad():
        far.prior_logits.fill_(-math.inf)[2] = 0.0
    levels = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    z = far.sample_prior(3, noise=(levels, torch.zeros(3, L).double()))
    torch.testing.assert_close(z, far.prior_means[[2, 2, 2]])


@pytest.mark.parametrize("learn_weights", [False, True])
def test_responsibilities(learn_weights: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make(learn_weights=learn_weights), make_data()
    mean, log_var = model.encode(x)

    def given(z: Tensor) -> Tensor:  # p(k | z)
        mixture = prior(model)
        components = mixture.component_distribution.log_prob(z.unsqueeze(-2))
        return torch.softmax(components + mixture.mixture_distribution.logits, -1).detach()

    found = model.responsibilities(x)
    torch.testing.assert_close(found, given(mean))
    assert not found.requires_grad
    assert torch.equal(model.predict_component(x), given(mean).argmax(1))
    noise = normals(B, S, L)
    z = mean.unsqueeze(1) + torch.exp(log_var / 2).unsqueeze(1) * noise
    expected = given(z).mean(1)
    torch.testing.assert_close(model.responsibilities(x, S, noise=noise), expected)
    assert torch.equal(model.predict_component(x, S, noise=noise), expected.argmax(1))
    # Rows come in chunks.
    monkeypatch.setattr("dgm_fast.models._mixture._CHUNK_ELEMENTS", S * K * 4)
    torch.testing.assert_close(model.responsibilities(x, S, noise=noise), expected)


def test_components_find_clusters() -> None:
    torch.manual_seed(0)
    patterns = torch.rand(3, D) < 0.5
    label = torch.randint(3, (300,))
    x = (patterns[label] ^ (torch.rand(300, D) < 0.02)).float()
    model = GMVAE(D, 2, hidden_sizes=(32,), num_components=3)
    with torch.no_grad():
        angle = torch.arange(3) * 2 * math.pi / 3
        model.prior_means.copy_(3 * torch.stack([angle.cos(), angle.sin()], 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = model.loss(x).item()
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step()
    assert model.loss(x).item() < before - 3
    found = model.predict_component(x)
    # Each pattern has a component of its own, which holds nearly all of its rows.
    own = [found[label == k].mode().values.item() for k in range(3)]
    assert len(set(own)) == 3
    assert (found == torch.tensor(own)[label]).float().mean() > 0.95


@pytest.mark.parametrize(
    "options",
    [
        {"likelihood": "categorical", "num_classes": 2},
        {"likelihood": "gaussian", "decoder_variance": "shared"},
        {"context_dim": 2, "estimator": "dreg", "num_samples": 3},
    ],
)
def test_everything_of_a_vae_is_there(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = GMVAE(D, L, hidden_sizes=(8,), num_components=K, learn_weights=True, **options)
    x = make_data().long()
    kwargs = {"context": torch.randn(B, 2)} if "context_dim" in options else {}
    model.loss(x, **kwargs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.log_prob(x, 7, **kwargs).shape == model.elbo(x, **kwargs).shape == (B,)
    assert model.sample(B, **kwargs).shape == (B, D)
    assert model.reconstruct(x, **kwargs).shape == (B, D)
    assert model.interpolate(x, x.flip(0), 4, "spherical", **kwargs).shape == (B, 4, D)
    assert model.responsibilities(x, **kwargs).shape == (B, K)
    with pytest.raises(ValueError, match="conditioned_on"):
        model.sample(2, conditioned_on=(x, x > 0))


def test_bfloat16_and_state_dict_round_trip() -> None:
    model = make(learn_weights=True)
    other = GMVAE(D, L, hidden_sizes=(8, 7), num_components=K, learn_weights=True).double()
    other.load_state_dict(model.state_dict())
    x, noise = make_data(), normals(B, 1, L)
    assert torch.equal(other.loss(x, noise=noise), model.loss(x, noise=noise))
    small = model.bfloat16()
    assert small.sample_prior(9).dtype == torch.bfloat16
    assert small.elbo(x).dtype == small.responsibilities(x).dtype == torch.float32
    assert small.loss(x).isfinite()


@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
def test_loss_compiles_in_one_graph(estimator: str) -> None:
    model = make(learn_weights=True, num_samples=3, estimator=estimator)
    x, parameters, results = make_data(), list(model.parameters()), []
    for loss in (model.loss, torch.compile(model.loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(6)
        value = loss(x)
        results.append((value, *torch.autograd.grad(value, parameters)))
    for compiled, eager in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.skipif(dgm_fast.ops.active_isa() is None, reason="needs the C++ kernels")
def test_nothing_of_the_size_of_all_pairs_is_saved() -> None:
    torch.manual_seed(0)
    model = GMVAE(8, 10, hidden_sizes=(4,), num_samples=10)
    x = torch.zeros(100, 8)
    pairs = 4 * 100 * 10 * 500 * 10  # bytes of [B, S, K, L]
    assert saved_bytes(lambda: model.loss(x), model) < pairs / 100
    with dgm_fast.backend("reference"):
        assert saved_bytes(lambda: model.loss(x), model) > pairs


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: GMVAE(D, L, num_components=0), ValueError, "num_components must be at least 1"),
        (lambda m: GMVAE(D, L, num_components=2.0), TypeError, "num_components must be an int"),
        (lambda m: GMVAE(D, L, num_samples=0), ValueError, "num_samples must be at least 1"),
        (lambda m: GMVAE(D, L, estimator="x"), ValueError, "estimator"),
        (lambda m: m.sample_prior(0), ValueError, "n must be at least 1"),
        (
            lambda m: m.sample_prior(4, noise=torch.randn(4, L)),
            TypeError,
            "noise of a mixture prior",
        ),
        (
            lambda m: m.sample_prior(4, noise=(torch.rand(3), torch.randn(4, L))),
            ValueError,
            r"noise of the component must have shape \(4,\)",
        ),
        (
            lambda m: m.sample_prior(4, noise=(torch.rand(4), torch.randn(4, L + 1))),
            ValueError,
            "noise of z must have shape",
        ),
        (
            lambda m: m.sample(4, noise=(torch.randn(4, L), torch.rand(4, D))),
            TypeError,
            "must be a pair",
        ),
        (lambda m: m.responsibilities(torch.zeros(4, D + 1)), ValueError, "x must have shape"),
        (lambda m: m.responsibilities(torch.zeros(4, D), 0), ValueError, "num_samples"),
        (
            lambda m: m.responsibilities(torch.zeros(4, D), noise=torch.zeros(4, 1, L)),
            ValueError,
            "num_samples is None",
        ),
        (lambda m: m.log_prior(torch.zeros(4, L + 1)), ValueError, "z must have shape"),
    ],
)
def test_bad_arguments(call: Callable[[GMVAE], Any], error: type[Exception], message: str) -> None:
    torch.manual_seed(0)
    model = GMVAE(D, L, hidden_sizes=(4,), num_components=K)
    with pytest.raises(error, match=message):
        call(model)
