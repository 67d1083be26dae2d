"""The training steps that are timed."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast import reference
from dgm_fast.perf import plain
from dgm_fast.perf.image_flow_steps import IMAGE_FLOW_STEPS
from dgm_fast.perf.step import StepCase


def iwae_step(
    label: str,
    num_dims: int,
    latent_dim: int,
    hidden_sizes: tuple[int, ...],
    num_samples: int,
    batch_size: int,
    likelihood: str,
    num_classes: int | None,
    data_variable: str = "",
) -> StepCase:
    """A step of an IWAE; ``data_variable`` as for :func:`binary_rows`."""

    def model() -> nn.Module:
        from dgm_fast.models import IWAE

        return IWAE(
            num_dims,
            latent_dim,
            hidden_sizes=hidden_sizes,
            likelihood=likelihood,
            num_classes=num_classes,
            num_samples=num_samples,
        )

    def data(generator: torch.Generator) -> tuple[Tensor, str]:
        if num_classes is None:
            return binary_rows(batch_size, num_dims, generator, data_variable)
        x = torch.randint(0, num_classes, (batch_size, num_dims), generator=generator)
        return x * (torch.rand(x.shape, generator=generator) < 0.5), "synthetic"

    return StepCase(
        label,
        "iwae_step",
        likelihood,
        (batch_size, num_samples, num_dims, latent_dim),
        model,
        data,
        noise_shape=(batch_size, num_samples, latent_dim),
    )


def gmvae_step(
    label: str,
    num_dims: int,
    latent_dim: int,
    num_components: int,
    num_samples: int,
    batch_size: int,
    data_variable: str = "",
) -> StepCase:
    """A step of a GMVAE; its rivals have the mixture's square expanded into matrix products."""

    def model() -> nn.Module:
        from dgm_fast.models import GMVAE

        return GMVAE(
            num_dims,
            latent_dim,
            num_components=num_components,
            num_samples=num_samples,
            activation=nn.ELU,
        )

    return StepCase(
        label,
        "gmvae_step",
        "bernoulli",
        (batch_size, num_samples, num_dims, latent_dim, num_components),
        model,
        lambda generator: binary_rows(batch_size, num_dims, generator, data_variable),
        noise_shape=(batch_size, num_samples, latent_dim),
        plain=_expanded_prior,
    )


def made_step(
    label: str, num_dims: int, hidden_sizes: tuple[int, ...], batch_size: int
) -> StepCase:
    """A step of a binary MADE; its rivals multiply each weight by a mask that they keep."""

    def model() -> nn.Module:
        from dgm_fast.models import MADE

        return MADE(num_dims, hidden_sizes)

    return StepCase(
        label,
        "made_step",
        "bernoulli",
        (batch_size, num_dims, *hidden_sizes),
        model,
        lambda generator: binary_rows(batch_size, num_dims, generator, "DGM_FAST_MNIST"),
        plain=_masked_weights,
    )


def _masked_weights(model: Any) -> None:
    for layer in model.network.layers:
        degrees = (layer.sorted_in_degrees, layer.sorted_out_degrees)
        mask = reference.degree_mask(*degrees, strict=layer.strict).to(layer.weight.dtype)
        layer.register_buffer("mask", mask, persistent=False)
        layer.forward = MethodType(_masked_forward, layer)


def _masked_forward(layer: Any, x: Tensor) -> Tensor:
    return plain.masked_linear(x, layer.weight, layer.bias, layer.mask)


def nsf_step(
    label: str, num_dims: int, num_layers: int, hidden_size: int, num_bins: int, batch_size: int
) -> StepCase:
    """A step of a neural spline flow of couplings; its rivals have the spline's bins unrolled."""

    def model() -> nn.Module:
        from dgm_fast.models import NSF

        return NSF(num_dims, num_layers=num_layers, hidden_size=hidden_size, num_bins=num_bins)

    def in_nflows(model: nn.Module) -> Any:
        from dgm_fast.perf.flow_models import NFlows

        return NFlows(model)

    def make_plain(model: nn.Module) -> None:
        from dgm_fast.perf.flow_models import make_plain

        make_plain(model)

    return StepCase(
        label,
        "nsf_step",
        "coupling",
        (batch_size, num_dims, num_layers, hidden_size, num_bins),
        model,
        lambda generator: (torch.randn(batch_size, num_dims, generator=generator), "synthetic"),
        plain=make_plain,
        peers={"nflows": in_nflows} if importlib.util.find_spec("nflows") else {},
    )


def gated_pixel_cnn_step(
    label: str, channels: int, num_layers: int, side: int, batch_size: int, *, cropped: bool
) -> StepCase:
    """A step of a Gated PixelCNN of bits.

    Its rivals multiply kernels by masks, as is usual, or with ``cropped`` cut kernels down to the live
    taps, as a good user can for data of one channel. They keep the model's memory format, the better one
    for them.
    """

    def model() -> nn.Module:
        from dgm_fast.models import GatedPixelCNN

        return GatedPixelCNN(num_levels=2, channels=channels, num_layers=num_layers)

    def make_plain(model: nn.Module) -> None:
        from dgm_fast.perf import pixel_models

        (pixel_models.crop if cropped else pixel_models.mask)(model)

    def data(generator: torch.Generator) -> tuple[Tensor, str]:
        rows, source = binary_rows(batch_size, side * side, generator, "")
        return rows.view(batch_size, 1, side, side), source

    return StepCase(
        label,
        "gated_pixel_cnn_step",
        "bernoulli",
        (batch_size, 1, side, side, channels, num_layers),
        model,
        data,
        plain=make_plain,
    )


def binary_rows(
    count: int, size: int, generator: torch.Generator, data_variable: str
) -> tuple[Tensor, str]:
    """Rows of bits [count, size], and "file" or "synthetic".

    ``data_variable`` is the environment variable that names an .npz file with packed binary rows
    ``train``. Synthetic data of like density stands in: the time of a step does not depend on it.
    """
    path = os.environ.get(data_variable, "") if data_variable else ""
    if not path:
        return (torch.rand((count, size), generator=generator) < 0.13).float(), "synthetic"
    import numpy as np

    with np.load(Path(path)) as arrays:
        bits = np.unpackbits(arrays["train"][:count], axis=1)
    if bits.shape != (count, size):
        raise ValueError(
            f"{data_variable} must hold rows of {size} packed bits, "
            f"got {bits.shape[1]} for {len(bits)} rows"
        )
    return torch.from_numpy(bits).float(), "file"


def _expanded_prior(model: Any) -> None:
    def log_prior(z: Tensor) -> Tensor:
        logits = z.new_zeros(model.num_components)
        flat = z.flatten(0, -2)
        log_prob = plain.gaussian_mixture(flat, model.prior_means, model.prior_log_vars, logits)
        return log_prob.view(z.shape[:-1])

    model.log_prior = log_prior


STEPS = (
    iwae_step("digits", 64, 32, (200,), 50, 100, "categorical", 17),
    iwae_step("mnist", 784, 50, (200, 200), 50, 20, "bernoulli", None, "DGM_FAST_MNIST"),
    gmvae_step("mnist", 784, 10, 500, 10, 100, "DGM_FAST_MNIST"),
    made_step("mnist", 784, (500,), 64),
    gated_pixel_cnn_step("mnist", 128, 10, 28, 16, cropped=False),
    gated_pixel_cnn_step("mnist-cropped", 128, 10, 28, 16, cropped=True),
    made_step("mnist-wide", 784, (8000, 8000), 100),
    nsf_step("miniboone", 43, 10, 256, 8, 512),
    *IMAGE_FLOW_STEPS,
)
