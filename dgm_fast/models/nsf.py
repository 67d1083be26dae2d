"""Neural spline flows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from dgm_fast.models._inputs import check_choice, check_count
from dgm_fast.models._vector_flow import VectorFlow
from dgm_fast.nn import (
    FeatureCoupling,
    LULinear,
    MaskedAutoregressive,
    ResidualMLP,
    SplineElement,
    Transform,
)

KINDS = ("coupling", "autoregressive")


class NSF(VectorFlow):
    r"""Neural spline flow: rational-quadratic splines with linear layers between them.

    "coupling", RQ-NSF (C): splines of one half of the entries, parameters a residual network of the other;
    density and samples take one pass. "autoregressive", RQ-NSF (AR): splines of every entry, parameters a
    :class:`dgm_fast.nn.MADE`; more expressive, and sampling walks through the dimensions.
    Every layer is a permutation at random with a linear map in LU form and a spline; a linear map
    comes last.

    Args:
        num_dims: D; at least 2 for "coupling".
        kind: "coupling" or "autoregressive".
        num_layers: of splines.
        hidden_size: width of the networks.
        num_blocks: residual blocks of two layers ("coupling"), or hidden layers ("autoregressive").
        num_bins, tail_bound: of the splines, on standardised data.
        dropout: of the residual networks; "coupling" only.
        activation: makes the activation module.
        context_dim: size of the context of a conditional density p(x | c).

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: Durkan, Bekasov, Murray and Papamakarios, "Neural Spline Flows" (2019), section 5.1 and
    appendix B.1, whose sizes are the defaults (10 layers, 2 blocks, 256 units, 8 bins, bound 3).
    """

    def __init__(
        self,
        num_dims: int,
        *,
        kind: str = "coupling",
        num_layers: int = 10,
        hidden_size: int = 256,
        num_blocks: int = 2,
        num_bins: int = 8,
        tail_bound: float = 3.0,
        dropout: float = 0.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        context_dim: int | None = None,
    ) -> None:
        check_choice("kind", kind, KINDS)
        sizes = {"num_dims": num_dims, "num_layers": num_layers, "num_blocks": num_blocks}
        for name, value in (sizes | {"hidden_size": hidden_size}).items():
            check_count(name, value)
        if kind == "autoregressive" and dropout != 0:
            raise ValueError(f"dropout is for the coupling kind, got {dropout}")
        element = SplineElement(num_bins, tail_bound)
        make_network = partial(
            ResidualMLP,
            hidden_size=hidden_size,
            num_blocks=num_blocks,
            context_dim=context_dim,
            activation=activation,
            dropout=dropout,
        )

        def spline(layer: int) -> Transform:
            if kind == "coupling":
                return FeatureCoupling(num_dims, element, make_network, flip=layer % 2 == 1)
            return MaskedAutoregressive(
                num_dims,
                element,
                (hidden_size,) * num_blocks,
                activation=activation,
                context_dim=context_dim,
            )

        transforms: list[Transform] = []
        for layer in range(num_layers):
            transforms += [_linear(num_dims), spline(layer)]
        super().__init__(num_dims, [*transforms, _linear(num_dims)], context_dim=context_dim)
        self.kind = kind


def _linear(num_dims: int) -> LULinear:
    return LULinear(num_dims, permutation=torch.randperm(num_dims))
