"""Masked autoregressive transforms: all parameters from one masked network, the inverse in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.nn.element_transform import INITIAL_SHARE, ElementTransform
from dgm_fast.nn.made import MADE
from dgm_fast.nn.masked_linear import MaskedLinear
from dgm_fast.nn.transform import Transform


class MaskedAutoregressive(Transform):
    r"""z_d = f(x_d; parameters_d(x before d)), parameters of a :class:`MADE`.

    ``forward`` is one pass through the network. So is ``inverse``, in operations: by
    :func:`dgm_fast.functional.autoregressive_inverse`, differentiable. Starts near the identity.

    Args:
        num_dims: D.
        element: f.
        hidden_sizes: widths of the hidden layers.
        order: of the entries, as for :class:`MADE`.
        activation: makes the activation module.
        context_dim: size of a context, for conditional transforms.

    Shape: x [B, D] (and context [B, context_dim]).

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: Papamakarios, Pavlakou and Murray, "Masked Autoregressive Flow for Density Estimation" (2017),
    section 3; Durkan et al., "Neural Spline Flows" (2019), section 3.2.
    """

    def __init__(
        self,
        num_dims: int,
        element: ElementTransform,
        hidden_sizes: Sequence[int] = (256, 256),
        *,
        order: str | Tensor | Sequence[int] = "natural",
        activation: Callable[[], nn.Module] = nn.ReLU,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.element = element
        self.network = MADE(
            num_dims,
            hidden_sizes,
            element.params_per_dim,
            order=order,
            activation=activation,
            context_dim=context_dim,
        )
        output = self.network.layers[-1]
        assert isinstance(output, MaskedLinear)
        with torch.no_grad():
            output.weight.mul_(INITIAL_SHARE)
        self.network.set_output_bias(element.initial_params().expand(num_dims, -1))

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.element(x, self.network(x, context=self._context(context)))

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_abs_det = functional.autoregressive_inverse(
            self.network, self.element.element_map(), z, context=self._context(context)
        )
        assert log_abs_det is not None
        return x, log_abs_det

    def extra_repr(self) -> str:
        return f"element={self.element}"

    def _context(self, context: Tensor | None) -> Tensor | None:
        return None if self.network.context_dim is None else context
