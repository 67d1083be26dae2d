"""Invertible linear layers: in LU form, and general."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast.functional.coupling import (
    Triangles,
    lu_product,
    lu_triangles,
    multiply,
    solve_lu,
)
from dgm_fast.nn.transform import Transform
from dgm_fast.reference._common import compute_dtype

INITIAL = ("identity", "orthogonal")


class _Linear(Transform):
    """z = W x + b along dimension 1, with what follows from W kept in evaluation."""

    bias: nn.Parameter | None

    def __init__(self, num_dims: int, bias: bool) -> None:
        super().__init__()
        if num_dims < 1:
            raise ValueError(f"num_dims must be at least 1, got {num_dims}")
        self.num_dims = num_dims
        self.bias = nn.Parameter(torch.zeros(num_dims)) if bias else None
        self._kept: dict[str, tuple[Any, Any]] = {}

    def train(self, mode: bool = True) -> _Linear:
        self._kept = {}
        super().train(mode)
        return self

    def extra_repr(self) -> str:
        return f"num_dims={self.num_dims}, bias={self.bias is not None}"

    def _keep(self, name: str, make: Callable[[], Any], *tensors: Tensor) -> Any:
        """``make()``, kept in evaluation mode without gradients as long as the tensors do not change."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return make()
        state = [(t.data_ptr(), t._version, t.dtype, t.device) for t in tensors]
        if name not in self._kept or self._kept[name][0] != state:
            self._kept[name] = (state, make())
        return self._kept[name][1]

    def _without_bias(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y - self.bias.view(-1, *[1] * (y.ndim - 2))


class LULinear(_Linear):
    r"""z = W x + b with W = P L (U + diag(s exp(d))), see :func:`dgm_fast.functional.invertible_linear`.

    In evaluation without gradients the product, or the factors of the inverse, are formed once and kept
    until a parameter changes. The inverse solves two triangular systems.

    Args:
        num_dims: D.
        permutation: P by its rows, integers [D]; None for the identity.
        initial: "identity": L U is; "orthogonal": W is a random rotation, P of its own factorisation.
        bias: whether there is a b.

    Attributes:
        lower, upper, log_diag, bias: parameters, of which the strictly lower and the strictly upper
            part count.
        permutation, sign: buffers.

    Shape: [B, D] or [B, D, ...] (1x1 convolutions), dimension 1 mapped.

    Raises:
        ValueError: if an argument does not fit; the message names it.

    Source: Kingma and Dhariwal, "Glow" (2018), equation 10; Oliva et al., "Transformation Autoregressive
    Networks" (2018), section 2.2.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(
        self,
        num_dims: int,
        *,
        permutation: Tensor | None = None,
        initial: str = "identity",
        bias: bool = True,
    ) -> None:
        super().__init__(num_dims, bias)
        if initial not in INITIAL:
            raise ValueError(f"initial must be one of {INITIAL}, got {initial!r}")
        lower, upper = torch.zeros(num_dims, num_dims), torch.zeros(num_dims, num_dims)
        log_diag, sign = torch.zeros(num_dims), torch.ones(num_dims)
        order = torch.arange(num_dims)
        if initial == "orthogonal":
            if permutation is not None:
                raise ValueError("permutation follows from an orthogonal start, got one")
            rotation = nn.init.orthogonal_(torch.empty(num_dims, num_dims))
            p, lower, upper = torch.linalg.lu(rotation)
            order = p.argmax(1)
            diagonal = upper.diagonal()
            log_diag, sign = diagonal.abs().log(), diagonal.sign()
            lower, upper = lower.tril(-1), upper.triu(1)
        elif permutation is not None:
            if not torch.equal(permutation.sort().values, order):
                raise ValueError(f"permutation must hold every index from 0 to {num_dims - 1} once")
            order = permutation
        self.lower, self.upper = nn.Parameter(lower.clone()), nn.Parameter(upper.clone())
        self.log_diag = nn.Parameter(log_diag.clone())
        self.register_buffer("permutation", order.to(torch.int64, copy=True))
        self.register_buffer("sign", sign.clone())

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weight, log_det = self._keep(f"weight {x.dtype}", lambda: self._product(x), *self._state())
        return multiply(x, weight, log_det, self.bias)

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        triangles, inverse_permutation = self._keep(
            f"factors {z.dtype}",
            lambda: (self._triangles(z), self.permutation.argsort()),
            *self._state(),
        )
        return solve_lu(self._without_bias(z), triangles, inverse_permutation)

    def _state(self) -> tuple[Tensor, ...]:
        return self.lower, self.upper, self.log_diag, self.permutation, self.sign

    def _triangles(self, x: Tensor) -> Triangles:
        dtype = compute_dtype(x, self.lower)
        return lu_triangles(self.lower, self.upper, self.log_diag, self.sign, dtype=dtype)

    def _product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        triangles = self._triangles(x)
        return lu_product(triangles, self.permutation), triangles.log_det


class GeneralLinear(_Linear):
    r"""z = W x + b with any invertible W, whose log-determinant is that of a factorisation at each step.

    The forward map costs O(D^3) once a batch in training. In evaluation without gradients the
    log-determinant and the factorisation for the inverse are kept until W changes.

    Args:
        num_dims: D.
        initial: of W: "identity", or "orthogonal" for a random rotation.
        bias: whether there is a b.

    Attributes:
        weight: W [D, D], a parameter.

    Shape: [B, D].

    Raises:
        ValueError: if an argument does not fit; the message names it.
    """

    def __init__(self, num_dims: int, *, initial: str = "orthogonal", bias: bool = True) -> None:
        super().__init__(num_dims, bias)
        if initial not in INITIAL:
            raise ValueError(f"initial must be one of {INITIAL}, got {initial!r}")
        weight = torch.eye(num_dims)
        if initial == "orthogonal":
            nn.init.orthogonal_(weight)
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = self._keep(
            "log_det", lambda: torch.linalg.slogdet(self._weight(x)).logabsdet, self.weight
        )
        return multiply(x, self._weight(x), log_det, self.bias)

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        factors, pivots = self._keep(
            "factors", lambda: torch.linalg.lu_factor(self._weight(z)), self.weight
        )
        log_det = factors.diagonal().abs().log().sum()
        y = self._without_bias(z).to(factors.dtype)
        x = torch.linalg.lu_solve(factors, pivots, y.t()).t()
        return x.to(z.dtype), -log_det.expand(len(z))

    def _weight(self, x: Tensor) -> Tensor:
        return self.weight.to(compute_dtype(x, self.weight))
