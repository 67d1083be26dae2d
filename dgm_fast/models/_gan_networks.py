"""Default networks of the adversarial models: fully connected, or convolutions in the style of DCGAN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

ARCHITECTURES = ("mlp", "dcgan")

# Of the leaky rectifiers of discriminators (Radford et al. 2016).
_SLOPE = 0.2


class LabelledGenerator(nn.Module):
    """A generator of (z, y): the label's embedding, of the size of z, is appended to z.

    Args:
        network: takes [B, 2 * latent_dim].
        latent_dim: size of z.
        num_classes: number of labels.
    """

    def __init__(self, network: nn.Module, latent_dim: int, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, latent_dim)
        self.network = network

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.network(torch.cat([z, self.embedding(labels)], 1))


class ProjectionDiscriminator(nn.Module):
    """D(x, y) = psi(phi(x)) + <embedding(y), phi(x)>, [B].

    Args:
        features: phi, [B, *event] -> [B, feature_dim].
        feature_dim: size of phi.
        num_classes: number of labels.
        normalize: spectral normalisation of the embedding and of psi.

    Source: Miyato & Koyama, "cGANs with projection discriminator" (2018), equation 3.
    """

    def __init__(
        self, features: nn.Module, feature_dim: int, num_classes: int, *, normalize: bool = True
    ) -> None:
        super().__init__()
        self.features = features
        self.output = nn.Linear(feature_dim, 1)
        self.embedding = nn.Embedding(num_classes, feature_dim)
        if normalize:
            spectral_norm(self.output)
            spectral_norm(self.embedding)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = self.features(x)  # [B, F]
        return self.output(h).squeeze(1) + (self.embedding(labels) * h).sum(1)


def _initialized(network: nn.Sequential) -> nn.Sequential:
    """Weights ~ N(0, 0.02^2) in convolutions, as DCGAN has them; linear layers keep PyTorch's."""
    for module in network:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


class _Crop(nn.Module):
    """The upper left corner of an image, for sizes that two doublings do not give."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.height, : self.width]

    def extra_repr(self) -> str:
        return f"{self.height}, {self.width}"


def generator_network(
    architecture: str,
    latent_dim: int,
    event_shape: Sequence[int],
    *,
    hidden_sizes: Sequence[int],
    channels: int,
    bounded: bool,
) -> nn.Sequential:
    """z [B, latent_dim] -> [B, *event_shape], in [-1, 1] where ``bounded``."""
    layers: list[nn.Module] = []
    if architecture == "mlp":
        for fan_in, fan_out in pairwise((latent_dim, *hidden_sizes)):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        layers.append(nn.Linear((latent_dim, *hidden_sizes)[-1], math.prod(event_shape)))
        if len(event_shape) > 1:
            layers.append(nn.Unflatten(1, tuple(event_shape)))
    else:
        planes, height, width = event_shape
        start = (2 * channels, math.ceil(height / 4), math.ceil(width / 4))
        layers += [
            nn.Linear(latent_dim, math.prod(start), bias=False),
            nn.Unflatten(1, start),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * channels, channels, 4, 2, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, planes, 4, 2, 1),
        ]
        if (height, width) != (4 * start[1], 4 * start[2]):
            layers.append(_Crop(height, width))
    if bounded:
        layers.append(nn.Tanh())
    return _initialized(nn.Sequential(*layers))


def feature_network(
    architecture: str,
    event_shape: Sequence[int],
    *,
    hidden_sizes: Sequence[int],
    channels: int,
    normalize: bool = False,
) -> tuple[nn.Sequential, int]:
    """[B, *event_shape] -> features [B, F], and F. Without batch statistics, which couple samples.

    The layers are linear, convolutional, leaky rectifiers and flattening: what the explicit gradient
    penalty knows.
    """

    def weights(layer: nn.Module) -> nn.Module:
        return spectral_norm(layer) if normalize else layer

    layers: list[nn.Module] = []
    if architecture == "mlp":
        size = math.prod(event_shape)
        if len(event_shape) > 1:
            layers.append(nn.Flatten())
        for width in reversed(hidden_sizes):
            layers += [weights(nn.Linear(size, width)), nn.LeakyReLU(_SLOPE)]
            size = width
        return nn.Sequential(*layers), size
    planes, height, width = event_shape
    for out in (channels, 2 * channels):
        layers += [weights(nn.Conv2d(planes, out, 4, 2, 1)), nn.LeakyReLU(_SLOPE)]
        planes, height, width = out, height // 2, width // 2
    layers.append(nn.Flatten())
    network = nn.Sequential(*layers)
    return (network if normalize else _initialized(network)), planes * height * width
