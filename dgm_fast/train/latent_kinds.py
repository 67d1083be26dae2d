"""The latent-variable models as trainable kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast.data import Dataset
from dgm_fast.functional.latent import ESTIMATORS
from dgm_fast.models import GMVAE, IWAE, VAE, BetaVAE
from dgm_fast.train.options import Option, declare
from dgm_fast.train.registry import Figures, ModelKind, register


def data_marginals(dataset: Dataset) -> Tensor:
    """Mean of the training rows [D], or the class frequencies [C, D] of categorical ones."""
    if dataset.likelihood != "categorical":
        return dataset.train.float().mean(0)
    assert dataset.num_classes is not None
    counts = torch.stack([(dataset.train == level).sum(0) for level in range(dataset.num_classes)])
    return counts.float() / len(dataset.train)


_ELBO_SAMPLES = 10

declare(
    Option(
        "decoder_variance",
        "Of the Gaussian likelihood.",
        str,
        choices=("unit", "shared", "full"),
    ),
    Option(
        "fused_head",
        "Do not store large decoder logits: less memory, the same numbers.",
        bool,
    ),
    Option("num_samples", "Posterior samples K.", int, minimum=1),
    Option("estimator", "Gradients.", str, choices=ESTIMATORS),
    Option("beta", "Weight of the divergence.", float, minimum=0),
    Option("learn_weights", "Learn the mixture's weights.", bool),
)

_LATENT_OPTIONS: dict[str, Any] = {
    "latent_dim": 32,
    "hidden_sizes": (200, 200),
    "decoder_variance": None,
    "fused_head": False,
}
# Of real values; others have none.
_STANDS_FOR = {"decoder_variance": "shared"}


def _build_latent(model_class: type[VAE]) -> Callable[[Dataset, Mapping[str, Any]], nn.Module]:
    def build(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
        chosen = dict(options)
        if chosen["decoder_variance"] is None:
            # With unit variance the likelihood of data in [0, 1] says next to nothing.
            gaussian = dataset.likelihood == "gaussian"
            chosen["decoder_variance"] = "shared" if gaussian else "unit"
        model = model_class(
            dataset.num_dims,
            likelihood=dataset.likelihood,
            num_classes=dataset.num_classes,
            **chosen,
        )
        model.init_output_bias(data_marginals(dataset))
        return model

    return build


def _test_latent(model: VAE, x: Tensor, num_samples: int) -> Figures:
    # One posterior sample gives a noisy figure (standard deviations of 20 nats a row are common).
    elbos = torch.stack([model.elbo(x) for _ in range(_ELBO_SAMPLES)])
    return {"nll": -model.log_prob(x, num_samples), "negative_elbo": -elbos.mean(0)}


def _validate_beta_vae(model: BetaVAE, x: Tensor) -> Figures:
    # Selecting the epoch by the plain bound would undo what beta asks for.
    return {"loss": model.loss(x).expand(len(x)), "nll": -model.elbo(x)}


register(
    ModelKind(
        "vae",
        "variational autoencoder, trained on the ELBO",
        _LATENT_OPTIONS,
        _build_latent(VAE),
        lambda model, x: {"nll": -model.elbo(x)},
        _test_latent,
        stands_for=_STANDS_FOR,
    )
)
register(
    ModelKind(
        "beta-vae",
        "VAE with a weighted divergence",
        {**_LATENT_OPTIONS, "beta": 4.0},
        _build_latent(BetaVAE),
        _validate_beta_vae,
        _test_latent,
        stands_for=_STANDS_FOR,
    )
)
register(
    ModelKind(
        "iwae",
        "importance-weighted autoencoder, trained on the K-sample bound",
        {**_LATENT_OPTIONS, "num_samples": 5, "estimator": "iwae"},
        _build_latent(IWAE),
        lambda model, x: {"nll": -model.iwae_bound(x)},
        _test_latent,
        stands_for=_STANDS_FOR,
    )
)
register(
    ModelKind(
        "gmvae",
        "VAE with a mixture of Gaussians as its prior",
        {
            **_LATENT_OPTIONS,
            "num_components": 500,
            "learn_weights": False,
            "num_samples": 1,
            "estimator": "dreg",
        },
        _build_latent(GMVAE),
        lambda model, x: {"nll": -model.iwae_bound(x)},
        _test_latent,
        stands_for=_STANDS_FOR,
    )
)
