"""A penalty that is applied every few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dgm_fast import functional


class LazyPenalty:
    r"""Applies a penalty every k-th step, k times as strongly (lazy regularisation).

        lazy = LazyPenalty(16, dgm_fast.functional.r1_penalty)
        optimizer = torch.optim.Adam(critic.parameters(), **lazy.adam_options(lr=2e-3, betas=(0.0, 0.99)))
        for real, fake in batches:
            loss = discriminator_loss(critic(real), critic(fake), "non_saturating") + lazy(critic, real)

    With a penalty that shares work with the loss, ask for it instead:

            due = lazy.step()
            loss = critic_loss(critic, real, fake, penalty="r1" if due else None, weight=10.0 * lazy.gain)

    The first step is due. k = 1 is the penalty itself.

    Args:
        interval: k, at least 1.
        penalty: called with the arguments of the call; :func:`gradient_penalty` by default.

    Raises:
        ValueError: if ``interval`` is below 1.

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), appendix B, "lazy
    regularization".
    """

    def __init__(
        self, interval: int, penalty: Callable[..., Tensor] = functional.gradient_penalty
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval!r}")
        self.interval = interval
        self.penalty = penalty
        self.steps = 0

    @property
    def gain(self) -> float:
        """The factor k that keeps the penalty's share over k steps."""
        return float(self.interval)

    @property
    def due(self) -> bool:
        """Whether the step that comes next applies the penalty."""
        return self.steps % self.interval == 0

    def step(self) -> bool:
        """Counts a step; true if it applies the penalty."""
        due = self.due
        self.steps += 1
        return due

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | float:
        """k times the penalty on steps that are due, else 0.0. Counts the step."""
        return self.gain * self.penalty(*args, **kwargs) if self.step() else 0.0

    def adam_options(self, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> dict[str, Any]:
        r"""Learning rate and betas of Adam, corrected with c = k / (k + 1): c lr and beta^c.

        In StyleGAN2 the penalty has an optimiser step of its own: k steps of training are k + 1 of the
        optimiser. The correction keeps the pace and the averaging span those of k. For k = 1, the
        penalty itself, nothing changes.
        """
        c = self.interval / (self.interval + 1) if self.interval > 1 else 1.0
        return {"lr": c * lr, "betas": (betas[0] ** c, betas[1] ** c)}

    def correct(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply :meth:`adam_options` to an optimiser that exists, once.

        Raises:
            ValueError: if a parameter group has no betas.
        """
        for group in optimizer.param_groups:
            if "betas" not in group:
                raise ValueError("optimizer must be of Adam's kind, with betas")
            group.update(self.adam_options(group["lr"], group["betas"]))

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]
