"""A density in any number of dimensions whose entropy is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The order of the chain belongs to the density, not to a run.
_SEED = 20191206


class SineChain:
    r"""A chain of dimensions in hidden order, each bent by the one before.

    .. math:: y_1 = u_1, \qquad y_d = s\, u_d + \sin(2 y_{d-1}), \qquad u \sim N(0, I)

    and x is y with its entries shuffled. The map from u to x has the constant log-determinant
    (D - 1) log s, so that the entropy is exactly

    .. math:: H = \tfrac{D}{2} \log(2 \pi e) + (D - 1) \log s

    On samples, the mean of a model's negative log-likelihood less that of minus :meth:`log_prob` estimates
    the divergence of the model from the truth.

    Args:
        num_dims: D.
        scale: s.
    """

    def __init__(self, num_dims: int, scale: float = 0.4) -> None:
        if num_dims < 1:
            raise ValueError(f"num_dims must be at least 1, got {num_dims}")
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        self.num_dims = num_dims
        self.scale = scale
        generator = torch.Generator().manual_seed(_SEED)
        self.order = torch.randperm(num_dims, generator=generator)

    @property
    def entropy(self) -> float:
        """H in nats."""
        gaussian = 0.5 * self.num_dims * math.log(2 * math.pi * math.e)
        return gaussian + (self.num_dims - 1) * math.log(self.scale)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """n draws, [n, D] float32."""
        u = torch.randn(n, self.num_dims, generator=generator)
        y = [u[:, 0]]
        for d in range(1, self.num_dims):
            y.append(self.scale * u[:, d] + torch.sin(2 * y[-1]))
        return torch.stack(y, 1)[:, self.order]

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), [N] in nats, x [N, D]."""
        y = x[:, self.order.argsort()]
        bend = torch.sin(2 * y[:, :-1])
        u = torch.cat([y[:, :1], (y[:, 1:] - bend) / self.scale], 1)
        log_prob = -0.5 * (u.square() + math.log(2 * math.pi)).sum(1)
        return log_prob - (self.num_dims - 1) * math.log(self.scale)
