"""Gaussian mixtures as a trainable kind: by EM or by gradients, on levels or on real values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast.data import DataError, Dataset
from dgm_fast.models import Dequantized, GaussianMixture
from dgm_fast.models.gaussian_mixture import COVARIANCES
from dgm_fast.train.dequantize import (
    bound_figures,
    density_levels,
    sampled_figures,
)
from dgm_fast.train.options import Option, declare
from dgm_fast.train.registry import ModelKind, register

FITS = ("em", "gradient")

declare(
    Option("covariance", "Of the components.", str, choices=COVARIANCES),
    Option(
        "fit",
        "Expectation-maximisation, an iteration an epoch, or gradient steps.",
        str,
        choices=FITS,
    ),
)

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


def _build(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
    levels = density_levels(dataset, "gmm")
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


register(
    ModelKind(
        "gmm",
        "mixture of Gaussians, fitted by EM or by gradients",
        {"num_components": 20, "covariance": "diagonal", "fit": "em"},
        _build,
        bound_figures,
        sampled_figures,
        lambda model, options: EMStep(model) if options["fit"] == "em" else None,
    )
)
