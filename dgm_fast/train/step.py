"""One optimisation step, as the trainer sees it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class TrainStep(Protocol):
    """What a trainer runs on each batch.

    ``updating`` is True from the moment parameters begin to change until the trainer clears it: an
    interruption before that can abandon the step, one after it cannot.
    """

    updating: bool

    def __call__(self, x: Any) -> Tensor:
        """Update the model on what the data set's ``batch`` gave; returns the loss before the update,
        detached, a scalar."""

    def end_epoch(self) -> None:
        """Advance schedules that count epochs."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class LossStep:
    """Gradient descent on ``loss(x)``, one scalar.

    Args:
        loss: batch -> scalar loss; ``model.loss``, or a compiled form of it.
        optimizer: over the model's parameters.
        scheduler: stepped once per epoch.
        clip_norm: gradients whose norm, over all parameters, is larger are scaled down to it.
    """

    def __init__(
        self,
        loss: Callable[[Tensor], Tensor],
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        clip_norm: float | None = None,
    ) -> None:
        self.loss = loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.clip_norm = clip_norm
        self.updating = False

    def __call__(self, x: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(x)
        loss.backward()
        if self.clip_norm is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.updating = True
        self.optimizer.step()
        return loss.detach()

    def end_epoch(self) -> None:
        if self.scheduler is None:
            return
        with warnings.catch_warnings():
            # A run resumed at the end of an epoch steps the schedule before this process has
            # stepped the optimizer; the scheduler cannot know that the saved run did.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


def clone_state(model: nn.Module) -> dict[str, Any]:
    """A copy of a model's state that later steps do not change."""
    return {
        key: value.detach().clone() if isinstance(value, Tensor) else value
        for key, value in model.state_dict().items()
    }
