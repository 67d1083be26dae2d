"""What training asks of densities, and of those that stand for whole levels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dgm_fast import functional
from dgm_fast.data import DataError, Dataset
from dgm_fast.models import Dequantized


def check_binary(dataset: Dataset, kind: str) -> None:
    """Raise if a split of a binary data set holds probabilities that no batch turns into bits.

    Raises:
        DataError: naming the split and what ``kind`` needs.
    """
    for split, rows in dataset.splits().items():
        drawn = dataset.dynamic and split == "train"
        if rows.is_floating_point() and not drawn and bool((rows != rows.round()).any()):
            raise DataError(
                f"{dataset.name}: {split} holds probabilities; {kind} needs binary rows, grey levels "
                "(--likelihood categorical) or real values (--likelihood gaussian)"
            )


def density_levels(dataset: Dataset, kind: str) -> int | None:
    """Levels of discrete data, None for real values.

    Raises:
        DataError: if a density has no meaningful likelihood on the data.
    """
    if dataset.likelihood == "categorical":
        return dataset.num_classes
    if dataset.likelihood == "bernoulli":
        check_binary(dataset, kind)
        return 2
    constant = (dataset.train == dataset.train[0]).all(0)
    if bool(constant.any()):
        raise DataError(
            f"{dataset.name}: {int(constant.sum())} of {dataset.num_dims} dimensions have one value in "
            "all training rows: as real values their density has no bound. Grey levels are "
            "dequantised if they stay levels (without --likelihood gaussian); otherwise leave these "
            "columns out"
        )
    return None


def bound_figures(model: Any, x: Tensor) -> dict[str, Tensor]:
    """Of a density, or of the bound where it is dequantised."""
    bound = model.elbo(x) if isinstance(model, Dequantized) else model.log_prob(x)
    return {"nll": -bound}


def sampled_figures(model: Any, x: Tensor, num_samples: int) -> dict[str, Tensor]:
    if not isinstance(model, Dequantized):
        return {"nll": -model.log_prob(x)}
    log_weights = model.log_weights(x, num_samples)
    return {
        "nll": -functional.log_mean_exp(log_weights, 1),
        "negative_elbo": -log_weights.mean(1),
    }
