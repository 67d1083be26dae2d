"""A run from its configuration: data, model, trainer, final evaluation and images."""

from __future__ import annotations

import contextlib
import hashlib
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast.data import DataError, Dataset, load_dataset
from dgm_fast.ops import backend
from dgm_fast.train.batches import BatchOrder
from dgm_fast.train.config import ConfigError, TrainConfig
from dgm_fast.train.evaluate import evaluation, means, per_row, summary
from dgm_fast.train.files import write_json
from dgm_fast.train.interrupt import StopSignals
from dgm_fast.train.plots import plot_points
from dgm_fast.train.progress import Progress
from dgm_fast.train.registry import get_kind
from dgm_fast.train.run_directory import RunDirectory, RunDirectoryError
from dgm_fast.train.samples import write_reconstructions, write_samples, write_texts
from dgm_fast.train.step import LossStep, TrainStep
from dgm_fast.train.trainer import Trainer

# Rows per call of an evaluation: the models chunk their samples, so this only bounds [B, K, D] of a
# validation bound.
_EVALUATION_BATCH = 100
# Images of samples that a run leaves behind, where it leaves any.
_PICTURES = 20


def resolve_device(name: str) -> torch.device:
    """ "auto" is CUDA where it is available, else the CPU.

    Raises:
        ValueError: if the device is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here: {error}") from error
    return device


@contextlib.contextmanager
def execution(config: TrainConfig) -> Iterator[None]:
    """The backend and number of threads of a configuration, for a while."""
    threads = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        with backend(config.backend):
            yield
    finally:
        torch.set_num_threads(threads)


@dataclass
class Session:
    """A model with its data, ready to train or to go on."""

    config: TrainConfig
    model: nn.Module
    dataset: Dataset
    trainer: Trainer


def data_fingerprint(dataset: Dataset) -> str:
    """SHA-256 of all rows, so that a run is not resumed on other data."""
    digest = hashlib.sha256()
    for rows in dataset.splits().values():
        digest.update(str(tuple(rows.shape)).encode())
        digest.update(rows.cpu().contiguous().numpy().data)
    if dataset.vocabulary is not None:
        digest.update(dataset.vocabulary.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def build(
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    signals: StopSignals | None = None,
    on_step: Callable[[Trainer], None] | None = None,
    dataset: Dataset | None = None,
) -> Session:
    """Load the data, seed, and build model, optimizer and trainer of a configuration.

    Args:
        config: the run.
        progress, signals, on_step: as for :class:`Trainer`.
        dataset: instead of loading ``config.data``.

    Raises:
        DataError, ConfigError: if data, options and model do not fit each other.
    """
    device = resolve_device(config.device)
    if dataset is None:
        dataset = load_dataset(**config.data)
    dataset = dataset.to(device)
    torch.manual_seed(config.seed)
    kind = get_kind(config.kind)
    options = {**kind.options, **config.model}
    try:
        model = kind.build(dataset, options).to(device)
    except DataError:
        raise
    except ValueError as error:
        raise ConfigError(f"{config.kind}: {error}") from error
    batch_size = len(dataset.train)
    step = kind.full_batch_step(model, options)
    if step is None:
        batch_size = config.batch_size
        make_step = _gradient_step if kind.make_step is None else kind.make_step
        step = make_step(model, config)

    def evaluate(trained: nn.Module) -> dict[str, float]:
        if kind.compare is not None:
            with evaluation(trained, dataset.valid):
                return dict(kind.compare(trained, dataset.model_input(dataset.valid)))
        assert kind.validate is not None
        return means(
            per_row(
                trained,
                dataset.valid,
                kind.validate,
                convert=dataset.model_input,
                batch_size=_EVALUATION_BATCH,
                labels=_labels(config, dataset, "valid"),
            )
        )

    trainer = Trainer(
        model,
        step,
        dataset,
        BatchOrder(len(dataset.train), batch_size, config.seed, device),
        evaluate,
        max_epochs=config.epochs,
        patience=config.patience,
        progress=progress,
        signals=signals,
        on_step=on_step,
        on_epoch=_pictures(config) if kind.compare is not None or kind.pictures else None,
        batch=dataset.labelled_batch if kind.labelled or _conditional(config) else None,
    )
    return Session(config, model, dataset, trainer)


def _pictures(config: TrainConfig) -> Callable[[Trainer], None]:
    """Samples every so many epochs: what shows the progress where figures say little to the eye."""
    every = max(1, config.epochs // _PICTURES)

    def on_epoch(trainer: Trainer) -> None:
        dataset, run = trainer.dataset, trainer.run
        if run is None or dataset.image_shape is None:
            return
        if trainer.epoch % every == 0 or trainer.epoch == trainer.max_epochs:
            write_samples(run.epoch_samples_path(trainer.epoch), trainer.model, dataset)

    return on_epoch


def _conditional(config: TrainConfig) -> bool:
    """Whether the model's likelihood is that of rows given their labels."""
    return bool(config.model.get("class_conditional"))


def _labels(config: TrainConfig, dataset: Dataset, split: str) -> Tensor | None:
    """The labels that an evaluation of a split takes."""
    if not _conditional(config):
        return None
    assert dataset.labels is not None
    return dataset.labels[split]


def _labelled(loss: Callable[..., Tensor]) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    """A loss of (rows, labels)."""
    return lambda batch: loss(batch[0], context=batch[1])


def _gradient_step(model: nn.Module, config: TrainConfig) -> TrainStep:
    """Adam on ``model.loss``."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    scheduler = None
    if config.schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    loss: Any = model.loss
    if config.compile:
        loss = torch.compile(loss)
    if _conditional(config):
        loss = _labelled(loss)
    return LossStep(loss, optimizer, scheduler, config.clip_norm)


def run_record(session: Session) -> dict[str, Any]:
    """What ``config.json`` holds: the configuration, and notes on data and machine."""
    return {
        **session.config.to_json(),
        "_data_sha256": data_fingerprint(session.dataset),
        "_environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    }


def resume(session: Session, run: RunDirectory, which: str = "last") -> bool:
    """Take up the saved state of a run; False if the run stopped before its first save.

    Raises:
        CheckpointError: if the state cannot be read.
        RunDirectoryError: if the data or the model are not those of the run.
    """
    recorded = run.read_config().get("_data_sha256")
    if recorded != data_fingerprint(session.dataset):
        raise RunDirectoryError(
            f"{run.path}: the data ({session.dataset.name}) are not those the run began with"
        )
    session.trainer.run = run
    if not run.last_path.exists() and not run.best_path.exists():
        return False
    state = run.load(which, resolve_device(session.config.device))
    try:
        session.trainer.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        raise RunDirectoryError(
            f"{run.path}: {which}.pt does not fit the run's configuration ({error})"
        ) from error
    return True


def evaluate_test(
    session: Session, on_batch: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Test figures: NLL and bound in nats and bits per dimension; distances without a likelihood."""
    config, dataset = session.config, session.dataset
    kind = get_kind(config.kind)
    trainer = session.trainer
    results: dict[str, Any] = {
        "split": "test",
        "rows": len(dataset.test),
        "epochs": trainer.epoch,
        "best_epoch": trainer.best_epoch,
        "best_valid": trainer.best,
        "stopped_early": trainer.stopped_early,
    }
    if kind.compare is not None:
        with evaluation(session.model, dataset.test):
            results |= kind.compare(session.model, dataset.model_input(dataset.test))
    else:
        results |= _likelihood_figures(session, on_batch)
    bad = [k for k, v in results.items() if isinstance(v, float) and not math.isfinite(v)]
    if bad:
        raise ArithmeticError(f"the test evaluation gave non-finite figures: {', '.join(bad)}")
    return results


def _likelihood_figures(
    session: Session, on_batch: Callable[[int, int], None] | None
) -> dict[str, Any]:
    config, dataset = session.config, session.dataset
    test = get_kind(config.kind).test
    assert test is not None
    values = per_row(
        session.model,
        dataset.test,
        lambda model, x: test(model, x, config.eval_samples),
        convert=dataset.model_input,
        batch_size=_EVALUATION_BATCH,
        labels=_labels(config, dataset, "test"),
        on_batch=on_batch,
    )
    return {"eval_samples": config.eval_samples, **summary(values, dataset.num_dims)}


def _write_points(run: RunDirectory, session: Session) -> None:
    data = session.dataset.test.float()
    with evaluation(session.model, data):
        samples = session.model.sample(len(data))  # type: ignore[operator]
        plot_points(run.samples_path, session.model, data, samples)


def write_outputs(session: Session, run: RunDirectory, results: dict[str, Any]) -> list[str]:
    """Write ``results.json`` and samples: image grids, texts, or a plot of points; returns the file names.

    Reconstructions are those of models with a ``reconstruct`` method.
    """
    written = []
    if session.dataset.image_shape is not None:
        write_samples(run.samples_path, session.model, session.dataset)
        written.append(run.samples_path.name)
        if hasattr(session.model, "reconstruct"):
            write_reconstructions(run.reconstructions_path, session.model, session.dataset)
            written.append(run.reconstructions_path.name)
    if hasattr(session.model, "decode") and session.dataset.vocabulary is not None:
        write_texts(run.texts_path, session.model, session.dataset)
        written.append(run.texts_path.name)
    if session.dataset.num_dims == 2 and session.dataset.likelihood == "gaussian":
        _write_points(run, session)
        written.append(run.samples_path.name)
    write_json(run.results_path, results)
    return [run.results_path.name, *written]
