"""Base of the latent-variable models: networks, prior, observation model, generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.models._inputs import (
    check_choice,
    check_context,
    check_count,
    check_noise,
    flatten_data,
)
from dgm_fast.models._interpolate import MODES, interpolate_latents
from dgm_fast.models._linear_head import check_decoder, split_decoder
from dgm_fast.models._observation import FUSED_HEADS, NO_FUSED_HEAD, DecoderOut, make_observation
from dgm_fast.nn import MLP

# Of `sample_prior`: standard normals, and for mixtures (uniforms of the component, normals).
PriorNoise = Tensor | tuple[Tensor, Tensor]


class LatentVariableModel(nn.Module):
    """p(z) p(x | z) with a diagonal Gaussian posterior q(z | x); arguments as :class:`VAE`.

    Subclasses change the prior by overriding :meth:`log_prior` and :meth:`sample_prior` and setting
    ``standard_normal_prior`` to False; bounds then estimate the divergence from the samples.
    """

    standard_normal_prior = True
    _anchor: Tensor

    def __init__(
        self,
        num_dims: int,
        latent_dim: int,
        *,
        hidden_sizes: Sequence[int] = (300, 300),
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        likelihood: str = "bernoulli",
        num_classes: int | None = None,
        context_dim: int | None = None,
        decoder_variance: str = "unit",
        activation: Callable[[], nn.Module] = nn.ReLU,
        fused_head: bool = False,
    ) -> None:
        super().__init__()
        check_count("num_dims", num_dims)
        check_count("latent_dim", latent_dim)
        if context_dim is not None:
            check_count("context_dim", context_dim)
        self.num_dims = num_dims
        self.latent_dim = latent_dim
        self.context_dim = context_dim
        self.likelihood = likelihood
        self.observation = make_observation(likelihood, num_dims, num_classes, decoder_variance)
        self.num_classes = num_classes
        hidden_sizes = tuple(hidden_sizes)
        extra = context_dim or 0
        if encoder is None:
            encoder = MLP(num_dims + extra, hidden_sizes, 2 * latent_dim, activation=activation)
        self.encoder = encoder
        features = self.observation.out_features
        self._decoder_width = features
        if decoder is None:
            widths = hidden_sizes[::-1]
            self._decoder_width = max(features, *widths, 1)
            decoder = MLP(latent_dim + extra, widths, features, activation=activation)
        self.decoder = decoder
        self.fused_head = fused_head
        if fused_head:
            if likelihood not in FUSED_HEADS:
                raise ValueError(NO_FUSED_HEAD.format(likelihood=likelihood))
            check_decoder(decoder, latent_dim + extra, features)
        # Follows the module through .to(): the dtype and device that inputs are brought to, also
        # where the networks have no parameters.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    def encode(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance, [B, L] each."""
        x = flatten_data(x, self.num_dims, self._anchor.device)
        return self._encode(x, self._context(context, x.shape[0]))

    def decode(self, z: Tensor, *, context: Tensor | None = None) -> DecoderOut:
        """Decoder outputs in the layout that ``dgm_fast.functional`` takes.

        Args:
            z: latents [B, L] or, for K samples per row, [B, K, L].
            context: [B, context_dim] or [context_dim].

        Returns:
            "bernoulli": logits [B, (K,) D]. "gaussian": mean [B, (K,) D], or with learned variance
            the pair (mean, log_var). "categorical": logits [B, (K,) C, D].
        """
        self._check_latents(z)
        return self._decode(z, self._context(context, z.shape[0]))

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) for latents [..., L] -> [...]."""
        return functional.gaussian_log_prob(z, z.new_zeros(()))

    def sample_prior(
        self,
        n: int,
        *,
        noise: PriorNoise | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n draws z ~ p(z), [n, L]; ``noise``: standard normals [n, L].

        A prior that needs more noise takes a tuple of tensors, and says so.
        """
        check_count("n", n)
        shape, like = (n, self.latent_dim), self._anchor
        if noise is not None:
            return check_noise(noise, shape, like).to(like.dtype)
        return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)

    def log_likelihood(self, x: Tensor, z: Tensor, *, context: Tensor | None = None) -> Tensor:
        """log p(x | z) for x [B, D] and z [B, L] -> [B], or z [B, K, L] -> [B, K]."""
        x = flatten_data(x, self.num_dims, self._anchor.device)
        self._check_latents(z)
        if z.shape[0] != x.shape[0]:
            raise ValueError(f"z has {z.shape[0]} rows, but x has {x.shape[0]}")
        return self._log_likelihood(self._target(x), z, self._context(context, z.shape[0]))

    def sample(
        self,
        n: int,
        *,
        conditioned_on: tuple[Tensor, Tensor] | None = None,
        context: Tensor | None = None,
        noise: tuple[PriorNoise, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n draws x ~ p(x), [n, D], without gradients.

        Args:
            n: how many.
            conditioned_on: not available here: p(missing | given) has no closed form.
            context: [n, context_dim] or [context_dim], for conditional models.
            noise: the pair (noise of :meth:`sample_prior`, noise of x [n, D]); the latter uniforms
                in [0, 1) for Bernoulli and categorical likelihoods, standard normals for Gaussian
                ones.
            generator: source of the noise.

        Returns:
            Bernoulli: 0 or 1 in the model's dtype. Gaussian: floating point. Categorical: int64.

        Raises:
            ValueError: for ``conditioned_on``, or if shapes do not match.
        """
        if conditioned_on is not None:
            raise ValueError(
                "conditioned_on is not supported by latent-variable models: p(missing | given) has "
                "no closed form; for conditional generation build the model with context_dim"
            )
        if noise is not None and (not isinstance(noise, tuple | list) or len(noise) != 2):
            raise TypeError("noise must be a pair (noise of z, noise of x)")
        z_noise, x_noise = (None, None) if noise is None else noise
        with torch.no_grad():
            z = self.sample_prior(n, noise=z_noise, generator=generator)
            out = self._decode(z, self._context(context, n))
            shape = (n, self.num_dims)
            if x_noise is None:
                x_noise = self.observation.draw_noise(shape, self._anchor, generator)
            else:
                x_noise = check_noise(x_noise, shape, self._anchor, "noise of x")
            return self.observation.sample(out, x_noise)

    def reconstruct(
        self,
        x: Tensor,
        *,
        stochastic: bool = False,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Decode the posterior mean of x, in the shape of x.

        Args:
            x: data.
            stochastic: decode one posterior sample instead of the mean.
            context: for conditional models.
            noise: standard normals [B, L] of the posterior sample.
            generator: source of the noise.

        Returns:
            Bernoulli: probabilities. Gaussian: means. Categorical: the most likely classes, int64.
        """
        flat = flatten_data(x, self.num_dims, self._anchor.device)
        context = self._context(context, flat.shape[0])
        z, log_var = self._encode(flat, context)
        if stochastic:
            z = self._posterior_sample(z, log_var, None, noise, generator)
        return self.observation.mean(self._decode(z, context)).reshape(x.shape)

    def interpolate(
        self,
        x1: Tensor,
        x2: Tensor,
        steps: int,
        mode: str = "linear",
        *,
        context: Tensor | None = None,
    ) -> Tensor:
        """Decode a path between the posterior means of x1 and x2.

        Args:
            x1, x2: data of the same shape.
            steps: points on the path, both ends included; at least 2.
            mode: "linear" or "spherical" in latent space.
            context: for conditional models; held fixed along the path.

        Returns:
            [B, steps, ...] with the data shape of x1, of the kind that :meth:`reconstruct` gives.
        """
        check_count("steps", steps, at_least=2)
        check_choice("mode", mode, MODES)
        device = self._anchor.device
        flat1 = flatten_data(x1, self.num_dims, device, "x1")
        flat2 = flatten_data(x2, self.num_dims, device, "x2")
        if x1.shape != x2.shape:
            raise ValueError(
                f"x2 must have the shape of x1, {tuple(x1.shape)}, got {tuple(x2.shape)}"
            )
        context = self._context(context, flat1.shape[0])
        z1, z2 = self._encode(flat1, context)[0], self._encode(flat2, context)[0]
        out = self._decode(interpolate_latents(z1, z2, steps, mode), context)
        return self.observation.mean(out).reshape(x1.shape[0], steps, *x1.shape[1:])

    @torch.no_grad()
    def init_output_bias(self, data_mean: Tensor) -> None:
        """Set the default decoder's output bias so that it starts from the data's marginals.

        Args:
            data_mean: with D entries, the mean of the data ("bernoulli", "gaussian"), or the class
                frequencies [C, D] ("categorical"). Frequencies are clamped away from 0 (and 1) by
                1e-3.

        Raises:
            ValueError: if the shape does not match.
            TypeError: if the decoder was supplied by the user.

        Source: Burda et al., "Importance Weighted Autoencoders" (2016), released code.
        """
        if not isinstance(self.decoder, MLP):
            raise TypeError(
                "init_output_bias needs the default decoder, got "
                f"{type(self.decoder).__name__}; set its bias directly"
            )
        self.decoder.output.bias.copy_(self.observation.output_bias(data_mean))

    def _encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        inputs = self.observation.encoder_input(x, self._anchor.dtype)
        if context is not None:
            inputs = torch.cat([inputs, context], -1)
        out = self.encoder(inputs)
        if isinstance(out, Tensor):
            if out.shape != (x.shape[0], 2 * self.latent_dim):
                raise ValueError(
                    f"encoder must return [B, 2 L] = {(x.shape[0], 2 * self.latent_dim)} or a pair "
                    f"(mean, log_var), got {tuple(out.shape)}"
                )
            mean, log_var = out.chunk(2, -1)
            return mean, log_var
        if not isinstance(out, tuple | list) or len(out) != 2:
            raise TypeError(
                f"encoder must return a tensor or a pair (mean, log_var), got {type(out).__name__}"
            )
        for name, part in zip(("mean", "log_var"), out, strict=True):
            if part.shape != (x.shape[0], self.latent_dim):
                raise ValueError(
                    f"encoder's {name} must be [B, L] = {(x.shape[0], self.latent_dim)}, "
                    f"got {tuple(part.shape)}"
                )
        return out[0], out[1]

    def _decoder_input(self, z: Tensor, context: Tensor | None) -> Tensor:
        """z [B, L] or [B, K, L] as the decoder network takes it, [N, L (+ context_dim)]."""
        inputs = z
        if context is not None:
            if z.ndim == 3:
                context = context.unsqueeze(1).expand(*z.shape[:-1], -1)
            inputs = torch.cat([z, context.to(z.dtype)], -1)
        # Decoders never see the sample dimension, so that convolutions and batch norms work.
        return inputs.flatten(0, -2)

    def _decode(self, z: Tensor, context: Tensor | None) -> DecoderOut:
        raw = self.decoder(self._decoder_input(z, context))
        return self.observation.decoder_out(raw, tuple(z.shape[:-1]))

    def _log_likelihood(self, target: Tensor, z: Tensor, context: Tensor | None) -> Tensor:
        """log p(x | z): z [B, L] -> [B], or [B, K, L] -> [B, K]."""
        if not self.fused_head:
            return self.observation.log_prob(target, self._decode(z, context))
        hidden, output = split_decoder(self.decoder)
        h = hidden(self._decoder_input(z, context))
        if h.ndim != 2:
            raise ValueError(
                "fused_head=True needs inputs [N, H] of the decoder's last layer, "
                f"got {tuple(h.shape)}"
            )
        h = h.unflatten(0, z.shape[:-1])
        return self.observation.linear_log_prob(target, h, output.weight, output.bias)

    def _posterior_sample(
        self,
        mean: Tensor,
        log_var: Tensor,
        num_samples: int | None,
        noise: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """z ~ q(z | x): [B, L] or, with ``num_samples``, [B, K, L]."""
        if noise is not None:
            samples = () if num_samples is None else (num_samples,)
            noise = check_noise(noise, (mean.shape[0], *samples, self.latent_dim), mean)
            generator = None
        return functional.reparameterize(
            mean, log_var, num_samples, generator=generator, noise=noise
        )

    def _check_latents(self, z: Tensor) -> None:
        if not isinstance(z, Tensor):
            raise TypeError(f"z must be a torch.Tensor, got {type(z).__name__}")
        if z.ndim not in (2, 3) or z.shape[-1] != self.latent_dim:
            raise ValueError(
                f"z must have shape [B, {self.latent_dim}] or [B, K, {self.latent_dim}], "
                f"got {tuple(z.shape)}"
            )

    def _target(self, x: Tensor) -> Tensor:
        """x for the likelihood: float64 data must not make a float32 model's bound float64."""
        return x.float() if x.dtype == torch.float64 != self._anchor.dtype else x

    def _context(self, context: Tensor | None, batch: int) -> Tensor | None:
        return check_context(context, self.context_dim, batch, self._anchor)
