"""Pixel models with pronounced dependences, and what of the data their outputs see."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dgm_fast.models._pixel import PixelModel


def strong(model: PixelModel, factor: float = 1.5) -> PixelModel:
    """With weights under which pixels depend on each other."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        fan_in = max(1, parameter[0].numel())
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = factor * noise / fan_in**0.5
    return model.eval()


def some(n: int, shape: Iterable[int], levels: int, seed: int = 1) -> Tensor:
    return torch.randint(levels, (n, *shape), generator=torch.Generator().manual_seed(seed))


def seen(model: PixelModel, size: tuple[int, int]) -> Tensor:
    """Whether the outputs of (channel, pixel) change with the data of (channel, pixel), [C, D, C, D].

    A joint likelihood has one output channel a pixel.
    """
    model = model.double()
    channels, (height, width) = model.in_channels, size
    pixels = height * width
    out: Tensor | None = None
    # Several points: a ReLU may be off at one.
    for seed in range(4):
        x = some(1, (channels, height, width), model.num_levels, seed).double().requires_grad_()
        params = model.conditionals(x)
        if params.ndim == 5:
            params = params.square().sum(1)
        elif model.likelihood.joint:
            params = params.square().sum(1, keepdim=True)
        rows = [torch.autograd.grad(v, x, retain_graph=True)[0] for v in params.flatten()]
        found = (torch.stack(rows) != 0).view(-1, pixels, channels, pixels)
        out = found if out is None else out | found
    assert out is not None
    return out


def allowed(outputs: int, channels: int, before: Tensor) -> Tensor:
    """Of [outputs, D, C, D]: pixels that ``before`` [D, D] names, and earlier colours of the pixel."""
    pixels = len(before)
    own = torch.eye(pixels, dtype=torch.bool)
    earlier = torch.arange(channels) < torch.arange(outputs)[:, None]
    return before[None, :, None] | (own[None, :, None] & earlier[:, None, :, None])
