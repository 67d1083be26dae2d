"""Variational autoencoder with a mixture of Gaussians as its prior."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.models._inputs import check_count, check_noise, flatten_data
from dgm_fast.models._latent_model import PriorNoise
from dgm_fast.models._mixture import compute_dtype, draw_component, in_chunks
from dgm_fast.models.iwae import IWAE


class GMVAE(IWAE):
    r"""VAE whose prior is a learned mixture of diagonal Gaussians.

    .. math:: p(z) = \sum_k w_k\, N(z; \mu_k, \mathrm{diag}\, e^{\lambda_k})

    The divergence from the posterior has no closed form: every bound estimates it from the posterior
    samples, with log p(z) in one pass that forms nothing of size [B, K, L]
    (:func:`dgm_fast.functional.gaussian_mixture_log_prob`). The estimators "stl" and "dreg" change the
    encoder's gradients as for any model; the prior's parameters belong to the generative model and get
    the gradient of the bound, the normalised weights times :math:`\nabla \log p(z)`.

    The prior starts near N(0, I), as in the course: means are standard normals over
    :math:`\sqrt{K L}`, so that components differ by little but differ. Log-variances start at 0 (the
    course starts from softplus(0) = 0.69).

    Args:
        num_dims, latent_dim, **kwargs: as :class:`~dgm_fast.models.VAE`.
        num_components: K of the prior.
        learn_weights: learn the weights (``prior_logits``, from equal ones) instead of keeping them
            equal.
        num_samples: posterior samples per row of :meth:`loss` and the default of :meth:`iwae_bound`.
            With 1 the loss is the Monte-Carlo ELBO, as in the course.
        estimator: as :class:`~dgm_fast.models.IWAE`. "iwae" is the course's. "dreg", with one sample the
            same as "stl", has the same expectation without the score of q, whose noise an analytic
            divergence does not have either: with "iwae" and one sample small data sets tend to end in
            a posterior that ignores x.

    The parameters ``prior_means`` and ``prior_log_vars`` are [K, L], ``prior_logits`` is [K] or None.

    Source: Stanford CS236, homework 2; Dilokthanakul et al., "Deep Unsupervised Clustering with
    Gaussian Mixture Variational Autoencoders" (2016) for clusters; assignments as in Jiang et al.,
    "Variational Deep Embedding" (2017), equation 16.
    """

    standard_normal_prior = False
    prior_logits: nn.Parameter | None

    def __init__(
        self,
        num_dims: int,
        latent_dim: int,
        *,
        num_components: int = 500,
        learn_weights: bool = False,
        num_samples: int = 1,
        estimator: str = "dreg",
        **kwargs: Any,
    ) -> None:
        check_count("num_components", num_components)
        super().__init__(
            num_dims, latent_dim, num_samples=num_samples, estimator=estimator, **kwargs
        )
        self.num_components = num_components
        scale = 1.0 / math.sqrt(num_components * latent_dim)
        self.prior_means = nn.Parameter(scale * torch.randn(num_components, latent_dim))
        self.prior_log_vars = nn.Parameter(torch.zeros(num_components, latent_dim))
        logits = nn.Parameter(torch.zeros(num_components)) if learn_weights else None
        self.register_parameter("prior_logits", logits)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) of the mixture for latents [..., L] -> [...]."""
        return functional.gaussian_mixture_log_prob(
            z, self.prior_means, self.prior_log_vars, self.prior_logits
        )

    def sample_prior(
        self,
        n: int,
        *,
        noise: PriorNoise | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n draws z ~ p(z), [n, L].

        Args:
            n: how many.
            noise: the pair (uniforms in [0, 1) [n], standard normals [n, L]): a component is drawn
                by inverting the cumulative weights, z = mean + deviation * normals. In
                :meth:`sample` it is the first entry of its pair, ``((u, eps), noise of x)``.
            generator: source of the noise; the uniforms are drawn first.
        """
        check_count("n", n)
        like = self._anchor
        dtype = compute_dtype(like)
        if noise is None:
            uniforms = torch.rand(n, dtype=dtype, device=like.device, generator=generator)
            shape = (n, self.latent_dim)
            eps = torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)
        else:
            if not isinstance(noise, tuple | list) or len(noise) != 2:
                raise TypeError(
                    "noise of a mixture prior must be a pair (uniforms [n], standard normals [n, L])"
                )
            uniforms = check_noise(noise[0], (n,), like, "noise of the component")
            eps = check_noise(noise[1], (n, self.latent_dim), like, "noise of z").to(like.dtype)
        log_weights = self.prior_means.new_zeros(self.num_components)
        if self.prior_logits is not None:
            log_weights = self.prior_logits.detach()
        component = draw_component(log_weights.to(dtype), uniforms)
        mean, log_var = self.prior_means[component], self.prior_log_vars[component]
        return mean + torch.exp(0.5 * log_var) * eps

    @torch.no_grad()
    def responsibilities(
        self,
        x: Tensor,
        num_samples: int | None = None,
        *,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""Probability of each component given x, [B, K], without gradients.

        .. math:: q(k \mid x) = E_{q(z \mid x)}\, p(k \mid z), \qquad
            p(k \mid z) \propto w_k\, N(z; \mu_k, \mathrm{diag}\, e^{\lambda_k})

        Args:
            x: data.
            num_samples: posterior samples that estimate the expectation; None takes z at the
                posterior mean.
            context: for conditional models.
            noise: standard normals [B, num_samples, L] of the posterior samples.
            generator: source of the noise.
        """
        if num_samples is None and noise is not None:
            raise ValueError("noise belongs to posterior samples, but num_samples is None")
        x = flatten_data(x, self.num_dims, self._anchor.device)
        mean, log_var = self._encode(x, self._context(context, x.shape[0]))
        if num_samples is None:
            z = mean.unsqueeze(1)
        else:
            check_count("num_samples", num_samples)
            z = self._posterior_sample(mean, log_var, num_samples, noise, generator)

        def average(z: Tensor) -> Tensor:  # [b, S, L] -> [b, K]
            joint = functional.gaussian_log_prob(
                z.unsqueeze(2),
                self.prior_means.view(1, 1, self.num_components, -1),
                self.prior_log_vars.view(1, 1, self.num_components, -1),
            )
            if self.prior_logits is not None:
                joint = joint + self.prior_logits
            return torch.softmax(joint, -1).mean(1)

        return in_chunks(average, z, z.shape[1] * self.num_components)

    def predict_component(
        self,
        x: Tensor,
        num_samples: int | None = None,
        *,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The most probable component of each row, int64 [B]; see :meth:`responsibilities`."""
        probabilities = self.responsibilities(
            x, num_samples, context=context, noise=noise, generator=generator
        )
        return probabilities.argmax(-1)
