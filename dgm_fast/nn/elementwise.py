"""Transforms of each entry on its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dgm_fast.nn.element_transform import ElementTransform
from dgm_fast.nn.mlp import MLP
from dgm_fast.nn.transform import Transform
from dgm_fast.reference._common import compute_dtype


class Elementwise(Transform):
    r"""z_d = f(x_d; theta_d) with learned parameters theta [D, P], the same for all samples.

    In one dimension this is the flow of any monotone f; with a context a network of it adds to theta, which
    makes conditional densities of independent entries.

    Args:
        num_dims: D.
        element: f; theta starts at its ``initial_params``.
        context_dim: size of a context.
        hidden_sizes: widths of the context's network, whose output starts at zero.

    Shape: x [B, D] (and context [B, context_dim]).

    Raises:
        ValueError: if a size is below 1, or x does not fit.
    """

    def __init__(
        self,
        num_dims: int,
        element: ElementTransform,
        *,
        context_dim: int | None = None,
        hidden_sizes: Sequence[int] = (64,),
    ) -> None:
        super().__init__()
        if num_dims < 1:
            raise ValueError(f"num_dims must be at least 1, got {num_dims}")
        self.num_dims = num_dims
        self.element = element
        self.params = nn.Parameter(element.initial_params().repeat(num_dims, 1))
        self.network = None
        if context_dim is not None:
            self.network = MLP(context_dim, hidden_sizes, self.params.numel())
            nn.init.zeros_(self.network.output.weight)
            nn.init.zeros_(self.network.output.bias)

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.element(self._checked(x), self._params(context))

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.element(self._checked(z), self._params(context), inverse=True)

    def extra_repr(self) -> str:
        return f"num_dims={self.num_dims}, element={self.element}"

    def _params(self, context: Tensor | None) -> Tensor:
        if self.network is None:
            return self.params
        if context is None:
            raise ValueError("context is missing, but the transform was built with a context_dim")
        return self.params + self.network(context).unflatten(-1, self.params.shape)

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.num_dims:
            raise ValueError(f"x must have shape [B, {self.num_dims}], got {tuple(x.shape)}")
        return x


class Standardize(Transform):
    """z = (x - location) / scale, [B, D], with statistics of data in place of parameters.

    Attributes:
        location, scale: buffers [D], 0 and 1 until :meth:`fit` sets them.
    """

    location: Tensor
    scale: Tensor

    def __init__(self, num_dims: int) -> None:
        super().__init__()
        self.register_buffer("location", torch.zeros(num_dims))
        self.register_buffer("scale", torch.ones(num_dims))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take over the means and standard deviations of x [N, D]; a constant entry keeps the scale 1.

        Raises:
            ValueError: if x does not fit, has fewer than two rows or is not finite.
        """
        if x.ndim != 2 or x.shape[1] != len(self.location):
            raise ValueError(f"x must have shape [N, {len(self.location)}], got {tuple(x.shape)}")
        x = x.double()
        if len(x) < 2 or not bool(torch.isfinite(x).all()):
            raise ValueError(f"x must be finite and have at least two rows, got {len(x)}")
        deviation = x.std(0)
        self.location.copy_(x.mean(0))
        self.scale.copy_(torch.where(deviation > 0, deviation, 1.0))

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (x - self.location) / self.scale, -self._log_scale(x)

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z * self.scale + self.location, self._log_scale(z)

    def _log_scale(self, x: Tensor) -> Tensor:
        return self.scale.to(compute_dtype(x)).log().sum().expand(len(x))
