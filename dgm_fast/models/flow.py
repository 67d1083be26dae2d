"""A normalizing flow: transforms of data into noise, and the density that they make."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dgm_fast.models._inputs import check_context, check_count, check_noise, flatten_data
from dgm_fast.nn import BaseDistribution, Compose, Transform


class Flow(nn.Module):
    r"""Density of data that invertible transforms turn into noise.

    .. math:: \log p(x) = \log p_{\text{base}}(f(x)) + \log\left|\det \frac{\partial f}{\partial x}\right|

    Data x are [B, *base.shape], or [B, D] with as many entries a sample. All results are per sample and in
    nats unless the method says otherwise.

    Args:
        transforms: a :class:`dgm_fast.nn.Transform`, or several, the one nearest to the data first.
        base: distribution of the noise z = f(x), of the shape of a sample.
        context_dim: size of the context of a conditional density p(x | c).

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: Rezende and Mohamed, "Variational Inference with Normalizing Flows" (2015), equation 5.
    """

    def __init__(
        self,
        transforms: Transform | Iterable[Transform],
        base: BaseDistribution,
        *,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.transform = transforms if isinstance(transforms, Transform) else Compose(transforms)
        self.base = base
        if context_dim is not None:
            check_count("context_dim", context_dim)
        self.context_dim = context_dim
        self.num_dims = math.prod(base.shape)

    def log_prob(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """log p(x), [B], float32 (float64 for a float64 model).

        Args:
            x: real-valued data.
            context: [B, context_dim] or [context_dim], for conditional flows.

        Raises:
            TypeError, ValueError: if an argument does not fit; the message names it.
        """
        z, log_abs_det = self.encode(x, context=context)
        return self.base.log_prob(z) + log_abs_det

    def encode(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The noise z [B, *base.shape] of x, and the log-determinant [B]."""
        x = self._data(x)
        return self.transform(x, context=self._context(context, len(x)))

    def decode(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The data x [B, *base.shape] of z, and the log-determinant of that map, [B]."""
        z = check_noise(z, (len(z), *self.base.shape), self._like, "z")
        return self.transform.inverse(z, context=self._context(context, len(z)))

    def nll(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """-log p(x), [B] in nats."""
        return -self.log_prob(x, context=context)

    def bits_per_dim(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """-log p(x) / (D log 2), [B] in bits per entry."""
        return self.nll(x, context=context) / (self.num_dims * math.log(2.0))

    def loss(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Negative log-likelihood averaged over the batch, a scalar in nats."""
        return self.nll(x, context=context).mean()

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """The :meth:`loss`, for wrappers that call ``forward`` (data parallelism)."""
        return self.loss(x, context=context)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """n draws x ~ p(x), [n, *base.shape], without gradients; arguments as for :meth:`rsample`."""
        return self.rsample(
            n, context=context, noise=noise, generator=generator, temperature=temperature
        )

    def rsample(
        self,
        n: int,
        *,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """n draws, [n, *base.shape], differentiable in the parameters (and in ``noise``).

        Args:
            n: how many.
            context: [n, context_dim] or [context_dim], for conditional flows.
            noise: z [n, *base.shape] in place of the base's draws.
            generator: source of the noise.
            temperature: factor of the noise. Below 1, with a normal base, samples are more typical and less
                varied (Kingma and Dhariwal, "Glow" (2018), section 6).

        Raises:
            TypeError, ValueError: if an argument does not fit; the message names it.
        """
        check_count("n", n)
        if not temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        if noise is None:
            noise = self.base.sample(n, generator=generator)
        else:
            noise = check_noise(noise, (n, *self.base.shape), self._like)
        if temperature != 1:
            noise = noise * temperature
        x, _ = self.transform.inverse(noise, context=self._context(context, n))
        return x

    @property
    def _like(self) -> Tensor:
        return self.base._anchor

    def _data(self, x: Tensor) -> Tensor:
        """x as [B, *base.shape] in the model's dtype."""
        flat = flatten_data(x, self.num_dims, self._like.device).to(self._like.dtype)
        return flat.reshape(len(flat), *self.base.shape)

    def _context(self, context: Tensor | None, batch: int) -> Tensor | None:
        return check_context(context, self.context_dim, batch, self._like)
