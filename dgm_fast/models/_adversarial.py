"""Base of the adversarial models: networks, data range, sampling, the running average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dgm_fast.models._gan_networks import (
    ARCHITECTURES,
    LabelledGenerator,
    ProjectionDiscriminator,
    feature_network,
    generator_network,
)
from dgm_fast.models._inputs import check_choice, check_count, check_noise, flatten_data


class AdversarialModel(nn.Module):
    """A generator G(z), z ~ N(0, I), and a discriminator (or critic) D(x), trained against each other.

    Both networks work on data scaled to [-1, 1]: ``data_range`` says which values of the data these
    are. Training alternates :meth:`discriminator_loss` and :meth:`generator_loss`, each for its own
    optimizer; ``dgm_fast.train.AdversarialStep`` does.

    Args:
        generator: z [B, latent_dim] (and labels [B], for a conditional model) -> [B, *event_shape];
            None builds one.
        discriminator: x [B, *event_shape] (and labels [B]) -> logits [B] or [B, 1]; None builds one.
        image_shape: (channels, height, width), or (height, width) for one channel. ``num_dims``
            instead for vectors; one of the two.
        num_dims: D, for vectors [B, D].
        latent_dim: size of z.
        num_classes: for a conditional model; labels are then required everywhere.
        architecture: of the built networks: "mlp", or "dcgan" for images; None takes "dcgan" for
            images of at least 8 by 8.
        hidden_sizes: widths of fully connected networks, of the generator from z on.
        channels: of the convolution next to the image; the other has twice as many.
        data_range: (lowest, highest) value of the data, to which samples are bounded; None leaves data
            and samples as they are, without bound.
        average_decay: decay of the exponential moving average of the generator's parameters, which
            :meth:`sample` uses; None keeps none.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    # Discriminator updates for each one of the generator.
    num_critic_steps = 1

    def __init__(
        self,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        *,
        image_shape: Sequence[int] | None = None,
        num_dims: int | None = None,
        latent_dim: int = 64,
        num_classes: int | None = None,
        architecture: str | None = None,
        hidden_sizes: Sequence[int] = (256, 256),
        channels: int = 64,
        data_range: tuple[float, float] | None = (-1.0, 1.0),
        average_decay: float | None = 0.999,
    ) -> None:
        super().__init__()
        self.event_shape = _event_shape(image_shape, num_dims)
        check_count("latent_dim", latent_dim)
        check_count("channels", channels)
        if num_classes is not None:
            check_count("num_classes", num_classes)
        if data_range is not None and not data_range[0] < data_range[1]:
            raise ValueError(f"data_range must be (lowest, highest), got {data_range}")
        if average_decay is not None and not 0 <= average_decay < 1:
            raise ValueError(f"average_decay must be in [0, 1), got {average_decay}")
        architecture = _architecture(architecture, self.event_shape)
        self.latent_dim = latent_dim
        self.num_classes = num_classes
        self.data_range = data_range
        sizes: dict[str, Any] = {"hidden_sizes": tuple(hidden_sizes), "channels": channels}
        if generator is None:
            inputs = latent_dim if num_classes is None else 2 * latent_dim
            generator = generator_network(
                architecture, inputs, self.event_shape, bounded=data_range is not None, **sizes
            )
            if num_classes is not None:
                generator = LabelledGenerator(generator, latent_dim, num_classes)
        if discriminator is None:
            features, width = feature_network(
                architecture, self.event_shape, normalize=num_classes is not None, **sizes
            )
            discriminator = (
                nn.Sequential(*features, nn.Linear(width, 1))
                if num_classes is None
                else ProjectionDiscriminator(features, width, num_classes)
            )
        self.generator = generator
        self.discriminator = discriminator
        self.average: AveragedModel | None = None
        if average_decay is not None:
            self.average = AveragedModel(
                generator, multi_avg_fn=get_ema_multi_avg_fn(average_decay), use_buffers=True
            ).requires_grad_(False)
        # Follows the module through .to(): the dtype and device of noise.
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)

    _anchor: Tensor

    @property
    def num_dims(self) -> int:
        """Entries of one sample."""
        return math.prod(self.event_shape)

    def normalize(self, x: Tensor) -> Tensor:
        """Data [B, D] or [B, *event_shape], of any real or integer type, as the networks take them."""
        x = flatten_data(x, self.num_dims, self._anchor.device)
        x = x.to(self._anchor.dtype).reshape(-1, *self.event_shape)
        if self.data_range is None:
            return x
        low, high = self.data_range
        return (x - low) * (2 / (high - low)) - 1

    def denormalize(self, x: Tensor) -> Tensor:
        """What the generator gives, in the units of the data."""
        if self.data_range is None:
            return x
        low, high = self.data_range
        return (x + 1) * ((high - low) / 2) + low

    def draw_noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I), [n, latent_dim]."""
        anchor = self._anchor
        return torch.randn(
            n, self.latent_dim, generator=generator, dtype=anchor.dtype, device=anchor.device
        )

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        averaged: bool = True,
    ) -> Tensor:
        """Samples [n, *event_shape] in the units of the data.

        Args:
            n: how many.
            labels: integer [n], of a conditional model; None draws them uniformly.
            noise: z [n, latent_dim]; None draws it.
            generator: of the draws.
            averaged: use the moving average of the generator, where there is one.
        """
        check_count("n", n, 0)
        if noise is None:
            noise = self.draw_noise(n, generator)
        else:
            noise = check_noise(noise, (n, self.latent_dim), self._anchor)
        if self.num_classes is not None and labels is None:
            labels = torch.randint(
                self.num_classes, (n,), generator=generator, device=self._anchor.device
            )
        labels = self._check_labels(labels, n)
        network = self.average if averaged and self.average is not None else self.generator
        was_training = network.training
        # Batch statistics of a handful of samples are not those of training.
        network.eval()
        try:
            out = network(noise) if labels is None else network(noise, labels)
        finally:
            network.train(was_training)
        return self.denormalize(out)

    def update_average(self) -> None:
        """Move the average towards the generator; after each of its updates."""
        if self.average is not None:
            self.average.update_parameters(self.generator)

    def after_discriminator_update(self) -> None:
        """What a kind does to the discriminator after an optimizer has changed it."""

    def discriminator_loss(
        self, x: Tensor, labels: Tensor | None = None, *, noise: Tensor | None = None
    ) -> Tensor:
        """Scalar that the discriminator minimises on data x; no gradient reaches the generator.

        Args:
            x: [B, D] or [B, *event_shape].
            labels: integer [B], of a conditional model.
            noise: z [B, latent_dim] of the generated samples; None draws it.
        """
        raise NotImplementedError

    def generator_loss(
        self, n: int, labels: Tensor | None = None, *, noise: Tensor | None = None
    ) -> Tensor:
        """Scalar that the generator minimises over n samples.

        Args:
            n: how many.
            labels: integer [n], of a conditional model; None draws them uniformly.
            noise: z [n, latent_dim]; None draws it.
        """
        raise NotImplementedError

    def _generate(self, n: int, labels: Tensor | None, noise: Tensor | None) -> Tensor:
        """Generated samples as the discriminator takes them, connected to the generator."""
        if noise is None:
            noise = self.draw_noise(n)
        else:
            noise = check_noise(noise, (n, self.latent_dim), self._anchor)
        return self.generator(noise) if labels is None else self.generator(noise, labels)

    def _logits(self, x: Tensor, labels: Tensor | None) -> Tensor:
        out = self.discriminator(x) if labels is None else self.discriminator(x, labels)
        return out.reshape(len(x))

    def _check_labels(self, labels: Tensor | None, n: int) -> Tensor | None:
        if self.num_classes is None:
            if labels is not None:
                raise ValueError("labels were given, but the model was built without num_classes")
            return None
        if labels is None:
            raise ValueError(
                f"labels are missing: the model was built with num_classes={self.num_classes}"
            )
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels must be an integer tensor, got {got}")
        if labels.shape != (n,):
            raise ValueError(f"labels must have shape {(n,)}, got {tuple(labels.shape)}")
        return labels.to(self._anchor.device, torch.long)


def _event_shape(image_shape: Sequence[int] | None, num_dims: int | None) -> tuple[int, ...]:
    if (image_shape is None) == (num_dims is None):
        raise ValueError(
            f"one of image_shape and num_dims is needed, got {image_shape} and {num_dims}"
        )
    if image_shape is None:
        check_count("num_dims", num_dims)
        assert num_dims is not None
        return (num_dims,)
    shape = tuple(image_shape)
    if len(shape) not in (2, 3):
        raise ValueError(
            f"image_shape must be (channels, height, width) or (height, width), got {shape}"
        )
    for size in shape:
        check_count("image_shape", size)
    return shape if len(shape) == 3 else (1, *shape)


def _architecture(name: str | None, event_shape: tuple[int, ...]) -> str:
    images = len(event_shape) == 3
    if name is None:
        return "dcgan" if images and min(event_shape[1:]) >= 8 else "mlp"
    check_choice("architecture", name, ARCHITECTURES)
    if name == "dcgan" and (not images or min(event_shape[1:]) < 4):
        raise ValueError(f"architecture 'dcgan' needs images of at least 4 by 4, got {event_shape}")
    return name
