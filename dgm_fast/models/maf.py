"""Masked and inverse autoregressive flows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from dgm_fast.models._inputs import check_count
from dgm_fast.models._vector_flow import VectorFlow
from dgm_fast.nn import AffineElement, Inverse, MaskedAutoregressive, Transform


class MAF(VectorFlow):
    r"""Masked autoregressive flow: z_d = x_d e^{l_d} + shift_d, both from the entries before d.

    The density takes one pass through every network. Samples walk through the dimensions, at about the
    operations of one pass (:func:`dgm_fast.functional.autoregressive_inverse`). Layers go through
    the entries in natural and in reversed order by turns.

    Args:
        num_dims: D.
        num_layers: of autoregressive transforms.
        hidden_sizes: widths of each network.
        scale, clamp: how l is formed, as for :func:`dgm_fast.functional.affine_coupling`.
        activation: makes the activation module.
        context_dim: size of the context of a conditional density p(x | c).

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: Papamakarios, Pavlakou and Murray, "Masked Autoregressive Flow for Density Estimation" (2017),
    section 3; five layers as its "MAF (5)", without its batch normalisation, and the
    "softplus" scale, which cannot overflow, for its exponential.
    """

    def __init__(
        self,
        num_dims: int,
        *,
        num_layers: int = 5,
        hidden_sizes: Sequence[int] = (256, 256),
        scale: str = "softplus",
        clamp: float = 2.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        context_dim: int | None = None,
    ) -> None:
        element = AffineElement(scale, clamp)
        layers = _layers(num_dims, element, num_layers, hidden_sizes, activation, context_dim)
        super().__init__(num_dims, layers, context_dim=context_dim)


class IAF(VectorFlow):
    r"""Inverse autoregressive flow: x_d = z_d e^{l_d} + shift_d, both from the noise before d.

    Samples take one pass through every network, and so do densities of one's own samples; densities of data
    walk through the dimensions, as samples of a :class:`MAF` do, and their gradients are implicit.

    Args:
        num_dims, num_layers, hidden_sizes, scale, clamp, activation, context_dim: as for :class:`MAF`.

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow" (2016),
    section 3 and algorithm 1. The bounded "tanh" scale stands for its sigmoid gate: densities of
    data divide by the scale, which must not come near 0.
    """

    def __init__(
        self,
        num_dims: int,
        *,
        num_layers: int = 5,
        hidden_sizes: Sequence[int] = (256, 256),
        scale: str = "tanh",
        clamp: float = 2.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        context_dim: int | None = None,
    ) -> None:
        element = AffineElement(scale, clamp)
        layers = _layers(num_dims, element, num_layers, hidden_sizes, activation, context_dim)
        super().__init__(num_dims, [Inverse(layer) for layer in layers], context_dim=context_dim)


def _layers(
    num_dims: int,
    element: AffineElement,
    num_layers: int,
    hidden_sizes: Sequence[int],
    activation: Callable[[], nn.Module],
    context_dim: int | None,
) -> list[Transform]:
    check_count("num_dims", num_dims)
    check_count("num_layers", num_layers)
    return [
        MaskedAutoregressive(
            num_dims,
            element,
            hidden_sizes,
            order="natural" if layer % 2 == 0 else "reversed",
            activation=activation,
            context_dim=context_dim,
        )
        for layer in range(num_layers)
    ]
