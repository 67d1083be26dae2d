"""Flows as trainable kinds: on real values, or on dequantised levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from dgm_fast.data import Dataset
from dgm_fast.models import IAF, MAF, NSF, RealNVP
from dgm_fast.models._vector_flow import VectorFlow
from dgm_fast.models.nsf import KINDS
from dgm_fast.models.realnvp import OF_IMAGES, OF_VECTORS
from dgm_fast.train.dequantize import (
    Dequantized,
    bound_figures,
    density_levels,
    sampled_figures,
)
from dgm_fast.train.image_flow_kinds import REAL_NVP, build_real_nvp, fits_images
from dgm_fast.train.options import Option, declare
from dgm_fast.train.registry import ModelKind, register

declare(
    Option("flow_kind", "Of the transforms.", str, choices=KINDS),
    Option("num_bins", "Bins of a spline.", int, minimum=2),
    Option(
        "tail_bound", "Standard deviations within which splines bend.", float, minimum=0, above=True
    ),
)

# Of Durkan et al. (2019), appendix B.1, whose steps are clipped too.
_DEFAULTS = {"lr": 5e-4, "clip_norm": 5.0}


def fitted(flow: VectorFlow, dataset: Dataset, kind: str) -> nn.Module:
    """The flow on standardised rows of a data set, of levels through :class:`Dequantized`.

    Raises:
        DataError: if a density has no meaningful likelihood on the data.
    """
    levels = density_levels(dataset, kind)
    flow = flow.to(dataset.train.device)
    rows = dataset.batch(torch.arange(len(dataset.train), device=dataset.train.device))
    if levels is None:
        flow.standardize(rows)
        return flow
    dtype = torch.float32 if dataset.likelihood == "bernoulli" else None
    model = Dequantized(flow, levels, dtype=dtype)
    flow.standardize(model.dequantize(rows))
    return model


def _build_realnvp(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
    architecture = options["architecture"]
    of_vectors = {name: options[name] for name in ("num_layers", "hidden_sizes")}
    if architecture is None:
        convolutions = all(value is None for value in of_vectors.values())
        convolutions = convolutions and fits_images(dataset, options["num_levels"] or 2)
        architecture = "conv" if convolutions else "mlp"
    if architecture not in ("conv", "mlp"):
        raise ValueError(f"architecture must be conv or mlp, got {architecture!r}")
    if architecture == "mlp":
        if options["dequantization"] == "variational":
            raise ValueError("variational dequantization is for the architecture conv")
        # Those of images are refused by name.
        of_images = {name: options[name] for name in REAL_NVP}
        return fitted(RealNVP(dataset.num_dims, **of_vectors, **of_images), dataset, "realnvp")
    if any(value is not None for value in of_vectors.values()):
        raise ValueError("num_layers and hidden_sizes are for the architecture mlp")
    return build_real_nvp(dataset, options)


def _build_nsf(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
    flow = NSF(
        dataset.num_dims,
        kind=options["flow_kind"],
        num_layers=options["num_layers"],
        hidden_size=options["hidden_size"],
        num_blocks=options["num_blocks"],
        num_bins=options["num_bins"],
        tail_bound=options["tail_bound"],
        dropout=options["dropout"],
    )
    return fitted(flow, dataset, "nsf")


def _autoregressive(
    name: str, model: type[MAF] | type[IAF]
) -> Callable[[Dataset, Mapping[str, Any]], nn.Module]:
    def build(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
        flow = model(
            dataset.num_dims,
            num_layers=options["num_layers"],
            hidden_sizes=options["hidden_sizes"],
        )
        return fitted(flow, dataset, name)

    return build


register(
    ModelKind(
        "realnvp",
        "flow of affine couplings",
        {
            "architecture": None,
            "num_layers": None,
            "hidden_sizes": None,
            **dict.fromkeys(REAL_NVP),
            "dequantization": None,
        },
        _build_realnvp,
        bound_figures,
        sampled_figures,
        defaults=_DEFAULTS,
        stands_for={**OF_VECTORS, **OF_IMAGES, "dequantization": "uniform"},
    )
)
register(
    ModelKind(
        "nsf",
        "neural spline flow: rational-quadratic splines, coupling or autoregressive",
        {
            "flow_kind": "coupling",
            "num_layers": 10,
            "hidden_size": 256,
            "num_blocks": 2,
            "num_bins": 8,
            "tail_bound": 3.0,
            "dropout": 0.0,
        },
        _build_nsf,
        bound_figures,
        sampled_figures,
        defaults=_DEFAULTS,
    )
)
register(
    ModelKind(
        "maf",
        "masked autoregressive flow: densities in one pass",
        {"num_layers": 5, "hidden_sizes": (256, 256)},
        _autoregressive("maf", MAF),
        bound_figures,
        sampled_figures,
        defaults=_DEFAULTS,
    )
)
register(
    ModelKind(
        "iaf",
        "inverse autoregressive flow: samples in one pass",
        {"num_layers": 5, "hidden_sizes": (256, 256)},
        _autoregressive("iaf", IAF),
        bound_figures,
        sampled_figures,
        defaults=_DEFAULTS,
    )
)
