"""Base of the flows on images, and the parts they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dgm_fast.models._inputs import check_count
from dgm_fast.models.flow import Flow
from dgm_fast.nn import (
    ActNorm,
    Compose,
    ImageCoupling,
    LogitTransform,
    MultiScale,
    ReversibleCompose,
    Squeeze,
    StandardNormal,
    Transform,
)

ImageShape = tuple[int, int, int]


class ImageFlow(Flow):
    """Transforms of images into standard normals of the same shape.

    Images are [B, C, H, W], or [B, D] with as many entries. ``log_prob`` and what follows from it are
    those of real-valued pixels; :class:`dgm_fast.models.Dequantized` makes a model of levels of it.

    Args:
        image_shape: (channels, height, width), or (height, width) for one channel.
        transforms: the one nearest to the data first.
        logit_alpha: alpha of the :class:`dgm_fast.nn.LogitTransform` that takes data in [0, 1] to the real
            line; None for data that are real already.
        context_dim: size of the context of a conditional density p(x | c).
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        transforms: Iterable[Transform],
        *,
        logit_alpha: float | None,
        context_dim: int | None = None,
    ) -> None:
        shape = check_image_shape(image_shape)
        super().__init__(
            [*before(logit_alpha), *transforms], StandardNormal(shape), context_dim=context_dim
        )
        self.image_shape = shape


def before(logit_alpha: float | None) -> list[Transform]:
    """What comes before the first level."""
    return [] if logit_alpha is None else [LogitTransform(logit_alpha)]


def check_image_shape(image_shape: Sequence[int]) -> ImageShape:
    """(channels, height, width) of ``image_shape``, in which a single channel may be left out."""
    sizes = tuple(image_shape)
    if len(sizes) == 2:
        sizes = (1, *sizes)
    if len(sizes) != 3 or not all(isinstance(s, int) and s >= 1 for s in sizes):
        raise ValueError(
            f"image_shape must be (channels, height, width) or (height, width), got {tuple(image_shape)}"
        )
    return sizes  # type: ignore[return-value]


def check_halvings(shape: ImageShape, count: int, what: str) -> None:
    """Raise unless height and width can be halved so often."""
    factor = 2**count
    if shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"image_shape {shape} cannot be halved {count} times, as {what} asks for: height and width "
            f"must be multiples of {factor}. Pad the images, or take fewer levels"
        )


def stack(transforms: list[Transform], reversible: bool) -> Transform:
    return (ReversibleCompose if reversible else Compose)(transforms)


def real_nvp_transforms(
    image_shape: Sequence[int],
    *,
    num_levels: int = 2,
    channels: int = 32,
    num_blocks: int = 2,
    scale: str = "tanh",
    clamp: float = 2.0,
    context_dim: int | None = None,
    reversible: bool = False,
) -> list[Transform]:
    """RealNVP's architecture for images.

    Each level but the last: three couplings on checkerboards, a squeeze, three on channels, and half of the
    channels leave; the last: four on checkerboards. Networks have twice the channels on each next level. An
    :class:`ActNorm` before each coupling takes the place of the paper's batch normalisation.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017), sections 3.6
    and 4.1.
    """
    shape = check_image_shape(image_shape)
    check_count("num_levels", num_levels)
    check_halvings(shape, num_levels - 1, f"num_levels={num_levels}")
    check_even_width(shape[2] >> (num_levels - 1), shape)

    def couplings(num_channels: int, mask: str, count: int, level: int) -> list[Transform]:
        found: list[Transform] = []
        for i in range(count):
            found += [
                ActNorm(num_channels),
                ImageCoupling(
                    num_channels,
                    mask,
                    flip=i % 2 == 1,
                    scale=scale,
                    clamp=clamp,
                    channels=channels << level,
                    num_blocks=num_blocks,
                    context_dim=context_dim,
                ),
            ]
        return found

    levels: list[Transform] = []
    now = shape[0]
    for level in range(num_levels - 1):
        first = couplings(now, "checkerboard", 3, level)
        second = couplings(4 * now, "channel", 3, level)
        levels.append(stack([*first, Squeeze(), *second], reversible))
        now *= 2
    levels.append(stack(couplings(now, "checkerboard", 4, num_levels - 1), reversible))
    return [MultiScale(levels, shape)]


def check_even_width(width: int, shape: ImageShape) -> None:
    """Raise unless a checkerboard fits."""
    if width % 2:
        raise ValueError(
            f"image_shape {shape} comes to the odd width {width}, which a checkerboard cannot split: pad "
            "the images, or take other levels"
        )
