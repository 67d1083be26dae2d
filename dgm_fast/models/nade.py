"""Neural autoregressive density estimators."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.models._autoregressive import AutoregressiveModel, Condition
from dgm_fast.models._inputs import check_count
from dgm_fast.models._observation import BernoulliObservation, CategoricalObservation
from dgm_fast.reference import nade as formulas


def fan_in_normal(*shape: int, fan_in: int) -> nn.Parameter:
    """Normal weights of standard deviation 1 / sqrt(fan_in)."""
    return nn.Parameter(torch.randn(shape) / fan_in**0.5)


class NADE(AutoregressiveModel):
    r"""Neural autoregressive density estimator of binary data.

    .. math:: p(x_d = 1 \mid x_1 \dots x_{d-1}) = \sigma(V_d h_d + b_d), \qquad
        h_d = \sigma\Big(c + \sum_{k < d} W_{:,k}\, x_k\Big)

    The conditionals share W and c, so that a sample and its probability cost O(D H) operations, and nothing
    of size [B, D, H] is stored (:func:`dgm_fast.functional.nade_log_prob`).

    Data x is bool, integer or floating point in [0, 1], [B, D] or [B, *image_shape]. (A value between 0
    and 1 enters the recurrence as it is and gives the cross-entropy.)

    Args:
        num_dims: D.
        hidden_size: H.

    The parameters are ``W`` [H, D], ``c`` [H], ``V`` [D, H] and ``b`` [D]. Weights start normal with
    variance 1 / fan-in: 1 / D for W (up to D entries enter a hidden unit), 1 / H for V. Biases start at
    zero, or from the data's marginals by :meth:`init_output_bias`.

    Source: Larochelle and Murray, "The Neural Autoregressive Distribution Estimator" (2011).
    """

    def __init__(self, num_dims: int, hidden_size: int) -> None:
        super().__init__()
        check_count("num_dims", num_dims)
        check_count("hidden_size", hidden_size)
        self.num_dims = num_dims
        self.hidden_size = hidden_size
        self.W = fan_in_normal(hidden_size, num_dims, fan_in=num_dims)
        self.c = nn.Parameter(torch.zeros(hidden_size))
        self.V = fan_in_normal(num_dims, hidden_size, fan_in=hidden_size)
        self.b = nn.Parameter(torch.zeros(num_dims))

    def conditionals(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Logits of all conditionals, [B, D], by the plain formula, which stores [B, D, H]."""
        x = self._data(x)
        self._context(context, len(x))
        return formulas.nade_logits(x, self.W, self.c, self.V, self.b)

    @torch.no_grad()
    def init_output_bias(self, data_mean: Tensor) -> None:
        """Set b to the logits of the data's means [D], kept 1e-3 away from 0 and 1.

        It is shifted so that hidden units at one half, where they start, add nothing to the logits.
        """
        bias = BernoulliObservation(self.num_dims).output_bias(data_mean)
        self.b.copy_(bias.to(self.b) - 0.5 * self.V.sum(-1))

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        return functional.nade_log_prob(x, self.W, self.c, self.V, self.b)

    def _sample(
        self,
        n: int,
        condition: Condition | None,
        context: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        parameters = (self.W, self.c, self.V, self.b)
        x = functional.nade_sample(
            *parameters, n, conditioned_on=condition, generator=generator, noise=noise
        )
        return x.to(self.W.dtype)


class CategoricalNADE(AutoregressiveModel):
    r"""Neural autoregressive density estimator of class indices, with one-hot inputs.

    .. math:: p(x_d \mid x_1 \dots x_{d-1}) = \mathrm{softmax}(V_d h_d + b_d)_{x_d}, \qquad
        h_d = \sigma\Big(c + \sum_{k < d} W_{:,k,x_k}\Big)

    Data x is integer, bool or whole floating-point numbers from 0 to C - 1, [B, D] or [B, *image_shape].

    Args:
        num_dims: D.
        hidden_size: H.
        num_classes: C.

    The parameters are ``W`` [H, D, C], ``c`` [H], ``V`` [D, C, H] and ``b`` [D, C]. They start as those of
    :class:`NADE`: of D C inputs D are 1.

    Source: Larochelle and Murray (2011), section 3, with multinomial conditionals.
    """

    def __init__(self, num_dims: int, hidden_size: int, num_classes: int) -> None:
        super().__init__()
        check_count("num_dims", num_dims)
        check_count("hidden_size", hidden_size)
        check_count("num_classes", num_classes, at_least=2)
        self.num_dims = num_dims
        self.hidden_size = hidden_size
        self.num_classes = num_classes
        self.W = fan_in_normal(hidden_size, num_dims, num_classes, fan_in=num_dims)
        self.c = nn.Parameter(torch.zeros(hidden_size))
        self.V = fan_in_normal(num_dims, num_classes, hidden_size, fan_in=hidden_size)
        self.b = nn.Parameter(torch.zeros(num_dims, num_classes))

    def conditionals(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Logits of all conditionals, [B, D, C], by the plain formula, which stores [B, D, H]."""
        x = self._data(x)
        self._context(context, len(x))
        return formulas.nade_categorical_logits(x, self.W, self.c, self.V, self.b)

    @torch.no_grad()
    def init_output_bias(self, data_mean: Tensor) -> None:
        """Set b to the logarithms of class frequencies [C, D] of at least 1e-3, shifted as in NADE."""
        observation = CategoricalObservation(self.num_dims, self.num_classes)
        bias = observation.output_bias(data_mean).reshape(self.num_classes, self.num_dims)
        self.b.copy_(bias.t().to(self.b) - 0.5 * self.V.sum(-1))

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        return functional.nade_categorical_log_prob(x, self.W, self.c, self.V, self.b)

    def _sample(
        self,
        n: int,
        condition: Condition | None,
        context: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        return functional.nade_categorical_sample(
            self.W,
            self.c,
            self.V,
            self.b,
            n,
            conditioned_on=condition,
            generator=generator,
            noise=noise,
        )
