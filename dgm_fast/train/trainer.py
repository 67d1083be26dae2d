"""The training loop: any model, any step, exact resume."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dgm_fast.data import Dataset
from dgm_fast.train.batches import BatchOrder
from dgm_fast.train.checkpoint import generator_states, restore_generator_states
from dgm_fast.train.interrupt import StopSignals, TrainingInterrupted
from dgm_fast.train.progress import Progress, Silent
from dgm_fast.train.run_directory import RunDirectory
from dgm_fast.train.step import TrainStep, clone_state


class TrainingDiverged(RuntimeError):
    """The loss is no longer finite; the last saved state is the last good one."""


@dataclass(frozen=True)
class FitResult:
    """How a fit ended: completed epochs, the best epoch with its validation figure, and why."""

    epochs: int
    best_epoch: int
    best: float
    stopped_early: bool


class Trainer:
    """Runs epochs of steps with validation, early stopping, checkpoints and exact resume.

    A resumed run continues with the same losses, bit for bit, as one that was never interrupted:
    the state holds the model, the step (optimizer, scheduler), every random generator, the order of
    the data and the position in it, the running loss of the epoch and the early-stopping counters.

    Args:
        model: trained in place; at the end it holds the parameters of the best epoch.
        step: what happens on a batch; see :class:`dgm_fast.train.step.TrainStep`.
        dataset: on the device of the model.
        order: the order of the rows of its train split.
        evaluate: model -> figures of the validation split; the first is monitored (lower is
            better). It must leave the global random generators as they were.
        max_epochs: stop after so many.
        patience: stop after so many epochs without a new best; None never does.
        run: where to save; None keeps everything in memory.
        progress: shows what happens; None shows nothing.
        signals: entered by the caller around more than :meth:`fit`; None handles them in fit only.
        on_step: called after each step with the trainer (logging, tests).
        on_epoch: called after each epoch and its saves.
        batch: row indices -> what the step takes; None is the data set's ``batch``.
        checkpoint_every: epochs between saves of ``last.pt``.
    """

    def __init__(
        self,
        model: nn.Module,
        step: TrainStep,
        dataset: Dataset,
        order: BatchOrder,
        evaluate: Callable[[nn.Module], dict[str, float]],
        *,
        max_epochs: int,
        patience: int | None = None,
        run: RunDirectory | None = None,
        progress: Progress | None = None,
        signals: StopSignals | None = None,
        on_step: Callable[[Trainer], None] | None = None,
        on_epoch: Callable[[Trainer], None] | None = None,
        batch: Callable[[Tensor], Any] | None = None,
        checkpoint_every: int = 1,
    ) -> None:
        for name, value in (("max_epochs", max_epochs), ("checkpoint_every", checkpoint_every)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        self.model = model
        self.step = step
        self.dataset = dataset
        self.order = order
        self.evaluate = evaluate
        self.max_epochs = max_epochs
        self.patience = patience
        self.run = run
        self.progress: Progress = progress if progress is not None else Silent()
        self.signals = signals
        self.on_step = on_step
        self.on_epoch = on_epoch
        self.batch = dataset.batch if batch is None else batch
        self.checkpoint_every = checkpoint_every
        self.epoch = 0
        self.global_step = 0
        self.best = math.inf
        self.best_epoch = 0
        self.history: list[dict[str, Any]] = []
        self._best_model: dict[str, Any] | None = None
        self._loss_sum: Tensor | None = None
        self._loss_rows = 0
        self._before_step: dict[str, Any] | None = None

    @property
    def stopped_early(self) -> bool:
        return self.patience is not None and self.epoch - self.best_epoch >= self.patience

    @property
    def finished(self) -> bool:
        return self.epoch >= self.max_epochs or self.stopped_early

    def fit(self) -> FitResult:
        """Train until finished, then put the best epoch's parameters into the model.

        Raises:
            TrainingInterrupted: on SIGINT, SIGTERM or KeyboardInterrupt, after saving.
            TrainingDiverged: when a loss is not finite.
        """
        steps = len(self.order)
        self.progress.start(
            self.max_epochs * steps,
            self.epoch * steps + self.order.position,
            self.max_epochs,
            self.best if self.best_epoch else None,
        )
        with contextlib.ExitStack() as stack:
            stack.callback(self.progress.close)
            if self.signals is None:
                self.signals = stack.enter_context(StopSignals())
                stack.callback(setattr, self, "signals", None)
            try:
                while not self.finished:
                    self._run_epoch(self.signals)
                if self.run is not None and (self.epoch % self.checkpoint_every):
                    with self.signals.deferred():
                        self.run.save_last(self.state_dict())
            except KeyboardInterrupt as interruption:
                raise self._interrupted() from interruption
        if self._best_model is not None:
            self.model.load_state_dict(self._best_model)
        return FitResult(self.epoch, self.best_epoch, self.best, self.stopped_early)

    def _run_epoch(self, signals: StopSignals) -> None:
        started = time.perf_counter()
        self.model.train()
        while (index := self.order.peek()) is not None:
            with signals.deferred():
                self._run_step(index)
            if self.on_step is not None:
                self.on_step(self)
        figures = self.evaluate(self.model)
        with signals.deferred():
            self._end_epoch(figures, time.perf_counter() - started)
            if self.on_epoch is not None:
                self.on_epoch(self)

    def _run_step(self, index: Tensor) -> None:
        self._before_step = generator_states()
        loss = self.step(self.batch(index))
        rows = len(index)
        # Summed on the device in float64: reading a loss each step would synchronise a GPU.
        total = loss.double() * rows
        self._loss_sum = total if self._loss_sum is None else self._loss_sum + total
        self._loss_rows += rows
        self.global_step += 1
        self.order.advance()
        self.step.updating = False
        self._before_step = None
        self.progress.step(self.epoch + 1, self._loss_sum, self._loss_rows)

    def _end_epoch(self, figures: dict[str, float], seconds: float) -> None:
        assert self._loss_sum is not None
        train_loss = self._loss_sum.item() / self._loss_rows
        monitored = next(iter(figures.values()))
        if not (math.isfinite(train_loss) and math.isfinite(monitored)):
            raise TrainingDiverged(
                f"epoch {self.epoch + 1}: training loss {train_loss}, validation {monitored}; try "
                "a lower learning rate. The last saved state is from before this epoch"
            )
        self.step.end_epoch()
        self.order.end_epoch()
        self._loss_sum, self._loss_rows = None, 0
        self.epoch += 1
        improved = monitored < self.best
        record: dict[str, Any] = {"epoch": self.epoch, "step": self.global_step}
        record["train_loss"] = train_loss
        record |= {f"valid_{name}": value for name, value in figures.items()}
        record["seconds"] = round(seconds, 3)
        self.history.append(record)
        if improved:
            self.best, self.best_epoch = monitored, self.epoch
            self._best_model = clone_state(self.model)
        if self.run is not None:
            # last.pt comes after what it refers to: a crash in between only repeats this epoch.
            if improved:
                self.run.save_best(self.state_dict())
            self.run.write_metrics(self.history)
            if self.epoch % self.checkpoint_every == 0:
                self.run.save_last(self.state_dict())
        self.progress.epoch(record, improved)

    def _interrupted(self) -> TrainingInterrupted:
        where = f"epoch {self.epoch + 1}, step {self.order.position} of {len(self.order)}"
        if self.step.updating:
            # Parameters changed and the books did not: this state equals no point of the run.
            return TrainingInterrupted(
                f"interrupted inside an update at {where}; that update was not saved", saved=False
            )
        if self._before_step is not None:
            restore_generator_states(self._before_step)
            self._before_step = None
        if self.run is None:
            return TrainingInterrupted(f"interrupted at {where}", saved=False)
        self.run.save_last(self.state_dict())
        return TrainingInterrupted(f"interrupted at {where}; saved", saved=True)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how training goes on."""
        return {
            "model": self.model.state_dict(),
            "train_step": self.step.state_dict(),
            "order": self.order.state_dict(),
            "generators": generator_states(),
            "epoch": self.epoch,
            "global_step": self.global_step,
            "loss_sum": self._loss_sum,
            "loss_rows": self._loss_rows,
            "best": self.best,
            "best_epoch": self.best_epoch,
            # At the best epoch itself it is the model.
            "best_model": None if self.best_epoch == self._model_epoch() else self._best_model,
            "history": self.history,
        }

    def _model_epoch(self) -> int | None:
        """The epoch whose final parameters the model holds, None inside an epoch."""
        return self.epoch if self.order.position == 0 and self.epoch else None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state.

        Raises:
            ValueError: if it belongs to another data set or batch size.
            RuntimeError: if it belongs to another model.
        """
        self.order.load_state_dict(state["order"])
        self.model.load_state_dict(state["model"])
        self.step.load_state_dict(state["train_step"])
        self.epoch = state["epoch"]
        self.global_step = state["global_step"]
        self._loss_sum = state["loss_sum"]
        self._loss_rows = state["loss_rows"]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        best_model = state["best_model"]
        if best_model is None and self.best_epoch:
            best_model = clone_state(self.model)
        self._best_model = best_model
        self.history = list(state["history"])
        restore_generator_states(state["generators"])
