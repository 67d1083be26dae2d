"""RealNVP: affine couplings, of vectors and of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from dgm_fast.models._image_flow import before, check_image_shape, real_nvp_transforms
from dgm_fast.models._inputs import check_count
from dgm_fast.models._vector_flow import VectorFlow
from dgm_fast.models.flow import Flow
from dgm_fast.nn import MLP, AffineElement, FeatureCoupling, StandardNormal, Transform

# Options of either form, and what they are where none is given.
OF_VECTORS: dict[str, Any] = {
    "num_layers": 10,
    "hidden_sizes": (100, 100),
    "activation": nn.ReLU,
}
OF_IMAGES: dict[str, Any] = {
    "num_levels": 2,
    "channels": 32,
    "num_blocks": 2,
    "reversible": False,
}


class RealNVP(VectorFlow):
    r"""Affine couplings: z = x e^l + shift for half of the entries, l and shift a network of the others.

    Density and samples both take one pass. Of vectors, entries at odd and at even places take turns. Of
    images, each level but the last has three couplings on checkerboards, a squeeze and three on channels,
    after which half of the channels leave as noise; the last has four on checkerboards. An actnorm before
    each coupling takes the place of the paper's batch normalisation.

    Args:
        num_dims_or_image_shape: D, at least 2; or (channels, height, width), or (height, width) for one
            channel, with height and width multiples of 2 ** (num_levels - 1), and the width of one more 2.
        num_layers: vectors: of couplings. [10]
        hidden_sizes: vectors: widths of each coupling's network. [100, 100]
        activation: vectors: makes the activation module. [nn.ReLU]
        num_levels: images: scales. [2]
        channels: images: of the networks' hidden layers at the first level, twice as many at each
            next. [32]
        num_blocks: images: residual blocks of each network. [2]
        reversible: images: compute activations from outputs in backward: memory does not grow with
            depth, and a training step takes about a third longer. [False]
        logit_alpha: images: data are in [0, 1] and go through the logit first, that far from their ends;
            None takes them as they are.
        scale, clamp: how l is formed, as for :func:`dgm_fast.functional.affine_coupling`.
        context_dim: size of the context of a conditional density p(x | c).

    Raises:
        TypeError, ValueError: if an argument does not fit, or belongs to the other form; the message names
            it.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017). Ten layers of small
    networks follow the "Real NVP (10)" of Papamakarios, Pavlakou and Murray, "Masked Autoregressive Flow
    for Density Estimation" (2017), section 4, without its batch normalisation.
    """

    def __init__(
        self,
        num_dims_or_image_shape: int | Sequence[int],
        *,
        num_layers: int | None = None,
        hidden_sizes: Sequence[int] | None = None,
        activation: Callable[[], nn.Module] | None = None,
        num_levels: int | None = None,
        channels: int | None = None,
        num_blocks: int | None = None,
        reversible: bool | None = None,
        logit_alpha: float | None = 0.05,
        scale: str = "tanh",
        clamp: float = 2.0,
        context_dim: int | None = None,
    ) -> None:
        of_vectors = _resolve(
            OF_VECTORS,
            num_layers=num_layers,
            hidden_sizes=hidden_sizes,
            activation=activation,
        )
        of_images = _resolve(
            OF_IMAGES,
            num_levels=num_levels,
            channels=channels,
            num_blocks=num_blocks,
            reversible=reversible,
        )
        shared: dict[str, Any] = {"scale": scale, "clamp": clamp, "context_dim": context_dim}
        if isinstance(num_dims_or_image_shape, int):
            _refuse(of_images, "images")
            options = OF_VECTORS | of_vectors | shared
            transforms = _vector_transforms(num_dims_or_image_shape, **options)
            super().__init__(num_dims_or_image_shape, transforms, context_dim=context_dim)
            return
        _refuse(of_vectors, "vectors")
        shape = check_image_shape(num_dims_or_image_shape)
        options = OF_IMAGES | of_images | shared
        transforms = real_nvp_transforms(shape, **options)
        # Nothing to standardise: the first actnorm does it.
        Flow.__init__(
            self,
            [*before(logit_alpha), *transforms],
            StandardNormal(shape),
            context_dim=context_dim,
        )
        self.image_shape = shape


def _resolve(defaults: dict[str, Any], **given: Any) -> dict[str, Any]:
    assert given.keys() == defaults.keys()
    return {name: value for name, value in given.items() if value is not None}


def _refuse(options: dict[str, Any], form: str) -> None:
    if options:
        raise ValueError(f"{', '.join(options)}: for a RealNVP of {form} only")


def _vector_transforms(
    num_dims: int,
    *,
    num_layers: int,
    hidden_sizes: Sequence[int],
    activation: Callable[[], nn.Module],
    scale: str,
    clamp: float,
    context_dim: int | None,
) -> list[Transform]:
    check_count("num_layers", num_layers)
    element = AffineElement(scale, clamp)
    make_network = partial(
        _network, hidden_sizes=hidden_sizes, activation=activation, context_dim=context_dim
    )
    return [
        FeatureCoupling(num_dims, element, make_network, mask="alternating", flip=layer % 2 == 1)
        for layer in range(num_layers)
    ]


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
