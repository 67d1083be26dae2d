"""Space to depth: blocks of pixels become channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dgm_fast.nn.transform import Transform, zero_log_det


class Squeeze(Transform):
    """Blocks of ``factor`` by ``factor`` pixels as channels: [B, C, H, W] -> [B, C f f, H / f, W / f].

    The pixels of a block are neighbouring channels. The log-determinant is 0.

    Args:
        factor: f.

    Raises:
        ValueError: if height or width is no multiple of it.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), section 3.6.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor must be at least 1, got {factor}")
        self.factor = factor

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.output_shape(x.shape[1:])
        return F.pixel_unshuffle(x, self.factor), zero_log_det(x)

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_shuffle(z, self.factor), zero_log_det(z)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        f = self.factor
        if len(shape) != 3 or shape[1] % f or shape[2] % f:
            raise ValueError(
                f"Squeeze needs images (channels, height, width) whose height and width are multiples of "
                f"{f}, got {tuple(shape)}"
            )
        return shape[0] * f * f, shape[1] // f, shape[2] // f

    def extra_repr(self) -> str:
        return f"factor={self.factor}"
