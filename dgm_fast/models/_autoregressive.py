"""Base of the autoregressive models: likelihoods, conditions, noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast import ops
from dgm_fast.functional._checks import raise_unless_valid, values_visible
from dgm_fast.models._inputs import (
    check_condition,
    check_context,
    check_count,
    check_noise,
    flatten_data,
)
from dgm_fast.models._mixture import compute_dtype

# (values, given), [n, D] each.
Condition = tuple[Tensor, Tensor]


class AutoregressiveModel(nn.Module):
    r"""A density as a product of conditionals, in the order of the entries unless a model says otherwise.

    .. math:: \log p(x) = \sum_d \log p(x_d \mid x_1 \dots x_{d-1})

    Data x are [B, D] or [B, *image_shape] with D entries a sample. All results are per sample and in nats
    unless the method says otherwise. A model implements :meth:`_log_prob`, :meth:`_sample` and
    :meth:`conditionals`.
    """

    num_dims: int
    context_dim: int | None = None
    _anchor: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Follows the module through .to(): the dtype and device that inputs are brought to.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    def log_prob(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """log p(x), [B], float32 (float64 for a float64 model).

        Args:
            x: data.
            context: [B, context_dim] or [context_dim], for conditional models.

        Raises:
            TypeError, ValueError: if an argument does not fit; the message names it.
        """
        x = self._data(x)
        return self._log_prob(x, self._context(context, len(x)))

    def nll(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """-log p(x), [B] in nats."""
        return -self.log_prob(x, context=context)

    def bits_per_dim(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """-log p(x) / (D log 2), [B] in bits per entry."""
        nll = self.nll(x, context=context)
        return nll / (math.prod(x.shape[1:]) * math.log(2.0))

    def loss(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Negative log-likelihood averaged over the batch, a scalar in nats."""
        return self.nll(x, context=context).mean()

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """The :meth:`loss`, for wrappers that call ``forward`` (data parallelism)."""
        return self.loss(x, context=context)

    def conditionals(self, x: Tensor, *, context: Tensor | None = None) -> Any:
        """Parameters of every conditional p(x_d | x_1 .. x_{d-1}); their layout is the model's.

        Where the formula allows it they are differentiable in floating-point x: their Jacobian is strictly
        triangular.
        """
        raise NotImplementedError

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        conditioned_on: Condition | None = None,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n draws x ~ p(x), [n, D], without gradients.

        Args:
            n: how many.
            conditioned_on: the pair (values, given), each [D] or [n, D], ``given`` boolean: values are kept
                where it is True, and every other entry is drawn given all entries before it. (Given
                entries that come later do not influence it.) Values elsewhere do not matter and may be NaN.
            context: [n, context_dim] or [context_dim], for conditional models.
            noise: what the draws are made of, in place of the generator's: uniforms in [0, 1) [n, D]
                for discrete entries; a model of real entries names its own. The same noise gives
                the same samples on every backend, but for rare noise within rounding of a probability.
            generator: source of the noise.

        Returns:
            Binary entries: 0 or 1 in the model's dtype; class indices: int64; real ones: the model's dtype.

        Raises:
            TypeError, ValueError: if an argument does not fit; the message names it.
        """
        check_count("n", n)
        condition = None
        if conditioned_on is not None:
            condition = check_condition(conditioned_on, (n, self.num_dims), self._anchor)
        return self._sample(n, condition, self._context(context, n), noise, generator)

    def _data(self, x: Tensor) -> Tensor:
        """x as [B, D]."""
        return flatten_data(x, self.num_dims, self._anchor.device)

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        """log p(x) for x [B, D] of any data dtype."""
        raise NotImplementedError

    def _sample(
        self,
        n: int,
        condition: Condition | None,
        context: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Draws [n, D]; the condition's values are 0 where not given, in the user's dtype."""
        raise NotImplementedError

    def _uniforms(
        self, shape: tuple[int, ...], noise: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """The given noise, checked, or uniforms in [0, 1)."""
        like, dtype = self._anchor, compute_dtype(self._anchor)
        if noise is not None:
            return check_noise(noise, shape, like).to(dtype)
        return torch.rand(shape, dtype=dtype, device=like.device, generator=generator)

    def _context(self, context: Tensor | None, batch: int) -> Tensor | None:
        return check_context(context, self.context_dim, batch, self._anchor)


def check_values(values: Tensor, valid: Tensor, needs: str) -> None:
    """Raise for discrete values that are not valid, where looking at them does not stop a device."""
    if values_visible() and (values.is_cpu or ops.values_checked()):
        raise_unless_valid(values, valid, needs)


def real_data(x: Tensor, like: Tensor) -> Tensor:
    """x for a model of real entries: float64 data must not make a float32 model's log-density float64."""
    if not x.dtype.is_floating_point:
        return x.to(like.dtype)
    return x.float() if x.dtype == torch.float64 != like.dtype else x
