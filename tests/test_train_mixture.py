"""Gaussian mixtures as a trainable kind: dequantised levels, EM steps, refusals."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from dgm_fast.data import DataError, Dataset
from dgm_fast.models import Dequantized, GaussianMixture
from dgm_fast.train import RunDirectory, TrainConfig, TrainingInterrupted, get_kind
from dgm_fast.train import session as sessions
from dgm_fast.train.mixture_kinds import EMStep, min_variance

D, LEVELS = 3, 4


def make() -> Dequantized:
    """A mixture that lies within [0, 1]^3 but for its tails."""
    torch.manual_seed(0)
    mixture = GaussianMixture(D, 2)
    with torch.no_grad():
        mixture.means.copy_(torch.tensor([[0.3, 0.4, 0.5], [0.6, 0.5, 0.4]]))
        mixture.log_vars.fill_(2 * math.log(0.1))
        mixture.logits.copy_(torch.tensor([0.3, -0.4]))
    return Dequantized(mixture, LEVELS)


def exact_log_prob(model: Dequantized, x: Tensor) -> Tensor:
    """log P(x) from the normal distribution function: the cells are boxes and the axes independent."""
    mixture = model.density
    normal = torch.distributions.Normal(
        mixture.means.detach().double(), mixture.covariances.detach().double().sqrt()
    )
    x = x.double().unsqueeze(1)
    cells = normal.cdf((x + 1) / LEVELS) - normal.cdf(x / LEVELS)  # [N, K, D]
    return (cells.prod(2) @ mixture.weights.detach().double()).log()


def every_row() -> Tensor:
    return torch.cartesian_prod(*[torch.arange(LEVELS)] * D)


def test_dequantised_probabilities_are_those_of_the_cells() -> None:
    model, x = make(), every_row()
    exact = exact_log_prob(model, x)
    assert exact.exp().sum().item() == pytest.approx(1.0, abs=0.01)
    likely = exact > math.log(1e-3)
    torch.manual_seed(1)
    estimate = model.log_prob(x[likely], 20_000)
    torch.testing.assert_close(estimate.double(), exact[likely], rtol=0, atol=0.05)
    # The bound and the estimates lie below it in order.
    weights = model.log_weights(x[likely], 20_000).double()
    few = torch.logsumexp(weights.unflatten(1, (-1, 10)), 2).mean(1) - math.log(10)
    assert (weights.mean(1) < few).all() and (few < exact[likely] + 0.02).all()
    assert weights.shape == (likely.sum(), 20_000)


def test_samples_are_levels_with_their_probabilities() -> None:
    model, n = make(), 40_000
    x = model.sample(n, generator=torch.Generator().manual_seed(2))
    assert x.dtype == torch.int64 and x.min() >= 0 and x.max() < LEVELS
    index = (x * torch.tensor([LEVELS**2, LEVELS, 1])).sum(1)
    found = torch.bincount(index, minlength=LEVELS**D) / n
    exact = exact_log_prob(model, every_row()).exp()
    assert (found - exact).abs().max() < 5 * 0.5 / math.sqrt(n)
    floats = Dequantized(model.density, 2, dtype=torch.float32).sample(9)
    assert floats.dtype == torch.float32 and set(floats.unique().tolist()) <= {0.0, 1.0}


def test_loss_is_the_bound_and_draws_anew() -> None:
    model, x = make(), every_row()
    torch.manual_seed(3)
    first, second = model.loss(x), model.loss(x)
    assert first != second
    torch.manual_seed(3)
    v = (x + torch.rand(len(x), D)) / LEVELS
    expected = -model.density.log_prob(v) + D * math.log(LEVELS)
    torch.testing.assert_close(first, expected.mean())
    first.backward()
    assert model.density.means.grad.abs().sum() > 0


def test_many_draws_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, sizes = make(), every_row()[:5], []
    inner = model.density.log_prob
    monkeypatch.setattr(model.density, "log_prob", lambda v: (sizes.append(len(v)), inner(v))[1])
    monkeypatch.setattr("dgm_fast.models.dequantized._CHUNK_ELEMENTS", 5 * D * 4)
    assert model.log_weights(x, 10).shape == (5, 10)
    assert sizes == [20, 20, 10]


def test_levels_must_be_at_least_two() -> None:
    with pytest.raises(ValueError, match="num_levels must be at least 2"):
        Dequantized(GaussianMixture(D, 2), 1)


def test_em_step_is_one_iteration_and_gives_the_loss_before() -> None:
    model, x = make(), every_row()
    step = EMStep(model)
    torch.manual_seed(4)
    v = model.dequantize(x)
    expected = -model.density.log_prob(v).mean() + D * math.log(LEVELS)
    twin = make().density
    twin.em_step(v, min_variance=1 / (12 * LEVELS**2))
    torch.manual_seed(4)
    torch.testing.assert_close(step(x).float(), expected)
    assert step.updating
    for got, want in zip(model.density.parameters(), twin.parameters(), strict=True):
        assert torch.equal(got, want)


def dataset(likelihood: str = "categorical", **changes) -> Dataset:
    generator = torch.Generator().manual_seed(5)
    high = LEVELS if likelihood == "categorical" else 2
    centre = torch.randint(high, (2, 16), generator=generator)
    rows = centre[torch.randint(2, (90,), generator=generator)]
    flips = torch.rand(rows.shape, generator=generator) < 0.1
    rows = torch.where(flips, high - 1 - rows, rows).to(torch.uint8)
    splits = dict(zip(("train", "valid", "test"), rows.split(30), strict=True))
    base = Dataset(
        "levels",
        **splits,
        likelihood=likelihood,
        num_classes=LEVELS if likelihood == "categorical" else None,
        image_shape=(4, 4),
    )
    return dataclasses.replace(base, **changes)


def configuration(**changes) -> TrainConfig:
    base = TrainConfig("gmm", {}, {"num_components": 2}, epochs=6, eval_samples=20)
    return dataclasses.replace(base, **changes)


def history(session: sessions.Session) -> list[dict]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in session.trainer.history]


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_an_epoch_of_em_is_one_step(likelihood: str, covariance: str) -> None:
    config = configuration(model={"num_components": 2, "covariance": covariance})
    session = sessions.build(config, dataset=dataset(likelihood))
    result = session.trainer.fit()
    assert session.trainer.global_step == result.epochs == 6
    levels = LEVELS if likelihood == "categorical" else 2
    assert session.trainer.history[-1]["train_loss"] < 16 * math.log(levels)
    floor = min_variance(session.model)
    assert floor == 1 / (12 * levels**2)
    covariances = session.model.density.covariances
    lowest = covariances if covariance == "diagonal" else torch.linalg.eigvalsh(covariances)
    assert lowest.min().item() > 0.999 * floor
    results = sessions.evaluate_test(session)
    assert results["nll_nats"] <= results["negative_elbo_nats"]


@pytest.mark.parametrize("step", [1, 3])
def test_em_resumes_exactly_after_an_interruption(tmp_path, step: int) -> None:
    whole = sessions.build(configuration(), dataset=dataset())
    whole.trainer.fit()

    def interrupt(trainer) -> None:
        if trainer.global_step == step:
            raise KeyboardInterrupt

    cut = sessions.build(configuration(), dataset=dataset(), on_step=interrupt)
    cut.trainer.run = RunDirectory.create(tmp_path / "run", sessions.run_record(cut))
    with pytest.raises(TrainingInterrupted) as raised:
        cut.trainer.fit()
    assert raised.value.saved
    torch.manual_seed(999)
    resumed = sessions.build(configuration(), dataset=dataset())
    assert sessions.resume(resumed, RunDirectory.open(tmp_path / "run"))
    assert resumed.trainer.global_step == step
    resumed.trainer.fit()
    assert history(resumed) == history(whole)
    states = [session.model.state_dict() for session in (resumed, whole)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_binary_rows_drawn_in_training() -> None:
    data = dataset("bernoulli")
    data = dataclasses.replace(data, train=data.train * 0.8 + 0.1, dynamic=True)
    session = sessions.build(configuration(), dataset=data)
    session.trainer.fit()
    # 16 fair bits cost more than what two patterns with flips do.
    assert session.trainer.best < 16 * math.log(2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (dataset("bernoulli", valid=torch.full((4, 16), 0.5)), "valid holds probabilities"),
        (
            dataset("gaussian", train=torch.zeros(30, 16)),
            "16 of 16 dimensions have one value",
        ),
        (dataset(train=torch.zeros(1, 16, dtype=torch.uint8)), "2 components .* got 1"),
    ],
)
def test_data_without_a_meaningful_likelihood_are_refused(data: Dataset, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sessions.build(configuration(), dataset=data)


def test_gradient_descent_is_the_other_fit() -> None:
    config = configuration(model={"num_components": 2, "fit": "gradient"}, batch_size=10, lr=0.02)
    session = sessions.build(config, dataset=dataset())
    assert get_kind("gmm").full_batch_step(session.model, {"fit": "gradient"}) is None
    session.trainer.fit()
    assert session.trainer.global_step == 6 * 3
    losses = [record["train_loss"] for record in session.trainer.history]
    assert losses[-1] < losses[0]
