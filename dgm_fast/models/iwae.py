"""Importance-weighted autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgm_fast.functional.latent import ESTIMATORS
from dgm_fast.models._inputs import check_choice, check_count
from dgm_fast.models.vae import VAE


class IWAE(VAE):
    """VAE trained on the importance-weighted bound with K posterior samples.

    The sampled z is the tensor that the decoder, the prior and the bound all consume, as the
    estimator "dreg" requires.

    Args:
        num_dims, latent_dim, **kwargs: as :class:`~dgm_fast.models.VAE`.
        num_samples: K, the default of :meth:`iwae_bound` and :meth:`loss`.
        estimator: "iwae", "stl" or "dreg", how gradients of the bound are formed; see
            :func:`dgm_fast.functional.iwae_bound`.

    Source: Burda et al., "Importance Weighted Autoencoders" (2016).
    """

    def __init__(
        self,
        num_dims: int,
        latent_dim: int,
        *,
        num_samples: int = 5,
        estimator: str = "iwae",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_dims, latent_dim, **kwargs)
        check_count("num_samples", num_samples)
        check_choice("estimator", estimator, ESTIMATORS)
        self.num_samples = num_samples
        self.estimator = estimator

    def iwae_bound(
        self,
        x: Tensor,
        num_samples: int | None = None,
        *,
        estimator: str | None = None,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """As :meth:`VAE.iwae_bound`; None takes the values given to the constructor."""
        return super().iwae_bound(
            x,
            self.num_samples if num_samples is None else num_samples,
            estimator=self.estimator if estimator is None else estimator,
            context=context,
            noise=noise,
            generator=generator,
        )

    def loss(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Negative bound averaged over the batch, a scalar; ``noise`` is [B, K, L]."""
        return -self.iwae_bound(x, context=context, noise=noise, generator=generator).mean()
