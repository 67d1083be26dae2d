"""What a user sees while a model trains."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from dgm_fast.data.extras import require

_REFRESH_SECONDS = 0.25


def make_console(purpose: str) -> Any:
    """A ``rich`` console on standard output.

    Raises:
        MissingExtraError: if rich is not installed.
    """
    return require("rich.console", purpose).Console()


class Progress(Protocol):
    """Receives what the trainer does. Loss sums come as tensors: reading one synchronises a GPU."""

    def start(self, total_steps: int, done_steps: int, epochs: int, best: float | None) -> None: ...

    def step(self, epoch: int, loss_sum: Tensor, rows: int) -> None: ...

    def epoch(self, record: Mapping[str, Any], improved: bool) -> None: ...

    def close(self) -> None: ...


class Silent:
    def start(self, total_steps: int, done_steps: int, epochs: int, best: float | None) -> None:
        """Shows nothing."""

    def step(self, epoch: int, loss_sum: Tensor, rows: int) -> None:
        """Shows nothing."""

    def epoch(self, record: Mapping[str, Any], improved: bool) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Shows nothing."""


class RichProgress:
    """A bar with the training loss, the validation figure and its best value, in nats.

    Where the output is not a terminal, one line for an epoch instead, at most one a few seconds.

    Args:
        label: shown before the bar.
        console: a ``rich.console.Console``; None makes one on standard output.
        monitor: which entry of an epoch's record is the validation figure.
        figure: what the numbers are; the default says that they bound the NLL from above.
        digits: how they are written, a format specification.
    """

    def __init__(
        self,
        label: str,
        *,
        console: Any = None,
        monitor: str = "valid_nll",
        figure: str = "NLL ≤",
        digits: str = ".2f",
        line_seconds: float = 5.0,
    ) -> None:
        self._rich = require("rich.progress", "the progress bar")
        self.console = console if console is not None else make_console("the progress bar")
        self._label = label
        self._monitor = monitor
        self._figure = figure
        self._digits = digits
        self._line_seconds = line_seconds
        self._bar: Any = None
        self._task: Any = None
        self._refreshed = 0.0
        self._printed = 0.0
        self._epochs = 0
        self._valid = self._best = float("nan")

    def start(self, total_steps: int, done_steps: int, epochs: int, best: float | None) -> None:
        self._epochs = epochs
        if best is not None:
            self._best = best
        if not self.console.is_terminal:
            return
        rich = self._rich
        shown = [
            f"{{task.fields[{name}]:{self._digits}}} {name}" for name in ("train", "valid", "best")
        ]
        self._bar = rich.Progress(
            rich.TextColumn("[bold]{task.description}"),
            rich.BarColumn(bar_width=10),
            rich.TextColumn("{task.fields[epoch]}/{task.fields[epochs]}"),
            rich.TextColumn(" ".join([self._figure, *shown])),
            rich.TimeRemainingColumn(),
            console=self.console,
        )
        nan = float("nan")
        self._task = self._bar.add_task(
            self._label,
            total=total_steps,
            completed=done_steps,
            epoch=0,
            epochs=epochs,
            train=nan,
            valid=nan,
            best=self._best,
        )
        self._bar.start()

    def step(self, epoch: int, loss_sum: Tensor, rows: int) -> None:
        if self._bar is None:
            return
        now = time.monotonic()
        fields: dict[str, Any] = {"epoch": epoch}
        if now - self._refreshed > _REFRESH_SECONDS:
            self._refreshed = now
            fields["train"] = loss_sum.item() / rows
        self._bar.update(self._task, advance=1, **fields)

    def epoch(self, record: Mapping[str, Any], improved: bool) -> None:
        self._valid = record[self._monitor]
        if improved:
            self._best = self._valid
        if self._bar is not None:
            self._bar.update(
                self._task,
                epoch=record["epoch"],
                train=record["train_loss"],
                valid=self._valid,
                best=self._best,
            )
            return
        now = time.monotonic()
        if record["epoch"] < self._epochs and now - self._printed < self._line_seconds:
            return
        self._printed = now
        self.console.print(
            f"{self._label}: epoch {record['epoch']}/{self._epochs}  "
            f"{self._figure} {record['train_loss']:{self._digits}} train, "
            f"{self._valid:{self._digits}} valid, {self._best:{self._digits}} best",
            highlight=False,
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
