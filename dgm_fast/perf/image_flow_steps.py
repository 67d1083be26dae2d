"""Training steps of flows on images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_fast.perf.step import StepCase


def glow_step(
    label: str,
    image_shape: tuple[int, int, int],
    num_levels: int,
    num_steps: int,
    channels: int,
    batch_size: int,
) -> StepCase:
    """A step of Glow; its rivals run the plain formulas."""

    def model() -> nn.Module:
        from dgm_fast.models import Glow

        return Glow(image_shape, num_levels=num_levels, num_steps=num_steps, channels=channels)

    return StepCase(
        label,
        "glow_step",
        "flow",
        (batch_size, *image_shape, num_levels, num_steps),
        model,
        lambda generator: _images(batch_size, image_shape, generator),
    )


def reversible_step(
    label: str,
    image_shape: tuple[int, int, int],
    num_layers: int,
    channels: int,
    num_blocks: int,
    batch_size: int,
) -> StepCase:
    """A step of couplings with reversible backpropagation; its rivals keep what they compute."""

    def model() -> nn.Module:
        from dgm_fast.models import Flow
        from dgm_fast.nn import ImageCoupling, LogitTransform, ReversibleCompose, StandardNormal

        couplings = [
            ImageCoupling(
                image_shape[0],
                "checkerboard",
                flip=i % 2 == 1,
                channels=channels,
                num_blocks=num_blocks,
            )
            for i in range(num_layers)
        ]
        transforms = [LogitTransform(), ReversibleCompose(couplings)]
        return Flow(transforms, StandardNormal(image_shape))

    return StepCase(
        label,
        "reversible_step",
        "flow",
        (batch_size, *image_shape, num_layers),
        model,
        lambda generator: _images(batch_size, image_shape, generator),
        plain=_ordinary,
    )


def _ordinary(model: nn.Module) -> None:
    from dgm_fast.nn import Compose, ReversibleCompose

    for module in model.modules():
        if isinstance(module, ReversibleCompose):
            module.__class__ = Compose  # type: ignore[assignment]


def _images(
    count: int, image_shape: tuple[int, int, int], generator: torch.Generator
) -> tuple[Tensor, str]:
    return torch.rand((count, *image_shape), generator=generator), "synthetic"


IMAGE_FLOW_STEPS = (
    glow_step("mnist", (1, 28, 28), 2, 4, 32, 16),
    reversible_step("3x32x32", (3, 32, 32), 32, 16, 1, 8),
)
