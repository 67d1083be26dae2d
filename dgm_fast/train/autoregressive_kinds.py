"""The autoregressive models on vectors as trainable kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast.data import DataError, Dataset
from dgm_fast.models import FVSBN, MADE, NADE, RNADE, CategoricalNADE, Dequantized
from dgm_fast.models.rnade import MIXTURES
from dgm_fast.nn.made import ORDERS
from dgm_fast.train.dequantize import (
    bound_figures,
    check_binary,
    density_levels,
    sampled_figures,
)
from dgm_fast.train.latent_kinds import data_marginals
from dgm_fast.train.options import Option, declare
from dgm_fast.train.registry import Figures, ModelKind, register

declare(
    Option("mixture", "Of a dimension's conditional.", str, choices=MIXTURES),
    Option("order", "Of the dimensions.", str, choices=ORDERS),
    Option("num_masks", "Masks that the weights share.", int, minimum=1),
)


def exact_figures(model: Any, x: Tensor, *_: Any) -> Figures:
    """Of a model whose likelihood needs no samples."""
    return {"nll": model.nll(x)}


def _binary(dataset: Dataset, kind: str) -> None:
    if dataset.likelihood != "bernoulli":
        raise DataError(
            f"{dataset.name}: {kind} needs binary rows, got {dataset.description or 'others'} "
            f"({dataset.likelihood} likelihood); --binarize makes grey levels binary"
        )
    check_binary(dataset, kind)


def _build_fvsbn(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
    _binary(dataset, "fvsbn")
    model = FVSBN(dataset.num_dims)
    model.init_output_bias(data_marginals(dataset))
    return model


def _build_nade(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
    _binary(dataset, "nade")
    model = NADE(dataset.num_dims, options["hidden_size"])
    model.init_output_bias(data_marginals(dataset))
    return model


def _build_categorical_nade(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
    if dataset.likelihood != "categorical":
        raise DataError(
            f"{dataset.name}: nade-categorical needs classes or grey levels, got the "
            f"{dataset.likelihood} likelihood"
        )
    assert dataset.num_classes is not None
    model = CategoricalNADE(dataset.num_dims, options["hidden_size"], dataset.num_classes)
    model.init_output_bias(data_marginals(dataset))
    return model


def _build_rnade(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
    levels = density_levels(dataset, "rnade")
    density = RNADE(
        dataset.num_dims, options["hidden_size"], options["num_mixtures"], options["mixture"]
    ).to(dataset.train.device)
    rows = dataset.batch(torch.arange(len(dataset.train), device=dataset.train.device))
    if levels is None:
        density.standardize(rows)
        return density
    dtype = torch.float32 if dataset.likelihood == "bernoulli" else None
    model = Dequantized(density, levels, dtype=dtype)
    density.standardize(model.dequantize(rows))
    return model


def _build_made(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
    if dataset.likelihood == "bernoulli":
        check_binary(dataset, "made")
    elif dataset.likelihood == "gaussian":
        # Refuses columns of one value.
        density_levels(dataset, "made")
    model = MADE(
        dataset.num_dims,
        options["hidden_sizes"],
        likelihood=dataset.likelihood,
        num_classes=dataset.num_classes,
        order=options["order"],
        num_masks=options["num_masks"],
    )
    model.init_output_bias(data_marginals(dataset))
    return model


register(
    ModelKind(
        "fvsbn",
        "fully visible sigmoid belief network: a logistic regression a dimension",
        {},
        _build_fvsbn,
        exact_figures,
        exact_figures,
        exact=True,
    )
)
register(
    ModelKind(
        "nade",
        "neural autoregressive density estimator of binary data",
        {"hidden_size": 500},
        _build_nade,
        exact_figures,
        exact_figures,
        exact=True,
    )
)
register(
    ModelKind(
        "nade-categorical",
        "neural autoregressive density estimator of classes or grey levels",
        {"hidden_size": 500},
        _build_categorical_nade,
        exact_figures,
        exact_figures,
        exact=True,
    )
)
register(
    ModelKind(
        "rnade",
        "neural autoregressive density estimator of real values: a mixture a dimension",
        {"hidden_size": 100, "num_mixtures": 10, "mixture": "gaussian"},
        _build_rnade,
        bound_figures,
        sampled_figures,
    )
)
register(
    ModelKind(
        "made",
        "masked autoencoder: all conditionals from one network, in one order or several",
        {"hidden_sizes": (500,), "order": "natural", "num_masks": 1},
        _build_made,
        exact_figures,
        exact_figures,
        exact=True,
    )
)
