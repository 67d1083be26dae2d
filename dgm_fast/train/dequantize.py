"""Continuous densities as models of whole levels, and what training asks of densities."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.data import DataError, Dataset

# Numbers that one chunk of dequantised rows may hold: 16 MiB in float32.
_CHUNK_ELEMENTS = 1 << 22


class Dequantized(nn.Module):
    r"""A density on :math:`[0, 1)^D` as a distribution over the levels 0 to C - 1.

    .. math:: P(x) = \int_{[0,1)^D} p\!\left(\frac{x + u}{C}\right) C^{-D}\, du

    Its logarithm is in nats of the discrete data, so that it compares with that of a model of discrete
    data. Training maximises the bound :math:`E_u \log p((x + u) / C) - D \log C`. u is uniform
    and drawn from the global generator, anew in each call.

    Args:
        density: with ``log_prob(x)`` and ``sample(n, generator=)``.
        num_levels: C.
        dtype: of samples; int64 where None.

    Source: Theis, van den Oord, Bethge, "A note on the evaluation of generative models" (2016),
    section 3.1; many samples as in Hoogeboom, Cohen, Tomczak, "Learning Discrete Distributions by
    Dequantization" (2020), section 3.
    """

    def __init__(
        self, density: nn.Module, num_levels: int, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if num_levels < 2:
            raise ValueError(f"num_levels must be at least 2, got {num_levels}")
        self.density: Any = density
        self.num_levels = num_levels
        self.dtype = dtype

    def dequantize(self, x: Tensor) -> Tensor:
        """(x + u) / C in float32."""
        x = x.float()
        return (x + torch.rand_like(x)) / self.num_levels

    def log_volume(self, x: Tensor) -> float:
        """D log C: what the density's logarithm exceeds that of the levels by."""
        return math.prod(x.shape[1:]) * math.log(self.num_levels)

    def elbo(self, x: Tensor) -> Tensor:
        """The bound from one draw of u, [B] in nats."""
        return self.density.log_prob(self.dequantize(x)) - self.log_volume(x)

    def loss(self, x: Tensor) -> Tensor:
        """The negative bound averaged over the batch, a scalar."""
        return -self.elbo(x).mean()

    @torch.no_grad()
    def log_weights(self, x: Tensor, num_samples: int) -> Tensor:
        """The bound from each of many draws of u, [B, num_samples]; its log-mean-exp estimates
        log P(x), from below in expectation."""
        size = max(1, _CHUNK_ELEMENTS // max(1, x.numel()))
        parts = []
        for first in range(0, num_samples, size):
            count = min(size, num_samples - first)
            rows = x.unsqueeze(1).expand(len(x), count, *x.shape[1:]).flatten(0, 1)
            parts.append(self.elbo(rows).unflatten(0, (len(x), count)))
        return torch.cat(parts, 1)

    def log_prob(self, x: Tensor, num_samples: int = 1000) -> Tensor:
        """Estimate of log P(x) from draws of u, [B] without gradients."""
        return functional.log_mean_exp(self.log_weights(x, num_samples), 1)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """n draws of levels, [n, D]; what the density puts outside of [0, 1) goes to the ends."""
        level = (self.density.sample(n, generator=generator) * self.num_levels).floor()
        return level.clamp(0, self.num_levels - 1).to(self.dtype or torch.int64)


def check_binary(dataset: Dataset, kind: str) -> None:
    """Raise if a split of a binary data set holds probabilities that no batch turns into bits.

    Raises:
        DataError: naming the split and what ``kind`` needs.
    """
    for split, rows in dataset.splits().items():
        drawn = dataset.dynamic and split == "train"
        if rows.is_floating_point() and not drawn and bool((rows != rows.round()).any()):
            raise DataError(
                f"{dataset.name}: {split} holds probabilities; {kind} needs binary rows, grey levels "
                "(--likelihood categorical) or real values (--likelihood gaussian)"
            )


def density_levels(dataset: Dataset, kind: str) -> int | None:
    """Levels of discrete data, None for real values.

    Raises:
        DataError: if a density has no meaningful likelihood on the data.
    """
    if dataset.likelihood == "categorical":
        return dataset.num_classes
    if dataset.likelihood == "bernoulli":
        check_binary(dataset, kind)
        return 2
    constant = (dataset.train == dataset.train[0]).all(0)
    if bool(constant.any()):
        raise DataError(
            f"{dataset.name}: {int(constant.sum())} of {dataset.num_dims} dimensions have one value in "
            "all training rows: as real values their density has no bound. Grey levels are "
            "dequantised if they stay levels (without --likelihood gaussian); otherwise leave these "
            "columns out"
        )
    return None


def bound_figures(model: Any, x: Tensor) -> dict[str, Tensor]:
    """Of a density, or of the bound where it is dequantised."""
    bound = model.elbo(x) if isinstance(model, Dequantized) else model.log_prob(x)
    return {"nll": -bound}


def sampled_figures(model: Any, x: Tensor, num_samples: int) -> dict[str, Tensor]:
    if not isinstance(model, Dequantized):
        return {"nll": -model.log_prob(x)}
    log_weights = model.log_weights(x, num_samples)
    return {
        "nll": -functional.log_mean_exp(log_weights, 1),
        "negative_elbo": -log_weights.mean(1),
    }
