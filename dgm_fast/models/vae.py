"""Variational autoencoder."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dgm_fast import functional
from dgm_fast.functional.latent import joint_bound
from dgm_fast.models._inputs import check_count, check_noise, flatten_data
from dgm_fast.models._latent_model import LatentVariableModel

# Numbers per decoder layer that one chunk of `log_prob` may hold: 16 MiB in float32.
_CHUNK_ELEMENTS = 1 << 22


class VAE(LatentVariableModel):
    r"""Variational autoencoder with a diagonal Gaussian posterior and a standard normal prior.

    .. math:: p(x) = \int p(x \mid z)\, N(z; 0, I)\, dz, \qquad q(z \mid x) = N(\mu(x), \sigma^2(x))

    With ``context_dim`` it is the conditional model p(x | c): the context is concatenated to the
    inputs of encoder and decoder, and every method takes ``context`` [B, context_dim] (or
    [context_dim], shared by the batch).

    Data x is bool, integer or floating point, [B, D] or [B, *image_shape] with D entries per
    sample. The encoder sees it in the model's dtype, class indices divided by C - 1 to lie in
    [0, 1]. All results are per sample and in nats unless the method says otherwise.

    Every method that draws takes ``generator``; those that can be repeated exactly also take
    ``noise``, which replaces the draws (``generator`` is then not used).

    Args:
        num_dims: D, entries per data sample.
        latent_dim: L.
        hidden_sizes: hidden widths of the default encoder; the default decoder mirrors them.
        encoder: module from [B, D (+ context_dim)] to [B, 2 L] (means, then log-variances) or to a
            pair (mean, log_var) of [B, L]. None builds an :class:`~dgm_fast.nn.MLP`. Log-variances
            are used as they come; a network that needs a clamp applies it itself.
        decoder: module from [N, L (+ context_dim)], N = B or B K, to the parameters of p(x | z),
            flat or with trailing image dimensions. "bernoulli": logits [N, D]. "gaussian": means
            [N, D], with ``decoder_variance="full"`` [N, 2 D] (means, then log-variances) or a pair.
            "categorical": logits [N, C, D] or [N, C D]. None builds an MLP.
        likelihood: "bernoulli" (x in [0, 1]), "gaussian", or "categorical" (x in 0 .. C - 1).
        num_classes: C, for the categorical likelihood.
        context_dim: size of the context of a conditional model.
        decoder_variance: of the Gaussian likelihood: "unit", "shared" (one learned scalar
            log-variance, starting at 0) or "full" (the decoder gives one per entry).
        activation: makes the activations of the default networks.
        fused_head: compute log p(x | z) from the inputs of the decoder's last linear layer, by
            :func:`dgm_fast.functional.linear_bernoulli_log_prob` or
            :func:`~dgm_fast.functional.linear_categorical_log_prob`: the same numbers, but logits
            [B, K, D] (times C) and their gradients are not stored once they pass 4 MiB, for one more
            matrix product in backward. It pays where they decide the memory: many samples, dimensions
            or classes behind a narrow last layer. With fewer decoded rows than inputs of that layer its
            weights' gradient outweighs the logits, and it only costs time. Needs the default decoder, an
            ``nn.Sequential`` whose last module is an ``nn.Linear``, or a module whose forward is
            ``output(hidden(z))`` with an ``nn.Linear`` ``output``; not for the Gaussian likelihood.
            Parameters, :meth:`decode` and everything that generates are as without it.

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    To build a model with another prior, see the base class's ``log_prior`` and ``sample_prior``.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes" (2014). Conditional form: Sohn,
    Lee, Yan, "Learning Structured Output Representation using Deep Conditional Generative Models"
    (2015).
    """

    def elbo(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Evidence lower bound from one posterior sample and the analytic divergence, [B].

        Where ``standard_normal_prior`` is False, the divergence is estimated from the same sample.

        Args:
            x: data.
            context: for conditional models.
            noise: standard normals [B, L] of the posterior sample.
            generator: source of the noise.
        """
        return self._elbo(x, 1.0, context, noise, generator)

    def iwae_bound(
        self,
        x: Tensor,
        num_samples: int,
        *,
        estimator: str = "iwae",
        context: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Importance-weighted bound from K posterior samples, [B].

        Args:
            x: data.
            num_samples: K.
            estimator: how gradients are formed, "iwae", "stl" or "dreg"; see
                :func:`dgm_fast.functional.iwae_bound`.
            context: for conditional models.
            noise: standard normals [B, K, L] of the posterior samples.
            generator: source of the noise.
        """
        check_count("num_samples", num_samples)
        x = flatten_data(x, self.num_dims, self._anchor.device)
        context = self._context(context, x.shape[0])
        mean, log_var = self._encode(x, context)
        target = self._target(x)
        return self._bound(target, mean, log_var, num_samples, estimator, context, noise, generator)

    @torch.no_grad()
    def log_prob(
        self,
        x: Tensor,
        num_samples: int = 5000,
        *,
        chunk_size: int | None = None,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Importance-sampled estimate of log p(x), [B], without gradients.

        It is the importance-weighted bound with many samples, so it lies below log p(x) in
        expectation and approaches it as ``num_samples`` grows. x is encoded once; the samples are
        decoded ``chunk_size`` at a time and combined in a running log-sum-exp, so that memory does
        not grow with their number.

        Args:
            x: data.
            num_samples: how many posterior samples per row.
            chunk_size: samples per row and chunk. None keeps the widest decoder layer of a chunk
                near 16 MiB in float32. Draws (not their distribution) depend on it; with ``noise``
                the result does not, up to rounding.
            context: for conditional models.
            noise: standard normals [B, num_samples, L].
            generator: source of the noise.
        """
        check_count("num_samples", num_samples)
        x = flatten_data(x, self.num_dims, self._anchor.device)
        batch = x.shape[0]
        if chunk_size is None:
            chunk_size = max(1, _CHUNK_ELEMENTS // max(1, batch * self._decoder_width))
        check_count("chunk_size", chunk_size)
        context = self._context(context, batch)
        mean, log_var = self._encode(x, context)
        if noise is not None:
            noise = check_noise(noise, (batch, num_samples, self.latent_dim), mean)
        target = self._target(x)
        total: Tensor | None = None
        for first in range(0, num_samples, chunk_size):
            count = min(chunk_size, num_samples - first)
            part = None if noise is None else noise[:, first : first + count]
            bound = self._bound(target, mean, log_var, count, "iwae", context, part, generator)
            # float64: hundreds of chunks would each round a float32 sum of magnitude 100 nats.
            log_sum = bound.double() + math.log(count)
            total = log_sum if total is None else torch.logaddexp(total, log_sum)
        assert total is not None
        return (total - math.log(num_samples)).to(bound.dtype)

    def bits_per_dim(self, x: Tensor, num_samples: int = 5000, **kwargs: Any) -> Tensor:
        """-log p(x) / (D log 2), [B] in bits per dimension; arguments as :meth:`log_prob`."""
        return self.log_prob(x, num_samples, **kwargs) / (-self.num_dims * math.log(2.0))

    def loss(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Training loss: the negative bound averaged over the batch, a scalar in nats."""
        return -self.elbo(x, context=context, noise=noise, generator=generator).mean()

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The :meth:`loss`, for wrappers that call ``forward`` (data parallelism)."""
        return self.loss(x, **kwargs)

    def _elbo(
        self,
        x: Tensor,
        beta: float,
        context: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """log p(x | z) - beta KL(q(z | x) || p(z))."""
        x = flatten_data(x, self.num_dims, self._anchor.device)
        context = self._context(context, x.shape[0])
        mean, log_var = self._encode(x, context)
        z = self._posterior_sample(mean, log_var, None, noise, generator)
        target = self._target(x)
        if self.standard_normal_prior and not self.fused_head:
            out = self._decode(z, context)
            return functional.elbo(
                target, out, mean, log_var, likelihood=self.likelihood, beta=beta
            )
        if self.standard_normal_prior:
            divergence = functional.gaussian_kl(mean, log_var)
        else:
            divergence = functional.gaussian_log_prob(z, mean, log_var) - self.log_prior(z)
        return self._log_likelihood(target, z, context) - beta * divergence

    def _bound(
        self,
        target: Tensor,
        mean: Tensor,
        log_var: Tensor,
        num_samples: int,
        estimator: str,
        context: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        # One tensor z goes to the decoder, the prior and the bound: "dreg" reweights what flows
        # back into it, and a copy on the way to any of them would escape that.
        z = self._posterior_sample(mean, log_var, num_samples, noise, generator)  # [B, K, L]
        if self.fused_head:
            log_joint = self._log_likelihood(target, z, context) + self.log_prior(z)
            return joint_bound(log_joint, z, mean, log_var, estimator=estimator)
        out = self._decode(z, context)
        prior = None if self.standard_normal_prior else self.log_prior(z)
        return functional.iwae_bound(
            target,
            out,
            z,
            mean,
            log_var,
            likelihood=self.likelihood,
            prior=prior,
            estimator=estimator,
        )
