"""Activation normalisation: a factor and a shift a channel, set by the first batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.nn._outside_graphs import outside_graphs
from dgm_fast.nn.transform import Transform
from dgm_fast.reference._common import compute_dtype

# Least standard deviation that the first batch may claim for a channel.
_LEAST = 1e-6


class ActNorm(Transform):
    r"""One factor and shift a channel, :math:`z_c = x_c\, e^{l_c} + b_c`.

    The first batch that ``forward`` sees in training mode sets l and b so that each channel of z has mean 0
    and variance 1 over it. Whether that has happened is known to Python: no call waits for a device to
    learn it. A ``state_dict`` holds it as the buffer ``initialized``. Before that, and in evaluation mode,
    the transform is what its parameters say: the identity.

    With several processes (``torch.distributed``) the statistics are those of all their batches, so that
    every process sets the same parameters.

    Args:
        num_channels: C, of data [B, C] or [B, C, ...].

    Source: Kingma and Dhariwal, "Glow" (2018), section 3.1.
    """

    initialized: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {num_channels}")
        self.log_scale = nn.Parameter(torch.zeros(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("initialized", torch.tensor(False))
        self._initialized = False

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.training and not self._initialized:
            self.initialize(x)
        return functional.actnorm(x, self.log_scale, self.bias)

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return functional.actnorm(z, self.log_scale, self.bias, inverse=True)

    @outside_graphs
    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set factor and shift so that z has mean 0 and variance 1 a channel on the batch x [B, C, ...]."""
        columns = x.detach().to(compute_dtype(x)).transpose(0, 1).flatten(1)  # [C, B ...]
        count = torch.tensor(float(columns.shape[1]), dtype=columns.dtype, device=x.device)
        count, total = _sum_over_processes(count), _sum_over_processes(columns.sum(1))
        mean = total / count
        # Of the differences, which a sum of squares would cancel.
        squares = _sum_over_processes((columns - mean.unsqueeze(1)).square().sum(1))
        std = (squares / count).sqrt()
        # One value says nothing about the spread.
        std = torch.where(count > 1, std.clamp(min=_LEAST), 1.0)
        self.log_scale.copy_(-std.log())
        self.bias.copy_(-mean / std)
        self.initialized.fill_(True)
        self._initialized = True

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        found = state_dict.get(f"{prefix}initialized")
        if found is not None:
            self._initialized = bool(found)

    def extra_repr(self) -> str:
        return str(len(self.bias))


def _sum_over_processes(values: Tensor) -> Tensor:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(values)
    return values
