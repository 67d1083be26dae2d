"""Alternating steps of a discriminator and a generator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dgm_fast.models._adversarial import AdversarialModel


class AdversarialStep:
    """One discriminator update a batch, and a generator update after every ``num_critic_steps`` of them.

    The loss it reports is the discriminator's.

    Args:
        model: with ``discriminator_loss``, ``generator_loss`` and the running average.
        discriminator_optimizer, generator_optimizer: over the parameters of each network.
        num_critic_steps: None is the model's own.
    """

    def __init__(
        self,
        model: AdversarialModel,
        discriminator_optimizer: Optimizer,
        generator_optimizer: Optimizer,
        *,
        num_critic_steps: int | None = None,
    ) -> None:
        if num_critic_steps is None:
            num_critic_steps = model.num_critic_steps
        if num_critic_steps < 1:
            raise ValueError(f"num_critic_steps must be at least 1, got {num_critic_steps}")
        self.model = model
        self.optimizers = {
            "discriminator": discriminator_optimizer,
            "generator": generator_optimizer,
        }
        self.num_critic_steps = num_critic_steps
        self.steps = 0
        self.updating = False

    def __call__(self, x: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        rows, labels = x if isinstance(x, tuple) else (x, None)
        loss = self._update("discriminator", self.model.discriminator_loss(rows, labels))
        self.model.after_discriminator_update()
        self.steps += 1
        if self.steps % self.num_critic_steps == 0:
            self._update("generator", self.model.generator_loss(len(rows), labels))
            self.model.update_average()
        return loss

    def _update(self, network: str, loss: Tensor) -> Tensor:
        optimizer = self.optimizers[network]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # The generator's loss passes through the discriminator, whose gradients nobody wants.
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.updating = True
        optimizer.step()
        return loss.detach()

    def end_epoch(self) -> None:
        """Nothing counts epochs here."""

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            **{name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
