"""The order of training rows: shuffled each epoch, and resumable in the middle of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class BatchOrder:
    """Yields the row indices of each batch from a generator of its own.

    The permutation of an epoch depends on the seed and the epoch's number only, not on how many
    random numbers the model drew.

    Args:
        num_rows: rows of the training split.
        batch_size: rows a batch; the last batch of an epoch is smaller where it does not divide.
        seed: of the permutations.
        device: where the indices are used.
    """

    def __init__(
        self, num_rows: int, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.device = device
        self.position = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._permutation: Tensor | None = None

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self.num_rows // self.batch_size)

    def peek(self) -> Tensor | None:
        """Indices of the batch at the current position, or None when the epoch is through."""
        if self._permutation is None:
            order = torch.randperm(self.num_rows, generator=self._generator)
            self._permutation = order.to(self.device)
        if self.position >= len(self):
            return None
        start = self.position * self.batch_size
        return self._permutation[start : start + self.batch_size]

    def advance(self) -> None:
        self.position += 1

    def end_epoch(self) -> None:
        self._permutation = None
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        order = self._permutation
        return {
            "num_rows": self.num_rows,
            "batch_size": self.batch_size,
            "position": self.position,
            "generator": self._generator.get_state(),
            "permutation": None if order is None else order.cpu().clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("num_rows", "batch_size"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the saved run has {name} {state[name]}, this one {getattr(self, name)}"
                )
        self.position = state["position"]
        self._generator.set_state(state["generator"].cpu())
        order = state["permutation"]
        self._permutation = None if order is None else order.to(self.device)
