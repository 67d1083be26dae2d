"""Coupling layers of vectors: one part of the entries is mapped by parameters from the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dgm_fast.nn.element_transform import INITIAL_SHARE, ElementTransform
from dgm_fast.nn.mlp import MLP
from dgm_fast.nn.residual_mlp import ResidualMLP
from dgm_fast.nn.transform import Transform

MASKS = ("half", "alternating")


class FeatureCoupling(Transform):
    r"""z_d = f(x_d; parameters) for one part of the entries, parameters a network of the others.

    Args:
        num_dims: D, at least 2.
        element: f.
        make_network: (entries that stay, parameters of those that are mapped) -> network, called as
            ``network(x)``, or ``network(x, context=context)`` if it has a ``context_dim``. A :class:`MLP`
            or :class:`ResidualMLP` starts so that the layer is near the identity.
        mask: which entries are mapped: "half": the second half, "alternating": every second one from
            the second on, or bool [D].
        flip: map the others instead.

    Attributes:
        identity_features, transform_features: indices of both parts, int64 buffers.

    Shape: x [B, D] (and context [B, context_dim]).

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), section 3.2; Durkan et al., "Neural
    Spline Flows" (2019), section 3.2.
    """

    identity_features: Tensor
    transform_features: Tensor

    def __init__(
        self,
        num_dims: int,
        element: ElementTransform,
        make_network: Callable[[int, int], nn.Module],
        *,
        mask: str | Tensor = "half",
        flip: bool = False,
    ) -> None:
        super().__init__()
        transformed = _mask(num_dims, mask) ^ flip
        if bool(transformed.all()) or not bool(transformed.any()):
            raise ValueError("mask must leave some entries and map some, got all of one kind")
        self.num_dims = num_dims
        self.element = element
        self.register_buffer("identity_features", (~transformed).nonzero().squeeze(1))
        self.register_buffer("transform_features", transformed.nonzero().squeeze(1))
        self._in_runs = bool((transformed[1:] != transformed[:-1]).sum() == 1)
        self._transforms_first = bool(transformed[0])
        mapped = int(transformed.sum())
        self.network = make_network(num_dims - mapped, mapped * element.params_per_dim)
        self._conditional = getattr(self.network, "context_dim", None) is not None
        if isinstance(self.network, MLP | ResidualMLP):
            self._start_near_identity(self.network.output, mapped)

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(x, context, inverse=False)

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(z, context, inverse=True)

    def extra_repr(self) -> str:
        return f"num_dims={self.num_dims}, element={self.element}"

    def _map(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.ndim != 2 or x.shape[1] != self.num_dims:
            raise ValueError(f"x must have shape [B, {self.num_dims}], got {tuple(x.shape)}")
        kept, mapped = self._split(x)
        # In float32 the entries keep their digits, whatever the network computes in.
        parameter = next(self.network.parameters(), kept)
        seen = kept.to(parameter.dtype)
        params = self.network(seen, context=context) if self._conditional else self.network(seen)
        mapped, log_abs_det = self.element(mapped, self._unpack(params), inverse=inverse)
        return self._join(x, kept, mapped), log_abs_det

    def _unpack(self, params: Tensor) -> Tensor:
        """The network's outputs as [B, n, P]."""
        size = self.element.params_per_dim
        if self.element.params_first:
            return params.unflatten(-1, (size, -1)).transpose(-1, -2)
        return params.unflatten(-1, (-1, size))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The entries that stay and those that are mapped."""
        if not self._in_runs:
            return (
                x.index_select(1, self.identity_features),
                x.index_select(1, self.transform_features),
            )
        if self._transforms_first:
            mapped, kept = x.split([len(self.transform_features), len(self.identity_features)], 1)
        else:
            kept, mapped = x.split([len(self.identity_features), len(self.transform_features)], 1)
        return kept, mapped

    def _join(self, x: Tensor, kept: Tensor, mapped: Tensor) -> Tensor:
        mapped = mapped.to(x.dtype)
        if not self._in_runs:
            return x.index_copy(1, self.transform_features, mapped)
        return torch.cat([mapped, kept] if self._transforms_first else [kept, mapped], 1)

    @torch.no_grad()
    def _start_near_identity(self, output: nn.Linear, mapped: int) -> None:
        initial = self.element.initial_params()
        output.weight.mul_(INITIAL_SHARE)
        if self.element.params_first:
            output.bias.copy_(initial.repeat_interleave(mapped))
        else:
            output.bias.copy_(initial.repeat(mapped))


def _mask(num_dims: int, mask: str | Tensor) -> Tensor:
    """True for the entries that are mapped, [D]."""
    if isinstance(num_dims, bool) or not isinstance(num_dims, int):
        raise TypeError(f"num_dims must be an int, got {type(num_dims).__name__}")
    if num_dims < 2:
        raise ValueError(f"num_dims must be at least 2 for a coupling, got {num_dims}")
    if isinstance(mask, Tensor):
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, got {mask.dtype}")
        if mask.shape != (num_dims,):
            raise ValueError(f"mask must have shape ({num_dims},), got {tuple(mask.shape)}")
        return mask.cpu()
    if mask not in MASKS:
        raise ValueError(f"mask must be one of {MASKS} or a bool tensor, got {mask!r}")
    index = torch.arange(num_dims)
    return index >= num_dims // 2 if mask == "half" else index % 2 == 1
