"""Masked autoencoder for distribution estimation as a density model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.functional import AffineMap, BernoulliDraw, CategoricalDraw, ElementMap, MixtureDraw
from dgm_fast.functional._checks import class_index, unit_interval
from dgm_fast.functional.likelihood import UNIT_INTERVAL, class_range
from dgm_fast.models._autoregressive import (
    AutoregressiveModel,
    Condition,
    check_values,
    real_data,
)
from dgm_fast.models._inputs import check_choice, check_count, check_finite, check_noise
from dgm_fast.models._mixture import compute_dtype
from dgm_fast.models._observation import make_observation
from dgm_fast.nn import MADE as MaskedAutoencoder
from dgm_fast.reference.nade import mixture_log_prob

LIKELIHOODS = ("bernoulli", "categorical", "gaussian", "mixture")
MIXTURES = ("gaussian", "logistic")


class MADE(AutoregressiveModel):
    r"""Masked autoencoder for distribution estimation: all conditionals from one masked network.

    .. math:: \log p(x) = \sum_d \log p(x_d \mid x_{<d}), \qquad
        \text{parameters of } p(x_d \mid x_{<d}) = \text{network}(x)_d

    with x_{<d} the entries before d in the model's order. With several masks the model is their mixture of
    equal weights,

    .. math:: p(x) = \frac{1}{M} \sum_m p_m(x),

    and :meth:`loss` in training mode that of one mask, the next one at each call (order-agnostic training).

    Data x are [B, D] or [B, *image_shape]: "bernoulli": values in [0, 1] (one between 0 and 1 enters the
    network as it is and gives the cross-entropy); "categorical": class indices, seen as one-hot vectors;
    "gaussian" and "mixture": real numbers. :meth:`sample` takes about one pass through the network for all
    dimensions.

    Args:
        num_dims: D.
        hidden_sizes: widths of the hidden layers.
        likelihood: "bernoulli", "categorical", "gaussian" or "mixture".
        num_classes: C, for "categorical".
        order: "natural", "reversed", "random", or the dimensions in their order, integers [D] (or
            [num_masks, D]).
        num_masks: M; as for :class:`dgm_fast.nn.MADE`.
        context_dim: size of the context of a conditional model p(x | c).
        num_mixtures, mixture: for "mixture", components a dimension, and "gaussian" or "logistic" ones.
        activation: makes the activation module.

    Noise of :meth:`sample`: uniforms in [0, 1) [n, D] ("bernoulli", "categorical"), standard normals [n, D]
    ("gaussian"), or for "mixture" [n, D, 2]: a uniform for the component and a standard normal ("gaussian")
    or a uniform in (0, 1) ("logistic"). With several masks the pair (uniforms [n] that choose the mask,
    that noise).

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: Germain, Gregor, Murray and Larochelle, "MADE: Masked Autoencoder for Distribution Estimation"
    (2015).
    """

    next_mask: Tensor

    def __init__(
        self,
        num_dims: int,
        hidden_sizes: Sequence[int],
        *,
        likelihood: str = "bernoulli",
        num_classes: int | None = None,
        order: str | Tensor | Sequence[int] = "natural",
        num_masks: int = 1,
        context_dim: int | None = None,
        num_mixtures: int = 10,
        mixture: str = "gaussian",
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        check_count("num_dims", num_dims)
        check_choice("likelihood", likelihood, LIKELIHOODS)
        if (num_classes is not None) != (likelihood == "categorical"):
            raise ValueError(
                f"num_classes is for the categorical likelihood, which needs it: got {num_classes} "
                f"with likelihood={likelihood!r}"
            )
        if num_classes is not None:
            check_count("num_classes", num_classes, at_least=2)
        check_count("num_mixtures", num_mixtures)
        check_choice("mixture", mixture, MIXTURES)
        self.num_dims = num_dims
        self.likelihood = likelihood
        self.num_classes = num_classes
        self.num_mixtures = num_mixtures
        self.mixture = mixture
        self.num_masks = num_masks
        self.context_dim = context_dim
        self.draw = self._element_map()
        self.network = MaskedAutoencoder(
            num_dims,
            hidden_sizes,
            self.draw.params_per_dim,
            order=order,
            num_masks=num_masks,
            activation=activation,
            context_dim=context_dim,
            num_classes=num_classes,
        )
        # Of training: part of a checkpoint, so that a resumed run goes on with the next mask.
        self.register_buffer("next_mask", torch.zeros((), dtype=torch.int64))
        if likelihood == "mixture":
            # Components with the same parameters would stay the same.
            bias = self.network.output_bias
            bias[:, num_mixtures : 2 * num_mixtures].normal_()
            self.network.set_output_bias(bias)

    def log_prob_of_mask(self, x: Tensor, mask: int, *, context: Tensor | None = None) -> Tensor:
        """log p_m(x) of one mask, [B]."""
        x = self._data(x)
        return self._mask_log_prob(x, self._context(context, len(x)), mask)

    def loss(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Negative log-likelihood averaged over the batch, a scalar in nats.

        In training mode with several masks that of the next mask.
        """
        if not self.training or self.num_masks == 1:
            return super().loss(x, context=context)
        mask = int(self.next_mask)
        self.next_mask.fill_((mask + 1) % self.num_masks)
        return -self.log_prob_of_mask(x, mask, context=context).mean()

    def conditionals(self, x: Tensor, *, context: Tensor | None = None, mask: int = 0) -> Any:
        """Parameters of every conditional under one mask.

        "bernoulli": logits [B, D]. "categorical": logits [B, D, C]. "gaussian": mean and log-scale, [B, D]
        each. "mixture": logits, means and log-scales, [B, D, M] each.
        """
        x = self._data(x)
        params = self.network(x, context=self._context(context, len(x)), mask=mask)
        if self.likelihood == "bernoulli":
            return params.squeeze(-1)
        if self.likelihood == "categorical":
            return params
        if self.likelihood == "gaussian":
            return params.unbind(-1)
        return params.chunk(3, -1)

    def init_output_bias(self, data_mean: Tensor) -> None:
        """Set the output biases so that zero weights give the data's marginals.

        Args:
            data_mean: means [D] ("bernoulli", "gaussian"), or class frequencies [C, D] ("categorical").
                Frequencies are kept 1e-3 away from 0 (and 1).

        Raises:
            ValueError: for mixtures, or if the shape does not match.
        """
        if self.likelihood == "mixture":
            raise ValueError("init_output_bias has nothing to set for a mixture")
        observation = make_observation(self.likelihood, self.num_dims, self.num_classes, "unit")
        marginal = observation.output_bias(data_mean).reshape(-1, self.num_dims).t()  # [D, P]
        bias = self.network.output_bias
        bias[:, : marginal.shape[1]] = marginal.to(bias)
        self.network.set_output_bias(bias)

    def _element_map(self) -> ElementMap:
        if self.likelihood == "bernoulli":
            return BernoulliDraw()
        if self.likelihood == "categorical":
            assert self.num_classes is not None
            return CategoricalDraw(self.num_classes)
        if self.likelihood == "gaussian":
            return AffineMap()
        return MixtureDraw(self.num_mixtures, self.mixture)

    def _data(self, x: Tensor) -> Tensor:
        x = super()._data(x)
        if self.likelihood == "categorical":
            assert self.num_classes is not None
            check_values(x, class_index(x, self.num_classes), class_range(self.num_classes))
            return x
        if self.likelihood == "bernoulli":
            return x
        return real_data(x, self._anchor)

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        if self.num_masks == 1:
            return self._mask_log_prob(x, context, 0)
        of_masks = [self._mask_log_prob(x, context, mask) for mask in range(self.num_masks)]
        return functional.log_mean_exp(torch.stack(of_masks, 1), 1)

    def _mask_log_prob(self, x: Tensor, context: Tensor | None, mask: int) -> Tensor:
        params = self.network(x, context=context, mask=mask)  # [B, D, P]
        if self.likelihood == "bernoulli":
            x = x.to(params.dtype) if x.dtype == torch.float64 else x
            return functional.bernoulli_log_prob(params.squeeze(-1), x)
        if self.likelihood == "categorical":
            return functional.categorical_log_prob(params, x, class_dim=2, event_ndim=1)
        if self.likelihood == "gaussian":
            mean, log_scale = params.unbind(-1)
            return functional.gaussian_log_prob(x, mean, 2.0 * log_scale)
        dtype = compute_dtype(params)
        logits, means, log_scales = params.to(dtype).chunk(3, -1)
        return mixture_log_prob(x.to(dtype), logits, means, log_scales, mixture=self.mixture)

    def _sample(
        self,
        n: int,
        condition: Condition | None,
        context: Tensor | None,
        noise: Any,
        generator: torch.Generator | None,
    ) -> Tensor:
        if condition is not None:
            self._check_condition(condition[0])
        dtype, like = compute_dtype(self._anchor), self._anchor
        masks = None
        if self.num_masks > 1:
            if noise is not None and (not isinstance(noise, tuple | list) or len(noise) != 2):
                raise TypeError("noise must be a pair (uniforms of the mask [n], noise of x)")
            choice, noise = (None, None) if noise is None else noise
            uniforms = self._uniforms((n,), choice, generator)
            masks = (uniforms * self.num_masks).long().clamp(max=self.num_masks - 1)
        shape = (n, self.num_dims)
        if noise is None:
            noise = self.draw.draw_noise(
                shape, dtype=dtype, device=like.device, generator=generator
            )
        else:
            event = () if self.draw.noise_per_dim == 1 else (self.draw.noise_per_dim,)
            noise = check_noise(noise, (*shape, *event), like).to(dtype)
        if masks is None:
            x = self._sample_mask(0, noise, condition, context)
        else:
            x = noise.new_empty(shape, dtype=self._sample_dtype())
            for mask in range(self.num_masks):
                rows = (masks == mask).nonzero().squeeze(1)
                x[rows] = self._sample_mask(
                    mask,
                    noise[rows],
                    None if condition is None else (condition[0][rows], condition[1][rows]),
                    None if context is None else context[rows],
                )
        if condition is None or self.likelihood == "categorical":
            return x
        values, given = condition
        return torch.where(given, values.to(x.dtype), x)

    def _sample_dtype(self) -> torch.dtype:
        return torch.int64 if self.likelihood == "categorical" else self._anchor.dtype

    def _sample_mask(
        self, mask: int, noise: Tensor, condition: Condition | None, context: Tensor | None
    ) -> Tensor:
        network = self.network.masked_network(context, mask=mask)
        x, _ = functional.autoregressive_inverse(
            network, self.draw, noise, conditioned_on=condition
        )
        return x.to(self._sample_dtype())

    def _check_condition(self, values: Tensor) -> None:
        if self.likelihood == "bernoulli":
            check_values(values, unit_interval(values), UNIT_INTERVAL)
        elif self.likelihood == "categorical":
            assert self.num_classes is not None
            valid = class_index(values, self.num_classes)
            check_values(values, valid, class_range(self.num_classes))
        else:
            check_finite(values)
