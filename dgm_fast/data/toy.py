"""Densities in the plane, drawn from a fixed seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dgm_fast.data.dataset import Dataset

_SIZES = (10000, 2000, 2000)
# The rows belong to the data set, not to a run.
_SEED = 20160927

# Distance of the modes from the origin, and their standard deviation, of Metz et al. 2017.
EIGHT_GAUSSIANS_RADIUS = 2.0
EIGHT_GAUSSIANS_SCALE = 0.02**0.5


def eight_gaussian_means() -> Tensor:
    """Means of the eight modes, [8, 2]."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return (EIGHT_GAUSSIANS_RADIUS * torch.stack([angle.cos(), angle.sin()], 1)).float()


def _eight_gaussians(n: int, generator: torch.Generator) -> Tensor:
    mode = torch.randint(8, (n,), generator=generator)
    noise = torch.randn(n, 2, generator=generator)
    return eight_gaussian_means()[mode] + EIGHT_GAUSSIANS_SCALE * noise


def _moons(n: int, generator: torch.Generator) -> Tensor:
    # Two half circles of radius 1 with Gaussian noise, as scikit-learn's make_moons.
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.rand(n, generator=generator) < 0.5
    points = torch.stack(
        [
            torch.where(upper, angle.cos(), 1 - angle.cos()),
            torch.where(upper, angle.sin(), 0.5 - angle.sin()),
        ],
        1,
    )
    return points + 0.1 * torch.randn(n, 2, generator=generator)


def _checkerboard(n: int, generator: torch.Generator) -> Tensor:
    # Eight of sixteen unit squares of [-2, 2]^2.
    cell = torch.randint(8, (n,), generator=generator)
    column, row = cell % 4, 2 * (cell // 4) + cell % 2  # their sum is even
    corner = torch.stack([column, row], 1).float() - 2
    return corner + torch.rand(n, 2, generator=generator)


TOYS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "eight-gaussians": _eight_gaussians,
    "moons": _moons,
    "checkerboard": _checkerboard,
}


def load_toy(name: str) -> Dataset:
    """One of "eight-gaussians", "moons" and "checkerboard": 10000 train, 2000 validation, 2000 test points.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in TOYS:
        raise ValueError(f"name must be one of {tuple(TOYS)}, got {name!r}")
    generator = torch.Generator().manual_seed(_SEED)
    train, valid, test = (TOYS[name](n, generator) for n in _SIZES)
    return Dataset(name, train, valid, test, "gaussian", description="points in the plane")
