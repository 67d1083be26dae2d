"""Distributions of the noise of a flow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dgm_fast import functional


class BaseDistribution(nn.Module):
    """Independent noise of a given shape without parameters.

    Args:
        shape: of a sample: an int for vectors, or (channels, height, width).
    """

    _anchor: Tensor

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape must hold positive sizes, got {self.shape}")
        # Follows the module through .to(): dtype and device of the samples.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), [B] in nats, z [B, *shape]."""
        raise NotImplementedError

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """n draws, [n, *shape]."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return str(self.shape)


class StandardNormal(BaseDistribution):
    """Independent standard normals."""

    def log_prob(self, z: Tensor) -> Tensor:
        return functional.gaussian_log_prob(z.flatten(1), z.new_zeros(()))

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        like = self._anchor
        return torch.randn(
            (n, *self.shape), dtype=like.dtype, device=like.device, generator=generator
        )


class StandardUniform(BaseDistribution):
    """Independent uniforms on [0, 1]: 0 inside, -inf outside."""

    def log_prob(self, z: Tensor) -> Tensor:
        flat = z.flatten(1)
        inside = ((flat >= 0) & (flat <= 1)).all(1)
        dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
        return torch.where(inside, 0.0, -math.inf).to(dtype)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        like = self._anchor
        return torch.rand(
            (n, *self.shape), dtype=like.dtype, device=like.device, generator=generator
        )
