"""VAE with a weighted divergence."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dgm_fast.models.vae import VAE


class BetaVAE(VAE):
    r"""VAE trained on :math:`\log p(x \mid z) - \beta\,\mathrm{KL}(q(z \mid x) \,\|\, p(z))`.

    Only :meth:`loss` is weighted; :meth:`elbo`, :meth:`iwae_bound` and :meth:`log_prob` stay bounds
    on and estimates of log p(x).

    Args:
        num_dims, latent_dim, **kwargs: as :class:`~dgm_fast.models.VAE`.
        beta: weight of the divergence, finite and at least 0. 1 is the VAE.

    Source: Higgins et al., "beta-VAE" (2017), equation 4.
    """

    def __init__(self, num_dims: int, latent_dim: int, *, beta: float = 4.0, **kwargs: Any) -> None:
        super().__init__(num_dims, latent_dim, **kwargs)
        if not (math.isfinite(beta) and beta >= 0):
            raise ValueError(f"beta must be finite and at least 0, got {beta}")
        self.beta = float(beta)

    def loss(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Negative weighted bound averaged over the batch: a scalar in nats per sample."""
        return -self._elbo(x, self.beta, context, noise, generator).mean()
