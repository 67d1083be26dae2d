"""Flows of images as trainable kinds: on real values, or on dequantised levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from dgm_fast.data import DataError, Dataset
from dgm_fast.models import Dequantized, Flow, FlowPP, Glow, RealNVP, VariationalDequantizer
from dgm_fast.models._image_flow import check_image_shape
from dgm_fast.train.dequantize import bound_figures, density_levels, sampled_figures
from dgm_fast.train.options import Option, declare
from dgm_fast.train.registry import ModelKind, register

DEQUANTIZATIONS = ("uniform", "variational")

declare(
    Option("num_levels", "Scales of images.", int, minimum=1),
    Option("num_steps", "Steps of each scale.", int, minimum=1),
    Option("dequantization", "Of images: noise on levels.", str, choices=DEQUANTIZATIONS),
    Option(
        "reversible",
        "Of images: memory does not grow with depth; slower by a third.",
        bool,
    ),
)

# A network of convolutions an importance sample: fewer samples than of other models.
_DEFAULTS = {"lr": 1e-3, "clip_norm": 50.0, "eval_samples": 20}
# Arguments of the models.
REAL_NVP = ("num_levels", "channels", "num_blocks", "reversible")
_GLOW: dict[str, Any] = {"num_levels": 2, "num_steps": 8, "channels": 64, "reversible": False}
_FLOWPP: dict[str, Any] = {
    "num_mixtures": 8,
    "channels": 32,
    "num_blocks": 2,
    "reversible": False,
}


def fits_images(dataset: Dataset, num_levels: int) -> bool:
    """Whether the rows are images that :class:`RealNVP` can halve so often and split."""
    if dataset.image_shape is None:
        return False
    factor = 2**num_levels
    return all(size % factor == 0 for size in dataset.image_shape[-2:])


def _image_shape(dataset: Dataset, kind: str) -> tuple[int, int, int]:
    if dataset.image_shape is None:
        raise DataError(f"{dataset.name}: rows are not images, which {kind} needs")
    return check_image_shape(dataset.image_shape)


def image_model(
    dataset: Dataset,
    kind: str,
    dequantization: str,
    make: Callable[[tuple[int, int, int], bool], Flow],
) -> nn.Module:
    """``make(image_shape, whether data are in [0, 1])`` on a data set, of levels through Dequantized.

    Raises:
        DataError: if rows are not images, or a density has no meaningful likelihood on them.
    """
    if dequantization not in DEQUANTIZATIONS:
        raise ValueError(f"dequantization must be one of {DEQUANTIZATIONS}, got {dequantization!r}")
    shape = _image_shape(dataset, kind)
    levels = density_levels(dataset, kind)
    if levels is None:
        return make(shape, False)
    dequantizer = None
    if dequantization == "variational":
        dequantizer = VariationalDequantizer(shape, levels)
    dtype = torch.float32 if dataset.likelihood == "bernoulli" else None
    return Dequantized(make(shape, True), levels, dtype=dtype, dequantizer=dequantizer)


def build_real_nvp(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
    """RealNVP with convolutions."""

    def make(shape: tuple[int, int, int], unit_interval: bool) -> Flow:
        chosen = {name: options[name] for name in REAL_NVP}
        return RealNVP(shape, logit_alpha=0.05 if unit_interval else None, **chosen)

    return image_model(dataset, "realnvp", options["dequantization"] or "uniform", make)


def _build_glow(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
    chosen = {name: options[name] for name in _GLOW}

    def make(shape: tuple[int, int, int], unit_interval: bool) -> Flow:
        return Glow(shape, logit_alpha=0.05 if unit_interval else None, **chosen)

    return image_model(dataset, "glow", options["dequantization"], make)


def _build_flowpp(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
    chosen = {name: options[name] for name in _FLOWPP}

    def make(shape: tuple[int, int, int], unit_interval: bool) -> Flow:
        return FlowPP(shape, logit_alpha=0.05 if unit_interval else None, **chosen)

    return image_model(dataset, "flowpp", options["dequantization"], make)


register(
    ModelKind(
        "glow",
        "flow of images with invertible 1x1 convolutions",
        {**_GLOW, "dequantization": "uniform"},
        _build_glow,
        bound_figures,
        sampled_figures,
        defaults=_DEFAULTS,
    )
)
register(
    ModelKind(
        "flowpp",
        "flow of images with couplings by mixtures of logistics",
        {**_FLOWPP, "dequantization": "variational"},
        _build_flowpp,
        bound_figures,
        sampled_figures,
        defaults=_DEFAULTS,
    )
)
