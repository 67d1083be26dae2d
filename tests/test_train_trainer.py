"""The training loop: progress, early stopping, exact resume, interruption."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal

import pytest
import torch

from dgm_fast.data import Dataset
from dgm_fast.train import (
    BatchOrder,
    LossStep,
    RunDirectory,
    RunDirectoryError,
    TrainConfig,
    Trainer,
    TrainingDiverged,
    TrainingInterrupted,
    get_kind,
    kind_names,
)
from dgm_fast.train import session as sessions

STEPS = 3  # batches an epoch of the small data set


def small_data(dynamic: bool = False, num_classes: int | None = None) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(1, 16, generator=generator)
    train, valid, test = (
        torch.bernoulli(p.expand(n, 16), generator=generator).to(torch.uint8) for n in (50, 30, 20)
    )
    if dynamic:
        train = train * 0.8 + 0.1
    labels = {s: torch.arange(n) % 2 for s, n in (("train", 50), ("valid", 30), ("test", 20))}
    return Dataset(
        "small",
        train,
        valid,
        test,
        "bernoulli" if num_classes is None else "categorical",
        num_classes,
        image_shape=(4, 4),
        dynamic=dynamic,
        labels=labels,
    )


# Of the kinds that are no latent-variable models; gradient steps, as everything else takes.
SMALL_MODELS = {
    "gmm": {"num_components": 2, "fit": "gradient"},
    "glow": {"num_levels": 1, "num_steps": 1, "channels": 4},
    "flowpp": {"num_mixtures": 2, "channels": 4, "num_blocks": 1, "dequantization": "uniform"},
    "nsf": {"num_layers": 2, "hidden_size": 8, "num_bins": 4},
    **{kind: {"num_layers": 2, "hidden_sizes": [8]} for kind in ("realnvp", "maf", "iaf")},
    "pixelcnn": {"num_layers": 1, "channels": 6},
    "gated-pixelcnn": {"num_layers": 2, "channels": 6},
    "pixelcnn-pp": {"num_blocks": 1, "channels": 4, "num_mixtures": 2},
    "pixelrnn": {"num_layers": 1, "channels": 4},
}


def configuration(kind: str = "iwae", **changes) -> TrainConfig:
    model = SMALL_MODELS.get(kind, {"latent_dim": 3, "hidden_sizes": [8]})
    base = TrainConfig(kind, {}, model, epochs=4, batch_size=20, lr=1e-2, eval_samples=5)
    return dataclasses.replace(base, **changes)


def build(config: TrainConfig, run: RunDirectory | None = None, **options) -> sessions.Session:
    default = small_data(num_classes=2 if config.kind == "nade-categorical" else None)
    session = sessions.build(config, dataset=options.pop("dataset", default), **options)
    session.trainer.run = run
    return session


def create(path, config: TrainConfig, **options) -> sessions.Session:
    session = build(config, **options)
    session.trainer.run = RunDirectory.create(path, sessions.run_record(session))
    return session


def losses(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def parameters(session: sessions.Session) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in session.model.parameters()])


def interrupt_at(step: int):
    def hook(trainer: Trainer) -> None:
        if trainer.global_step == step:
            raise KeyboardInterrupt

    return hook


# A distance between samples and data tells nothing of a few adversarial steps.
@pytest.mark.parametrize("kind", [k for k in kind_names() if get_kind(k).compare is None])
def test_training_improves_the_validation_figure(kind):
    session = build(configuration(kind, epochs=6))
    result = session.trainer.fit()
    figures = [next(v for k, v in r.items() if k[:5] == "valid") for r in session.trainer.history]
    assert result.best == min(figures) < figures[0]
    assert result.epochs == 6 and session.trainer.global_step == 6 * STEPS


@pytest.mark.parametrize("kind", kind_names())
@pytest.mark.parametrize("step", [1, STEPS, STEPS + 2, 3 * STEPS])
def test_resume_is_exact(tmp_path, kind, step):
    config = configuration(kind, schedule="cosine")
    whole = create(tmp_path / "whole", config)
    whole.trainer.fit()
    cut = create(tmp_path / "cut", config, on_step=interrupt_at(step))
    with pytest.raises(TrainingInterrupted) as raised:
        cut.trainer.fit()
    assert raised.value.saved
    torch.manual_seed(999)  # a new process starts with other generators
    run = RunDirectory.open(tmp_path / "cut")
    resumed = build(config)
    assert sessions.resume(resumed, run)
    assert resumed.trainer.global_step == step
    resumed.trainer.fit()
    assert losses(resumed.trainer.history) == losses(whole.trainer.history)
    assert torch.equal(parameters(resumed), parameters(whole))
    lines = run.metrics_path.read_text().splitlines()
    assert losses([json.loads(line) for line in lines]) == losses(whole.trainer.history)


def test_resume_is_exact_with_binarization_drawn_in_training(tmp_path):
    data = small_data(dynamic=True)
    whole = create(tmp_path / "whole", configuration(), dataset=data)
    whole.trainer.fit()
    cut = create(tmp_path / "cut", configuration(), dataset=data, on_step=interrupt_at(5))
    with pytest.raises(TrainingInterrupted):
        cut.trainer.fit()
    resumed = build(configuration(), dataset=data)
    sessions.resume(resumed, RunDirectory.open(tmp_path / "cut"))
    resumed.trainer.fit()
    assert losses(resumed.trainer.history) == losses(whole.trainer.history)


def test_resume_after_every_epoch_boundary_and_from_the_best(tmp_path):
    config = configuration(epochs=3)
    whole = create(tmp_path / "run", config)
    whole.trainer.fit()
    for which in ("last", "best"):
        longer = dataclasses.replace(config, epochs=5)
        resumed = build(longer)
        sessions.resume(resumed, RunDirectory.open(tmp_path / "run"), which)
        resumed.trainer.run = None
        resumed.trainer.fit()
        straight = build(longer)
        straight.trainer.fit()
        assert losses(resumed.trainer.history) == losses(straight.trainer.history)


def test_an_interruption_inside_the_loss_abandons_the_step(tmp_path):
    whole = build(configuration())
    whole.trainer.fit()
    cut = create(tmp_path, configuration())
    step, calls = cut.trainer.step, itertools.count()
    inner = step.loss

    def loss(x):
        value = inner(x)  # draws from the generators first
        if next(calls) == 4:
            raise KeyboardInterrupt
        return value

    step.loss = loss
    with pytest.raises(TrainingInterrupted) as raised:
        cut.trainer.fit()
    assert raised.value.saved and cut.trainer.global_step == 4
    resumed = build(configuration())
    sessions.resume(resumed, RunDirectory.open(tmp_path))
    resumed.trainer.fit()
    assert losses(resumed.trainer.history) == losses(whole.trainer.history)


def test_an_interruption_inside_an_update_keeps_the_earlier_state(tmp_path):
    cut = create(tmp_path, configuration())
    optimizer, calls = cut.trainer.step.optimizer, itertools.count()
    inner = optimizer.step

    def step():
        inner()
        if next(calls) == STEPS + 1:
            raise KeyboardInterrupt

    optimizer.step = step
    with pytest.raises(TrainingInterrupted, match="was not saved") as raised:
        cut.trainer.fit()
    assert not raised.value.saved
    assert RunDirectory.open(tmp_path).load()["global_step"] == STEPS


def test_an_interruption_in_validation_is_taken_up_there(tmp_path):
    whole = build(configuration())
    whole.trainer.fit()
    cut = create(tmp_path, configuration())
    inner, calls = cut.trainer.evaluate, itertools.count()

    def evaluate(model):
        figures = inner(model)
        if next(calls) == 1:
            raise KeyboardInterrupt
        return figures

    cut.trainer.evaluate = evaluate
    with pytest.raises(TrainingInterrupted):
        cut.trainer.fit()
    resumed = build(configuration())
    sessions.resume(resumed, RunDirectory.open(tmp_path))
    assert (resumed.trainer.epoch, resumed.trainer.order.position) == (1, STEPS)
    resumed.trainer.fit()
    assert losses(resumed.trainer.history) == losses(whole.trainer.history)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_inside_a_step_waits_for_its_end(tmp_path, number):
    cut = create(tmp_path, configuration())
    step, calls = cut.trainer.step, itertools.count()
    inner = step.loss

    def loss(x):
        if next(calls) == 1:
            os.kill(os.getpid(), number)
        return inner(x)

    step.loss = loss
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted) as raised:
        cut.trainer.fit()
    assert raised.value.saved and cut.trainer.global_step == 2
    assert signal.getsignal(number) is before


def test_early_stopping_keeps_the_best_epoch():
    figures = iter([5.0, 3.0, 4.0, 3.0, 3.5, 1.0])
    session = build(configuration(epochs=6, patience=3))
    session.trainer.evaluate = lambda model: {"nll": next(figures)}
    seen = []
    session.trainer.on_step = lambda trainer: seen.append(parameters(session).clone())
    result = session.trainer.fit()
    assert (result.epochs, result.best_epoch, result.best) == (5, 2, 3.0)
    assert result.stopped_early
    assert torch.equal(parameters(session), seen[2 * STEPS - 1])


def test_early_stopping_counts_on_after_a_resume(tmp_path):
    config = configuration(epochs=9, patience=3)
    values = [5.0, 3.0, 4.0, 3.5, 3.5, 1.0]
    first = create(tmp_path, config, on_step=interrupt_at(3 * STEPS + 1))
    figures = iter(values)
    first.trainer.evaluate = lambda model: {"nll": next(figures)}
    with pytest.raises(TrainingInterrupted):
        first.trainer.fit()
    best = first.trainer._best_model
    second = build(config)
    second.trainer.evaluate = lambda model: {"nll": next(figures)}
    sessions.resume(second, RunDirectory.open(tmp_path))
    result = second.trainer.fit()
    assert (result.epochs, result.best_epoch) == (5, 2)
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, best[name])


@pytest.mark.parametrize("where", ["train", "valid"])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(tmp_path, where):
    session = create(tmp_path, configuration())
    step, calls = session.trainer.step, itertools.count()
    inner, evaluate = step.loss, session.trainer.evaluate
    if where == "train":
        step.loss = lambda x: inner(x) * (math.nan if next(calls) == STEPS else 1.0)
    else:
        session.trainer.evaluate = lambda m: {"nll": math.inf} if next(calls) == 1 else evaluate(m)
    with pytest.raises(TrainingDiverged, match=r"epoch 2: .*lower learning rate"):
        session.trainer.fit()
    assert RunDirectory.open(tmp_path).load()["epoch"] == 1


def test_validation_leaves_generators_and_mode_alone():
    session = build(configuration())
    session.model.train()
    state = torch.get_rng_state()
    first = session.trainer.evaluate(session.model)
    assert torch.equal(torch.get_rng_state(), state) and session.model.training
    assert session.trainer.evaluate(session.model) == first


def test_checkpoint_every_few_epochs_still_saves_the_end(tmp_path):
    session = create(tmp_path, configuration(epochs=3))
    session.trainer.checkpoint_every = 2
    session.trainer.fit()
    assert RunDirectory.open(tmp_path).load()["epoch"] == 3


def test_resume_refuses_other_data(tmp_path):
    create(tmp_path, configuration()).trainer.fit()
    other = build(configuration(), dataset=small_data(dynamic=True))
    with pytest.raises(RunDirectoryError, match=r"data \(small\) are not those the run began with"):
        sessions.resume(other, RunDirectory.open(tmp_path))


def test_resume_refuses_another_model(tmp_path):
    create(tmp_path, configuration()).trainer.fit()
    other = build(configuration(model={"latent_dim": 4, "hidden_sizes": [8]}))
    with pytest.raises(RunDirectoryError, match=r"last\.pt does not fit the run's configuration"):
        sessions.resume(other, RunDirectory.open(tmp_path))


def test_resume_before_the_first_save_starts_over(tmp_path):
    create(tmp_path, configuration())
    assert not sessions.resume(build(configuration()), RunDirectory.open(tmp_path))


def test_every_row_comes_once_an_epoch_in_an_order_of_the_seed():
    orders = []
    for seed in (0, 0, 1):
        order = BatchOrder(10, 4, seed)
        rows = []
        while (index := order.peek()) is not None:
            torch.rand(3)  # what the model draws does not matter
            rows += index.tolist()
            order.advance()
        assert sorted(rows) == list(range(10))
        orders.append(rows)
    assert orders[0] == orders[1] != orders[2]
    order.end_epoch()
    assert order.peek().tolist() != orders[2][:4]


def test_order_of_another_data_set_is_refused():
    state = BatchOrder(10, 4, 0).state_dict()
    with pytest.raises(ValueError, match="num_rows 10, this one 12"):
        BatchOrder(12, 4, 0).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 0}, "max_epochs must be at least 1"),
        ({"max_epochs": 1, "patience": 0}, "patience must be at least 1"),
        ({"max_epochs": 1, "checkpoint_every": 0}, "checkpoint_every must be at least 1"),
    ],
)
def test_bad_trainer_arguments(options, message):
    model = torch.nn.Linear(16, 1)
    step = LossStep(lambda x: model(x).mean(), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=message):
        Trainer(model, step, small_data(), BatchOrder(50, 20, 0), lambda m: {"nll": 0.0}, **options)


def test_any_module_with_a_loss_can_be_trained():
    logits = torch.nn.Parameter(torch.zeros(16))
    model = torch.nn.ParameterList([logits])
    data = small_data()
    step = LossStep(
        lambda x: (
            torch.nn.functional.binary_cross_entropy_with_logits(
                logits.expand_as(x), x, reduction="sum"
            )
            / len(x)
        ),
        torch.optim.SGD(model.parameters(), lr=0.5),
    )
    trainer = Trainer(
        model,
        step,
        data,
        BatchOrder(50, 20, 0),
        lambda m: {"nll": step.loss(data.valid.float()).item()},
        max_epochs=40,
    )
    result = trainer.fit()
    p = data.train.float().mean(0)
    assert result.best < 16 * math.log(2)
    assert torch.allclose(torch.sigmoid(logits.detach()), p, atol=0.15)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("batch_size", 0), ("eval_samples", 0), ("patience", 0), ("lr", math.nan)],
)
def test_bad_configuration(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        configuration(**{field: value})
