"""Gaussian mixtures as a trainable kind: by EM or by gradients, on levels or on real values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.data import DataError, Dataset
from dgm_fast.models import GaussianMixture
from dgm_fast.train.dequantize import Dequantized
from dgm_fast.train.registry import Figures, ModelKind, register

FITS = ("em", "gradient")

# Of real values, in their units squared.
_MIN_VARIANCE = 1e-6


class EMStep:
    """One iteration of EM a call: a :class:`dgm_fast.train.step.TrainStep` on all training rows.

    Levels are dequantised anew each time, as a gradient step would.
    """

    def __init__(self, model: GaussianMixture | Dequantized) -> None:
        self.model = model
        self.updating = False

    def __call__(self, x: Tensor) -> Tensor:
        # Parameters change at the end of the call, and all in one go but for an interruption there.
        self.updating = True
        if isinstance(self.model, Dequantized):
            log_prob = self.model.density.em_step(
                self.model.dequantize(x), min_variance=min_variance(self.model)
            )
            return self.model.log_volume(x) - log_prob
        return -self.model.em_step(x, min_variance=min_variance(self.model))

    def end_epoch(self) -> None:
        """Nothing counts epochs here."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is none."""


def min_variance(model: GaussianMixture | Dequantized) -> float:
    """Floor of the variances in EM: that of the uniform noise, where there is any."""
    if isinstance(model, Dequantized):
        return 1.0 / (12 * model.num_levels**2)
    return _MIN_VARIANCE


def num_levels(dataset: Dataset) -> int | None:
    """Levels of discrete data, None for real values.

    Raises:
        DataError: if a Gaussian mixture has no meaningful likelihood on the data.
    """
    if dataset.likelihood == "categorical":
        return dataset.num_classes
    if dataset.likelihood == "bernoulli":
        for split, rows in dataset.splits().items():
            drawn = dataset.dynamic and split == "train"
            if rows.is_floating_point() and not drawn and bool((rows != rows.round()).any()):
                raise DataError(
                    f"{dataset.name}: {split} holds probabilities; gmm needs binary rows, grey levels "
                    "(--likelihood categorical) or real values (--likelihood gaussian)"
                )
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


def _build(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
    levels = num_levels(dataset)
    count = options["num_components"]
    if count > len(dataset.train):
        raise DataError(
            f"{dataset.name}: {count} components (--num-components) need as many training rows, got "
            f"{len(dataset.train)}"
        )
    mixture = GaussianMixture(dataset.num_dims, count, covariance=options["covariance"])
    mixture = mixture.to(dataset.train.device)
    model: GaussianMixture | Dequantized = mixture
    rows = dataset.batch(torch.arange(len(dataset.train), device=dataset.train.device))
    if levels is not None:
        dtype = torch.float32 if dataset.likelihood == "bernoulli" else None
        model = Dequantized(mixture, levels, dtype=dtype)
        rows = model.dequantize(rows)
    mixture.initialize(rows, min_variance=min_variance(model))
    return model


def _validate(model: GaussianMixture | Dequantized, x: Tensor) -> Figures:
    bound = model.elbo(x) if isinstance(model, Dequantized) else model.log_prob(x)
    return {"nll": -bound}


def _test(model: GaussianMixture | Dequantized, x: Tensor, num_samples: int) -> Figures:
    if isinstance(model, GaussianMixture):
        return {"nll": -model.log_prob(x)}
    log_weights = model.log_weights(x, num_samples)
    return {
        "nll": -functional.log_mean_exp(log_weights, 1),
        "negative_elbo": -log_weights.mean(1),
    }


register(
    ModelKind(
        "gmm",
        "mixture of Gaussians, fitted by EM or by gradients",
        {"num_components": 20, "covariance": "diagonal", "fit": "em"},
        _build,
        _validate,
        _test,
        lambda model, options: EMStep(model) if options["fit"] == "em" else None,
    )
)
