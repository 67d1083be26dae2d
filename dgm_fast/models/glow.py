"""Glow: actnorm, invertible 1x1 convolutions and channel couplings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from dgm_fast.models._image_flow import (
    ImageFlow,
    check_halvings,
    check_image_shape,
    stack,
)
from dgm_fast.models._inputs import check_choice, check_count
from dgm_fast.nn import (
    ActNorm,
    GlowNet,
    ImageCoupling,
    InvertibleConv1x1,
    MultiScale,
    Squeeze,
    Transform,
)


class Glow(ImageFlow):
    """Levels of squeeze, then steps of actnorm, invertible 1x1 convolution and affine coupling.

    After each level but the last, half of the channels leave as noise, Gaussian with mean and scale from
    two convolutions of the half that stays.

    Args:
        image_shape: (channels, height, width), or (height, width) for one channel; height and width
            multiples of 2 ** num_levels.
        num_levels: L.
        num_steps: K, of each level.
        channels: of the networks' hidden layers.
        coupling: "affine" or "additive".
        scale: of affine couplings, as for :func:`dgm_fast.functional.affine_coupling`. The paper's code
            has "sigmoid2", whose inverse may be large far from the data.
        logit_alpha: data are in [0, 1] and go through the logit first, that far from their ends; None takes
            them as they are, as the paper does.
        context_dim: size of the context of a conditional density p(x | c), which all networks hear.
        reversible: compute activations from outputs in backward: memory does not grow with ``num_steps``,
            and a training step takes about a third longer.

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018); CIFAR-10
    there has L = 3, K = 32 and 512 channels.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        num_levels: int = 2,
        num_steps: int = 8,
        channels: int = 64,
        coupling: str = "affine",
        scale: str = "tanh",
        logit_alpha: float | None = 0.05,
        context_dim: int | None = None,
        reversible: bool = False,
    ) -> None:
        check_count("num_levels", num_levels)
        check_count("num_steps", num_steps)
        check_count("channels", channels)
        check_choice("coupling", coupling, ("affine", "additive"))
        shape = check_image_shape(image_shape)
        check_halvings(shape, num_levels, f"num_levels={num_levels}")
        network = partial(GlowNet, channels=channels, context_dim=context_dim)

        def coupled(num_channels: int, kind: str) -> ImageCoupling:
            return ImageCoupling(
                num_channels, coupling=kind, scale=scale, network=network, context_dim=context_dim
            )

        levels: list[Transform] = []
        priors: list[Transform] = []
        now = shape[0]
        for _ in range(num_levels):
            now *= 4
            parts: list[Transform] = [Squeeze()]
            for _ in range(num_steps):
                parts += [ActNorm(now), InvertibleConv1x1(now), coupled(now, coupling)]
            levels.append(stack(parts, reversible))
            if len(levels) < num_levels:
                priors.append(_prior(now, channels, context_dim))
            now //= 2
        super().__init__(
            shape,
            [MultiScale(levels, shape, priors=priors)],
            logit_alpha=logit_alpha,
            context_dim=context_dim,
        )


def _prior(num_channels: int, channels: int, context_dim: int | None) -> ImageCoupling:
    """Mean and scale of the half that leaves, from the half that stays."""
    return ImageCoupling(num_channels, channels=channels, num_blocks=0, context_dim=context_dim)
