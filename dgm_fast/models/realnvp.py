"""RealNVP: affine couplings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from dgm_fast.models._inputs import check_count
from dgm_fast.models._vector_flow import VectorFlow
from dgm_fast.nn import MLP, AffineElement, FeatureCoupling, Transform


class RealNVP(VectorFlow):
    r"""Affine couplings: z = x e^l + shift for half of the entries, l and shift a network of the others.

    Density and samples both take one pass. Entries at odd and at even places take turns.

    Args:
        num_dims: D, at least 2.
        num_layers: of couplings.
        hidden_sizes: widths of each coupling's network.
        scale, clamp: how l is formed, as for :func:`dgm_fast.functional.affine_coupling`.
        activation: makes the activation module.
        context_dim: size of the context of a conditional density p(x | c).

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017). Ten layers of small
    networks follow the "Real NVP (10)" of Papamakarios, Pavlakou and Murray, "Masked Autoregressive Flow
    for Density Estimation" (2017), section 4, without its batch normalisation.
    """

    def __init__(
        self,
        num_dims: int,
        *,
        num_layers: int = 10,
        hidden_sizes: Sequence[int] = (100, 100),
        scale: str = "tanh",
        clamp: float = 2.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        context_dim: int | None = None,
    ) -> None:
        check_count("num_layers", num_layers)
        element = AffineElement(scale, clamp)
        make_network = partial(
            _network, hidden_sizes=hidden_sizes, activation=activation, context_dim=context_dim
        )
        transforms: list[Transform] = [
            FeatureCoupling(
                num_dims, element, make_network, mask="alternating", flip=layer % 2 == 1
            )
            for layer in range(num_layers)
        ]
        super().__init__(num_dims, transforms, context_dim=context_dim)


def _network(
    in_features: int,
    out_features: int,
    *,
    hidden_sizes: Sequence[int],
    activation: Callable[[], nn.Module],
    context_dim: int | None,
) -> MLP:
    return MLP(
        in_features, hidden_sizes, out_features, activation=activation, context_dim=context_dim
    )
