"""Cases of the coupling family."""

from __future__ import annotations

from typing import Any

import torch
from helpers.cases_likelihood import _generator, _randn
from helpers.cases_spline import both
from helpers.op_checks import OpCase
from torch import Tensor

from dgm_fast import functional, reference


def normal_inputs(*shapes: tuple[int, ...], scale: float = 1.0):
    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        return tuple(_randn(shape, dtype, scale, generator) for shape in shapes)

    return build


def _affine(id: str, shape: tuple[int, ...], *others: tuple[int, ...], **options: Any) -> OpCase:
    shapes = (shape, *(others or (shape, shape)))
    return OpCase(
        f"affine-{id}",
        "affine_coupling",
        lambda *t: both(*functional.affine_coupling(*t, **options)),
        lambda *t: both(*reference.affine_coupling(*t, **options)),
        normal_inputs(*shapes),
        (0, 1, 2),
    )


def _masked(id: str, shape: tuple[int, ...], mask_shape: tuple[int, ...], **options: Any) -> OpCase:
    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        mask = torch.rand(mask_shape, generator=torch.Generator().manual_seed(3)) < 0.5
        return (*normal_inputs(shape, shape, shape)(dtype), mask)

    return OpCase(
        f"affine-{id}",
        "affine_coupling",
        lambda x, u, t, mask: both(*functional.affine_coupling(x, u, t, mask=mask, **options)),
        lambda x, u, t, mask: both(*reference.affine_coupling(x, u, t, mask=mask, **options)),
        build,
        (0, 1, 2),
    )


def _halves(id: str, interleaved: bool, shape: tuple[int, ...], **options: Any) -> OpCase:
    """Scale and shift as a network leaves them: halves of its output, or every second channel."""

    def split(h: Tensor) -> tuple[Tensor, Tensor]:
        if interleaved:
            return h[:, 0::2], h[:, 1::2]
        first, second = h.chunk(2, 1)
        return first, second

    event_ndim = len(shape) - 1
    return OpCase(
        f"affine-{id}",
        "affine_coupling",
        lambda x, h: both(
            *functional.affine_coupling(x, *split(h), event_ndim=event_ndim, **options)
        ),
        lambda x, h: both(
            *reference.affine_coupling(x, *split(h), event_ndim=event_ndim, **options)
        ),
        normal_inputs(shape, (shape[0], 2 * shape[1], *shape[2:])),
        (0, 1),
    )


def _actnorm(id: str, shape: tuple[int, ...], inverse: bool = False) -> OpCase:
    return OpCase(
        f"actnorm-{id}",
        "actnorm",
        lambda *t: functional.actnorm(*t, inverse=inverse)[0],
        lambda *t: reference.actnorm(*t, inverse=inverse),
        normal_inputs(shape, (shape[1],), (shape[1],)),
        (0, 1, 2),
    )


CASES = [
    _affine("exp", (5, 7)),
    _affine("exp-inverse", (5, 7), inverse=True),
    *(
        _affine(f"{scale}{'-inverse' if inverse else ''}", (3, 5), inverse=inverse, scale=scale)
        for scale in ("sigmoid2", "softplus", "tanh", "atan", "softsign")
        for inverse in (False, True)
    ),
    _affine("clamp", (3, 5), scale="tanh", clamp=0.7),
    _affine("image", (2, 3, 2, 4), event_ndim=3),
    _affine("elements", (3, 5), event_ndim=0),
    _affine("tokens", (2, 3, 4), event_ndim=2, inverse=True),
    _affine("broadcast", (4, 3, 5), (3, 1), (5,), event_ndim=2),
    _affine("scalars", (4, 3), (), (), inverse=True),
    _affine("one", (1, 1)),
    _halves("halves", False, (3, 20)),
    _halves("image-halves", False, (2, 3, 4, 5), scale="sigmoid2"),
    _halves("interleaved", True, (2, 3, 4, 5), inverse=True),
    _halves("interleaved-vector", True, (3, 5)),
    _masked("checkerboard", (2, 2, 3, 4), (1, 3, 4), event_ndim=3),
    _masked("checkerboard-inverse", (2, 2, 5, 4), (1, 5, 4), event_ndim=3, inverse=True),
    _masked("channel-mask", (3, 4, 2), (4, 1), event_ndim=2),
    _actnorm("vector", (5, 7)),
    _actnorm("vector-inverse", (5, 7), inverse=True),
    _actnorm("image", (2, 3, 4, 5)),
    _actnorm("image-inverse", (3, 4, 5, 4), inverse=True),
    _actnorm("one", (1, 1)),
]

LARGE = [
    _affine("large", (129, 333), scale="tanh"),
    _affine("long", (2, 70001)),
    _halves("large-image", False, (4, 12, 16, 16), inverse=True),
    _halves("large-interleaved", True, (4, 12, 16, 17), scale="softplus"),
    _actnorm("large", (40, 12, 16, 17)),
    _actnorm("large-vector", (700, 37), inverse=True),
]
