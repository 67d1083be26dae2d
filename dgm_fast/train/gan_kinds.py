"""The adversarial models as trainable kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast.data import DataError, Dataset
from dgm_fast.functional.adversarial import DIVERGENCES, FORMS, KINDS
from dgm_fast.metrics import precision_recall, sliced_wasserstein_distance
from dgm_fast.models import (
    FGAN,
    GAN,
    KLGAN,
    WGAN,
    WGANGP,
    ConditionalGAN,
    NonSaturatingGAN,
)
from dgm_fast.models._adversarial import AdversarialModel
from dgm_fast.train.adversarial_step import AdversarialStep
from dgm_fast.train.config import TrainConfig
from dgm_fast.train.options import Option, declare
from dgm_fast.train.registry import ModelKind, register

# The figures of a comparison of samples with data.
DISTANCES = ("sliced_wasserstein", "precision", "recall")

declare(
    Option("num_critic_steps", "Discriminator updates for each of the generator.", int, minimum=1),
    Option("average_decay", "Of the generator's moving average.", float, minimum=0, below=1),
    Option("loss_kind", "Of both networks.", str, choices=KINDS),
    Option("clip", "Bound of the weights.", float, minimum=0, above=True),
    Option("weight", "Of the penalty.", float, minimum=0),
    Option("divergence", "Between data and samples.", str, choices=DIVERGENCES),
    Option("form", "Of the generator's loss.", str, choices=FORMS),
)

_OPTIONS: dict[str, Any] = {
    "latent_dim": 64,
    "hidden_sizes": (256, 256),
    "channels": 64,
    "architecture": None,
    "num_critic_steps": None,
    "average_decay": 0.999,
}
# The optimizer of each paper: Radford et al. 2016 (section 3), Arjovsky et al. 2017 and Gulrajani et al.
# 2017 (algorithm 1 of both).
_ADAM_BETAS = (0.5, 0.999)
_PENALTY_BETAS = (0.0, 0.9)


def _build(
    model_class: type[AdversarialModel],
) -> Callable[[Dataset, Mapping[str, Any]], nn.Module]:
    def build(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
        chosen = {k: v for k, v in options.items() if k != "num_critic_steps"}
        shape: dict[str, Any] = {"num_dims": dataset.num_dims}
        if dataset.image_shape is not None:
            shape = {"image_shape": dataset.image_shape}
        if issubclass(model_class, ConditionalGAN):
            if dataset.num_labels is None:
                raise DataError(
                    f"{dataset.name}: has no labels; a conditional model needs digits, mnist, or a "
                    "folder of images with a subfolder for each class"
                )
            chosen["num_classes"] = dataset.num_labels
        model = model_class(**shape, data_range=_data_range(dataset), **chosen)
        if options["num_critic_steps"] is not None:
            model.num_critic_steps = options["num_critic_steps"]
        return model

    return build


def _data_range(dataset: Dataset) -> tuple[float, float] | None:
    """What samples are bounded to: levels and pixels have a range, other real values have none."""
    if dataset.likelihood == "bernoulli":
        return 0.0, 1.0
    if dataset.num_classes is not None:
        return 0.0, dataset.num_classes - 1.0
    if dataset.image_shape is None:
        return None
    low, high = dataset.train.min().item(), dataset.train.max().item()
    if low == high:
        raise DataError(f"{dataset.name}: all training values are {low}")
    return low, high


def _compare(model: AdversarialModel, x: Tensor) -> dict[str, float]:
    """Distances between the rows x and as many samples."""
    real = x.flatten(1).float()
    fake = model.sample(len(real)).flatten(1).float()
    figures = {"sliced_wasserstein": sliced_wasserstein_distance(real, fake).item()}
    if len(real) > 3:
        figures |= precision_recall(real, fake)._asdict()
    return figures


def _adam(betas: tuple[float, float]) -> Callable[[AdversarialModel, TrainConfig], AdversarialStep]:
    def make(model: AdversarialModel, config: TrainConfig) -> AdversarialStep:
        return AdversarialStep(
            model,
            torch.optim.Adam(model.discriminator.parameters(), config.lr, betas, fused=True),
            torch.optim.Adam(model.generator.parameters(), config.lr, betas, fused=True),
        )

    return make


def _rmsprop(model: AdversarialModel, config: TrainConfig) -> AdversarialStep:
    return AdversarialStep(
        model,
        torch.optim.RMSprop(model.discriminator.parameters(), config.lr),
        torch.optim.RMSprop(model.generator.parameters(), config.lr),
    )


def _register(
    name: str,
    summary: str,
    model_class: type[AdversarialModel],
    make_step: Callable[[Any, TrainConfig], AdversarialStep],
    lr: float,
    options: Mapping[str, Any] | None = None,
) -> None:
    register(
        ModelKind(
            name,
            summary,
            {**_OPTIONS, **(options or {})},
            _build(model_class),
            compare=_compare,
            make_step=make_step,
            labelled=issubclass(model_class, ConditionalGAN),
            # The distance of one epoch to the next is noise: many epochs, and no early stop.
            defaults={"lr": lr, "epochs": 300, "patience": None},
            stands_for={"num_critic_steps": model_class.num_critic_steps},
        )
    )


_register("gan", "minimax GAN", GAN, _adam(_ADAM_BETAS), 2e-4)
_register("ns-gan", "non-saturating GAN", NonSaturatingGAN, _adam(_ADAM_BETAS), 2e-4)
_register("kl-gan", "GAN with the KL-based generator loss", KLGAN, _adam(_ADAM_BETAS), 2e-4)
_register(
    "cgan",
    "class-conditional GAN with a projection discriminator",
    ConditionalGAN,
    _adam(_ADAM_BETAS),
    2e-4,
    {"loss_kind": "non_saturating"},
)
_register("wgan", "Wasserstein GAN with weight clipping", WGAN, _rmsprop, 5e-5, {"clip": 0.01})
_register(
    "wgan-gp",
    "Wasserstein GAN with gradient penalty",
    WGANGP,
    _adam(_PENALTY_BETAS),
    1e-4,
    {"weight": 10.0},
)
_register(
    "f-gan",
    "GAN of any f-divergence",
    FGAN,
    _adam(_ADAM_BETAS),
    2e-4,
    {"divergence": "jensen_shannon", "form": "practical"},
)
