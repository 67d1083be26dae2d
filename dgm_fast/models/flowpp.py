"""Flow++: couplings by mixtures of logistics."""

from __future__ import annotations

from collections.abc import Sequence

from dgm_fast.models._image_flow import (
    ImageFlow,
    check_even_width,
    check_halvings,
    check_image_shape,
    stack,
)
from dgm_fast.models._inputs import check_count
from dgm_fast.nn import (
    ActNorm,
    ImageCoupling,
    InvertibleConv1x1,
    MultiScale,
    Squeeze,
    Transform,
)


class FlowPP(ImageFlow):
    """Couplings whose maps are CDFs of mixtures of logistics, their logit, and an affine map.

    Four couplings on checkerboards, a squeeze, two on channels and three on checkerboards, each after an
    actnorm and (with several channels) an invertible 1x1 convolution. No half leaves on the way. The
    networks are gated residual ones without the paper's attention.

    Args:
        image_shape: (channels, height, width), or (height, width) for one channel; height even, width a
            multiple of 4.
        num_mixtures: M, components an entry.
        channels, num_blocks: of the networks.
        num_couplings: of the three groups.
        scale, clamp: of the affine maps, as for :func:`dgm_fast.functional.affine_coupling`.
        logit_alpha: data are in [0, 1] and go through the logit first, that far from their ends; None takes
            them as they are.
        context_dim: size of the context of a conditional density p(x | c), which all networks hear.
        reversible: compute activations from outputs in backward: memory does not grow with depth, and a
            training step takes about a third longer.

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: Ho, Chen, Srinivas, Duan and Abbeel, "Flow++: Improving Flow-Based Generative Models with
    Variational Dequantization and Architecture Design" (2019), section 3 and appendix; CIFAR-10 there has
    96 channels, 10 blocks and M = 32.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        num_mixtures: int = 8,
        channels: int = 32,
        num_blocks: int = 2,
        num_couplings: tuple[int, int, int] = (4, 2, 3),
        scale: str = "tanh",
        clamp: float = 2.0,
        logit_alpha: float | None = 0.05,
        context_dim: int | None = None,
        reversible: bool = False,
    ) -> None:
        shape = check_image_shape(image_shape)
        check_halvings(shape, 1, "the squeeze")
        check_even_width(shape[2] // 2, shape)
        if len(num_couplings) != 3:
            raise ValueError(f"num_couplings must hold three counts, got {num_couplings!r}")
        for i, count in enumerate(num_couplings):
            check_count(f"num_couplings[{i}]", count, at_least=0)

        def steps(num_channels: int, mask: str, count: int) -> list[Transform]:
            found: list[Transform] = []
            for i in range(count):
                found.append(ActNorm(num_channels))
                if num_channels > 1:
                    found.append(InvertibleConv1x1(num_channels))
                found.append(
                    ImageCoupling(
                        num_channels,
                        mask,
                        flip=i % 2 == 1,
                        coupling="mixture",
                        num_mixtures=num_mixtures,
                        scale=scale,
                        clamp=clamp,
                        channels=channels,
                        num_blocks=num_blocks,
                        gated=True,
                        context_dim=context_dim,
                    )
                )
            return found

        first, second, third = num_couplings
        parts = [
            *steps(shape[0], "checkerboard", first),
            Squeeze(),
            *steps(4 * shape[0], "channel", second),
            *steps(4 * shape[0], "checkerboard", third),
        ]
        super().__init__(
            shape,
            [MultiScale([stack(parts, reversible)], shape)],
            logit_alpha=logit_alpha,
            context_dim=context_dim,
        )
