"""Reordering of entries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgm_fast.nn.transform import Transform, zero_log_det


class Permutation(Transform):
    """z_i = x_{permutation[i]} along dimension 1: entries of vectors, channels of images.

    Args:
        permutation: integers [D]; ``range(D)[::-1]`` reverses, ``torch.randperm(D)`` shuffles. Part of
            the ``state_dict``.

    Raises:
        TypeError, ValueError: if it is no permutation.
    """

    permutation: Tensor

    def __init__(self, permutation: Tensor | Sequence[int]) -> None:
        super().__init__()
        values = torch.as_tensor(permutation)
        if values.dtype.is_floating_point or values.dtype == torch.bool:
            raise TypeError(f"permutation must hold integers, got {values.dtype}")
        if values.ndim != 1 or not torch.equal(values.sort().values, torch.arange(len(values))):
            raise ValueError(
                f"permutation must hold every index from 0 to {values.numel() - 1} once"
            )
        self.register_buffer("permutation", values.to(torch.int64, copy=True))

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.index_select(1, self.permutation), zero_log_det(x)

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z.index_select(1, self.permutation.argsort()), zero_log_det(z)
