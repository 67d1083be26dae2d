"""Gradient estimators of the importance-weighted bound against independent derivations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dgm_fast
from dgm_fast import functional as F

BATCH, SAMPLES, SIZE, LATENT = 5, 7, 11, 3


@pytest.fixture(params=["auto", "reference"], autouse=True)
def backend(request: pytest.FixtureRequest):
    with dgm_fast.backend(request.param):
        yield


class Toy:
    """A linear decoder and free posterior parameters: every gradient can be written down."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.weight = (randn(SIZE, LATENT) * 0.7).requires_grad_()
        self.mean = (randn(BATCH, LATENT) * 0.5).requires_grad_()
        self.log_var = (randn(BATCH, LATENT) * 0.5).requires_grad_()
        self.eps = randn(BATCH, SAMPLES, LATENT)
        self.x = (randn(BATCH, SIZE) > 0).double()

    def sample(self) -> Tensor:
        return self.mean.unsqueeze(1) + (0.5 * self.log_var).exp().unsqueeze(1) * self.eps

    def log_weights(self, z: Tensor, mean: Tensor, log_var: Tensor, weight: Tensor) -> Tensor:
        """By hand, without any function under test."""
        logits = z @ weight.T
        log_likelihood = (self.x.unsqueeze(1) * logits - torch.log1p(logits.exp())).sum(-1)
        log_prior = -0.5 * z.square().sum(-1)
        diff = z - mean.unsqueeze(1)
        log_q = -0.5 * (log_var.unsqueeze(1) + diff.square() / log_var.exp().unsqueeze(1)).sum(-1)
        return log_likelihood + log_prior - log_q

    def gradients(self, estimator: str) -> list[Tensor]:
        z = self.sample()
        bound = F.iwae_bound(
            self.x, z @ self.weight.T, z, self.mean, self.log_var, estimator=estimator
        )
        return list(torch.autograd.grad(bound.sum(), (self.weight, self.mean, self.log_var)))

    def derived(self, decoder_power: int, path_power: int, score: bool) -> list[Tensor]:
        """Surrogate losses: w^a for the decoder's parameters, w^b along z, the score of q or not."""
        z = self.sample()
        log_w = self.log_weights(z, self.mean, self.log_var, self.weight)
        w = torch.softmax(log_w, 1).detach()
        decoder = (
            w**decoder_power
            * self.log_weights(z.detach(), self.mean.detach(), self.log_var.detach(), self.weight)
        ).sum()
        path = (
            w**path_power
            * self.log_weights(z, self.mean.detach(), self.log_var.detach(), self.weight.detach())
        ).sum()
        total = decoder + path
        if score:
            total = (
                total
                + (
                    w * self.log_weights(z.detach(), self.mean, self.log_var, self.weight.detach())
                ).sum()
            )
        return list(torch.autograd.grad(total, (self.weight, self.mean, self.log_var)))


@pytest.mark.parametrize(
    ("estimator", "path_power", "score"), [("iwae", 1, True), ("stl", 1, False), ("dreg", 2, False)]
)
def test_gradients(estimator: str, path_power: int, score: bool) -> None:
    toy = Toy()
    for got, want in zip(toy.gradients(estimator), toy.derived(1, path_power, score), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("estimator", ["stl", "dreg"])
def test_value_is_the_same(estimator: str) -> None:
    toy = Toy()
    z = toy.sample()
    args = (toy.x, z @ toy.weight.T, z, toy.mean, toy.log_var)
    assert torch.equal(F.iwae_bound(*args, estimator=estimator), F.iwae_bound(*args))


def test_estimators_agree_in_expectation() -> None:
    toy = Toy()
    generator = torch.Generator().manual_seed(3)
    repeats, totals = 3000, {}
    for estimator in ("iwae", "dreg"):
        generator.manual_seed(3)
        draws = []
        for _ in range(repeats // 100):
            eps = torch.randn(
                (100 * BATCH, SAMPLES, LATENT), generator=generator, dtype=torch.float64
            )
            mean = toy.mean.repeat(100, 1)
            log_var = toy.log_var.repeat(100, 1)
            z = mean.unsqueeze(1) + (0.5 * log_var).exp().unsqueeze(1) * eps
            bound = F.iwae_bound(
                toy.x.repeat(100, 1), z @ toy.weight.T, z, mean, log_var, estimator=estimator
            )
            draws.append(torch.autograd.grad(bound.sum() / 100, toy.mean)[0])
        draws = torch.stack(draws)
        totals[estimator] = (draws.mean(0), draws.std(0) / len(draws) ** 0.5)
    (a, a_error), (b, b_error) = totals["iwae"], totals["dreg"]
    # Tucker et al.: both are unbiased for the bound's gradient in the posterior's parameters.
    assert ((a - b).abs() < 5 * (a_error.square() + b_error.square()).sqrt()).all()


def test_dreg_with_a_reshaped_copy_leaves_the_decoder_path_unweighted() -> None:
    # Documented: the hook sits on the tensor passed as z. A decoder fed from the flat tensor that z is
    # a view of sends its gradient around the hook.
    toy = Toy()
    flat = toy.sample().reshape(BATCH * SAMPLES, LATENT)
    z = flat.view(BATCH, SAMPLES, LATENT)
    out = (flat @ toy.weight.T).view(BATCH, SAMPLES, SIZE)
    bound = F.iwae_bound(toy.x, out, z, toy.mean, toy.log_var, estimator="dreg")
    wrong = torch.autograd.grad(bound.sum(), toy.mean)[0]
    right = toy.derived(1, 2, False)[1]
    assert (wrong - right).abs().max() > 1e-3


def test_dreg_with_a_view_taken_from_z_is_right() -> None:
    toy = Toy()
    z = toy.sample()
    out = (z.reshape(BATCH * SAMPLES, LATENT) @ toy.weight.T).view(BATCH, SAMPLES, SIZE)
    bound = F.iwae_bound(toy.x, out, z, toy.mean, toy.log_var, estimator="dreg")
    got = torch.autograd.grad(bound.sum(), toy.mean)[0]
    torch.testing.assert_close(got, toy.derived(1, 2, False)[1])


def test_dreg_hook_on_a_leaf_acts_once() -> None:
    toy = Toy()
    z = toy.sample().detach().requires_grad_()

    def grad() -> Tensor:
        out = z @ toy.weight.detach().T
        bound = F.iwae_bound(toy.x, out, z, toy.mean, toy.log_var, estimator="dreg")
        return torch.autograd.grad(bound.sum(), z)[0]

    assert torch.equal(grad(), grad())


def test_a_dreg_value_without_a_graph_leaves_z_alone() -> None:
    toy = Toy()
    z = toy.sample()
    out = z @ toy.weight.T
    with torch.no_grad():
        F.iwae_bound(toy.x, out, z, toy.mean, toy.log_var, estimator="dreg")
    bound = F.iwae_bound(toy.x, out, z, toy.mean, toy.log_var, estimator="dreg")
    got = torch.autograd.grad(bound.sum(), toy.mean)[0]
    torch.testing.assert_close(got, toy.derived(1, 2, False)[1])


def test_one_draw_serves_one_dreg_bound() -> None:
    # Two hooks would weight the gradient of either bound with the weights of both.
    toy = Toy()
    z = toy.sample()
    args = (toy.x, z @ toy.weight.T, z, toy.mean, toy.log_var)
    F.iwae_bound(*args, estimator="dreg")
    with pytest.raises(ValueError, match="z serves a bound"):
        F.iwae_bound(*args, estimator="dreg")
    F.iwae_bound(*args, estimator="stl")


def test_saved_for_backward_is_the_inputs_and_eight_bytes_a_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(4, 6, 300, generator=generator, requires_grad=True)
    z = torch.randn(4, 6, 5, generator=generator, requires_grad=True)
    mean, log_var = torch.zeros(2, 4, 5)
    x = torch.zeros(4, 300)
    known = {t.untyped_storage().data_ptr() for t in (out, z, mean, log_var, x)}
    extra: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            extra[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        bound = F.iwae_bound(x, out, z, mean, log_var)
    if dgm_fast.get_backend() == "auto" and dgm_fast.ops.active_isa() is not None:
        assert sum(extra.values()) <= 8 * 4 * 6
    bound.sum().backward()
