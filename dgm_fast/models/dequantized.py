"""Continuous densities as models of whole levels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.models._inputs import check_count

# Numbers that one chunk of dequantised rows may hold: 4 MiB in float32, and what a network makes of them.
_CHUNK_ELEMENTS = 1 << 20


class Dequantized(nn.Module):
    r"""A density on :math:`[0, 1)^D` as a distribution over the levels 0 to C - 1.

    .. math:: P(x) = \int_{[0,1)^D} p\!\left(\frac{x + u}{C}\right) C^{-D}\, du
        = E_{q(u | x)}\! \left[ \frac{p((x + u) / C)\, C^{-D}}{q(u \mid x)} \right]

    Its logarithm is in nats of the discrete data, so that it compares with that of a model of discrete
    data. Training maximises the bound :math:`E_u \log p((x + u) / C) - D \log C - \log q(u | x)`. u is
    drawn from the global generator, anew in each call.

    Args:
        density: with ``log_prob(x)`` and ``sample(n, generator=)``, which take ``context`` if given.
        num_levels: C.
        dtype: of samples; int64 where None.
        dequantizer: a module x -> (u in [0, 1) like x, log q(u | x) [B]), such as
            :class:`dgm_fast.models.VariationalDequantizer`; it trains with the density. None: u is uniform.

    Data x are levels, [B, D] or [B, ...], of any dtype.

    Source: Theis, van den Oord, Bethge, "A note on the evaluation of generative models" (2016),
    section 3.1; Ho et al., "Flow++" (2019), equation 12, for q; many samples as in Hoogeboom, Cohen,
    Tomczak, "Learning Discrete Distributions by Dequantization" (2020), section 3.
    """

    def __init__(
        self,
        density: nn.Module,
        num_levels: int,
        *,
        dtype: torch.dtype | None = None,
        dequantizer: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_count("num_levels", num_levels, at_least=2)
        self.density: Any = density
        self.dequantizer = dequantizer
        self.num_levels = num_levels
        self.dtype = dtype

    def dequantize(self, x: Tensor) -> Tensor:
        """(x + u) / C in float32."""
        return self._draw(x)[0]

    def _draw(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(x + u) / C, and log q(u | x), None for 0."""
        x = x.float()
        if self.dequantizer is None:
            return (x + torch.rand_like(x)) / self.num_levels, None
        u, log_q = self.dequantizer(x)
        return (x + u) / self.num_levels, log_q

    def log_volume(self, x: Tensor) -> float:
        """D log C: what the density's logarithm exceeds that of the levels by."""
        return math.prod(x.shape[1:]) * math.log(self.num_levels)

    def elbo(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """The bound from one draw of u, [B] in nats."""
        y, log_q = self._draw(x)
        heard = {} if context is None else {"context": context}
        bound = self.density.log_prob(y, **heard) - self.log_volume(x)
        return bound if log_q is None else bound - log_q

    def loss(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """The negative bound averaged over the batch, a scalar."""
        return -self.elbo(x, context=context).mean()

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """The :meth:`loss`, for wrappers that call ``forward`` (data parallelism)."""
        return self.loss(x, context=context)

    @torch.no_grad()
    def log_weights(self, x: Tensor, num_samples: int, *, context: Tensor | None = None) -> Tensor:
        """The bound from each of many draws of u, [B, num_samples]; its log-mean-exp estimates
        log P(x), from below in expectation."""
        check_count("num_samples", num_samples)
        if context is not None:
            context = context.expand(len(x), context.shape[-1])
        size = max(1, _CHUNK_ELEMENTS // max(1, x.numel()))
        parts = []
        for first in range(0, num_samples, size):
            count = min(size, num_samples - first)
            rows = x.repeat_interleave(count, 0)
            heard = None if context is None else context.repeat_interleave(count, 0)
            parts.append(self.elbo(rows, context=heard).unflatten(0, (len(x), count)))
        return torch.cat(parts, 1)

    def log_prob(
        self, x: Tensor, num_samples: int = 1000, *, context: Tensor | None = None
    ) -> Tensor:
        """Estimate of log P(x) from draws of u, [B] without gradients."""
        return functional.log_mean_exp(self.log_weights(x, num_samples, context=context), 1)

    def bits_per_dim(
        self, x: Tensor, num_samples: int = 1, *, context: Tensor | None = None
    ) -> Tensor:
        """-log P(x) / (D log 2) from so many draws, [B] in bits per entry; one draw gives the bound."""
        log_prob = self.log_prob(x, num_samples, context=context)
        return -log_prob / (math.prod(x.shape[1:]) * math.log(2.0))

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None, **options: Any) -> Tensor:
        """n draws of levels, of the density's shape; what it puts outside of [0, 1) goes to the ends.

        Other options (``context``, ``temperature``) are the density's.
        """
        drawn = self.density.sample(n, generator=generator, **options)
        level = (drawn * self.num_levels).floor()
        return level.clamp(0, self.num_levels - 1).to(self.dtype or torch.int64)
