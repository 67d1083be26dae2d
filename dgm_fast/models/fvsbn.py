"""Fully visible sigmoid belief network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.models._autoregressive import AutoregressiveModel, Condition
from dgm_fast.models._inputs import check_count
from dgm_fast.models._observation import BernoulliObservation
from dgm_fast.reference import masked as formulas


class FVSBN(AutoregressiveModel):
    r"""Fully visible sigmoid belief network for binary data: a logistic regression a dimension.

    .. math:: p(x_d = 1 \mid x_1 \dots x_{d-1}) = \sigma\Big(b_d + \sum_{k < d} W_{d,k}\, x_k\Big)

    Data x is bool, integer or floating point in [0, 1], [B, D] or [B, *image_shape]. (A value between 0
    and 1 enters the logits as it is and gives the cross-entropy.) :meth:`sample` takes the operations of
    about one evaluation for all dimensions.

    Args:
        num_dims: D.

    The parameters are ``weight`` [D, D], of which only the part below the diagonal is used, and ``bias``
    [D]. They start at zero (the negative log-likelihood is convex in them), or from the data's marginals by
    :meth:`init_output_bias`.

    Source: Frey, Hinton and Dayan, "Does the wake-sleep algorithm produce good density estimators?" (1996).
    """

    def __init__(self, num_dims: int) -> None:
        super().__init__()
        check_count("num_dims", num_dims)
        self.num_dims = num_dims
        self.weight = nn.Parameter(torch.zeros(num_dims, num_dims))
        self.bias = nn.Parameter(torch.zeros(num_dims))

    def conditionals(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Logits of all conditionals, [B, D]."""
        x = self._data(x)
        self._context(context, len(x))
        return formulas.fvsbn_logits(x, self.weight, self.bias)

    @torch.no_grad()
    def init_output_bias(self, data_mean: Tensor) -> None:
        """Set the bias to the logits of the data's means [D], kept 1e-3 away from 0 and 1."""
        self.bias.copy_(BernoulliObservation(self.num_dims).output_bias(data_mean))

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        return functional.fvsbn_log_prob(x, self.weight, self.bias)

    def _sample(
        self,
        n: int,
        condition: Condition | None,
        context: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        noise = self._uniforms((n, self.num_dims), noise, generator)
        network = functional.MaskedNetwork((self.weight,), (self.bias,), ())
        x, _ = functional.autoregressive_inverse(
            network, functional.BernoulliDraw(), noise, conditioned_on=condition
        )
        return x.to(self.weight.dtype)
