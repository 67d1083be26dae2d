"""Base of the pixel models: images of levels, likelihood, conditions, sampling."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dgm_fast import functional
from dgm_fast.functional import PixelNetwork, PixelNetworkBuilder
from dgm_fast.functional.pixel_sampling import Progress, show_rows
from dgm_fast.models._autoregressive import AutoregressiveModel, Condition
from dgm_fast.models._inputs import check_condition, check_context, check_count
from dgm_fast.models._mixture import compute_dtype
from dgm_fast.models._pixel_likelihood import (
    BernoulliPixels,
    CategoricalPixels,
    PixelLikelihood,
)
from dgm_fast.models._sequence import check_dropout


class PixelModel(AutoregressiveModel):
    r"""A density of images: pixels in raster order, the colours of a pixel one after the other.

    .. math:: \log p(x) = \sum_{i, j} \sum_c \log p(x_{c, i, j} \mid
        \text{pixels before } (i, j),\ x_{0, i, j} \dots x_{c - 1, i, j})

    Data x are levels 0 .. L - 1, [B, C, H, W], or [B, H, W] of grey images, or [B, C H W] where the model
    knows ``image_shape``; integer, bool or whole floating-point numbers. With L = 2, values in [0, 1] (one
    between them enters the network as it is and gives the cross-entropy), unless the model says otherwise.
    Images may have any size. What a conditional model is conditioned on is the argument ``context`` of
    every method: [B, context_dim] or [context_dim], or for a class-conditional model labels, integer [B]
    or a single one; :meth:`sample` draws labels uniformly where none are given.

    A model implements :meth:`_features`, what the 1x1 convolution ``head`` takes, and :meth:`_describe`,
    the same and the head for the cached sampler.
    """

    head: nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        likelihood: PixelLikelihood,
        *,
        image_shape: tuple[int, ...] | None,
        num_classes: int | None,
        context_dim: int | None,
    ) -> None:
        super().__init__()
        if num_classes is not None and context_dim is not None:
            raise ValueError(
                "num_classes and context_dim exclude each other: a model is conditioned on one of them"
            )
        if num_classes is not None:
            check_count("num_classes", num_classes)
        if context_dim is not None:
            check_count("context_dim", context_dim)
        self.in_channels = in_channels
        self.likelihood = likelihood
        self.num_levels = likelihood.num_levels
        self.num_classes = num_classes
        self.context_dim = num_classes if context_dim is None else context_dim
        self.image_shape = None if image_shape is None else self._image_shape(image_shape)
        self.num_dims = 0 if self.image_shape is None else math.prod(self.image_shape)

    def conditionals(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Parameters of every conditional.

        Bits: logits [B, C, H, W]. Levels: logits [B, L, C, H, W]. Mixtures: the parameters that
        :func:`dgm_fast.functional.discretized_logistic_mixture_log_prob` takes, [B, P, H, W].
        """
        x = self._data(x)
        context = self._context(context, len(x))
        return self.likelihood.conditionals(self._params(x, context))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        image_shape: tuple[int, ...] | None = None,
        conditioned_on: Condition | None = None,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: bool | Progress = False,
        cached: bool = True,
    ) -> Tensor:
        """n draws x ~ p(x), [n, C, H, W], without gradients and without dropout.

        Layers keep what they have computed, so that all pixels together cost about one pass through the
        network (:func:`dgm_fast.functional.sample_pixels`).

        Args:
            n: how many.
            image_shape: (H, W) or (C, H, W). None takes it from ``conditioned_on`` or ``noise``, else from
                the model.
            conditioned_on: the pair (values, given), each [n, C, H, W] or [C, H, W] (or a form that data
                may take), ``given`` boolean: values are kept where it is True, and every other entry is
                drawn given all entries before it. (Given entries that come later do not influence it.)
                Values elsewhere do not matter and may be NaN.
            context: what a conditional model is conditioned on.
            noise: uniforms in [0, 1), in place of the generator's: [n, C, H, W], for mixtures of logistics
                [n, 1 + C, H, W] (as for :func:`dgm_fast.functional.sample_discretized_logistic_mixture`).
            generator: source of the noise.
            progress: True shows the rows done on standard error; a callable is called with (rows done,
                rows).
            cached: False runs the whole network for every pixel (and colour of it), in the model's own
                layers: many times slower, for comparison.

        Returns:
            Binary entries: 0 or 1 in the model's dtype; levels: int64.

        Raises:
            TypeError, ValueError: if an argument does not fit; the message names it.
        """
        check_count("n", n)
        shape = self._sample_shape(image_shape, conditioned_on, noise)
        x, given = self._start(n, shape, conditioned_on)
        if context is None and self.num_classes is not None:
            context = torch.randint(
                self.num_classes, (n,), generator=generator, device=self._anchor.device
            )
        condition = self._context(context, n)
        noise_shape = (n, self.likelihood.noise_per_pixel, *shape[1:])
        uniforms = self._uniforms(noise_shape, noise, generator)
        was_training = self.training
        self.eval()
        try:
            if cached:
                drawn = functional.sample_pixels(
                    self._network(condition),
                    uniforms,
                    conditioned_on=None
                    if conditioned_on is None
                    else (self.likelihood.to_draw(x), given),
                    progress=progress,
                )
                return self.likelihood.from_draw(drawn, x)
            self._dense_sample(x, given, condition, uniforms, _on_row(progress))
        finally:
            self.train(was_training)
        return x

    @torch.no_grad()
    def pixel_network(self, context: Tensor | None = None) -> PixelNetwork:
        """The network as :func:`dgm_fast.functional.sample_pixels` takes it, weights masked and normalised.

        Args:
            context: [B, context_dim], or labels [B]: it enters the biases, and B images can be drawn.
        """
        batch = 1
        if isinstance(context, Tensor) and context.ndim:
            batch = len(context)
        return self._network(self._context(context, batch))

    def _network(self, context: Tensor | None) -> PixelNetwork:
        network = PixelNetworkBuilder(self.likelihood.pixel_draw())
        return network.build(self._describe(network, context))

    def _dense_sample(
        self,
        x: Tensor,
        given: Tensor,
        context: Tensor | None,
        noise: Tensor,
        on_row: Progress,
    ) -> None:
        """Fill in x [n, C, H, W] in place: the whole network once a pixel, and once a colour of it."""
        likelihood = self.likelihood
        _, channels, height, width = x.shape
        # Normalised weights are formed once, not at every pass.
        with parametrize.cached():
            for i in range(height):
                for j in range(width):
                    for c in range(1 if likelihood.joint else channels):
                        params = self._params(x, context)[:, :, i, j]
                        params = params.to(compute_dtype(params))
                        x[:, :, i, j] = likelihood.draw(
                            params, noise[:, :, i, j], c, x[:, :, i, j], given[:, :, i, j]
                        )
                on_row(i + 1, height)

    def _start(
        self, n: int, shape: tuple[int, int, int], conditioned_on: Condition | None
    ) -> tuple[Tensor, Tensor]:
        """Images with the given entries, 0 elsewhere, and which are given, [n, C, H, W] each."""
        binary = isinstance(self.likelihood, BernoulliPixels)
        dtype = self._anchor.dtype if binary else torch.int64
        if conditioned_on is None:
            zeros = torch.zeros((n, *shape), dtype=dtype, device=self._anchor.device)
            return zeros, torch.zeros_like(zeros, dtype=torch.bool)
        if isinstance(conditioned_on, tuple | list) and len(conditioned_on) == 2:
            values, given = conditioned_on
            conditioned_on = _flat_event(values, shape), _flat_event(given, shape)
        pair = check_condition(conditioned_on, (n, math.prod(shape)), self._anchor)
        values, given = (t.reshape(n, *shape) for t in pair)
        self.likelihood.check(values, given)
        # Not the caller's memory: samples are written into it.
        return values.to(dtype, copy=True), given

    def _sample_shape(
        self,
        image_shape: tuple[int, ...] | None,
        conditioned_on: Condition | None,
        noise: Tensor | None,
    ) -> tuple[int, int, int]:
        if image_shape is not None:
            return self._image_shape(image_shape)
        if self.image_shape is not None:
            return self.image_shape
        parts: list[Any] = []
        if isinstance(conditioned_on, tuple | list):
            parts = [t for t in conditioned_on if isinstance(t, Tensor) and t.ndim >= 3]
        if isinstance(noise, Tensor) and noise.ndim == 4:
            parts.append(noise)
        for part in parts:
            return self._image_shape(tuple(part.shape[-2:]))
        raise ValueError("image_shape is missing: neither the model nor another argument has one")

    def _image_shape(self, shape: Any) -> tuple[int, int, int]:
        sizes = tuple(shape) if isinstance(shape, tuple | list) else ()
        if len(sizes) not in (2, 3) or any(
            isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes
        ):
            raise ValueError(
                f"image_shape must be (H, W) or (C, H, W), positive sizes, got {shape!r}"
            )
        if len(sizes) == 3 and sizes[0] != self.in_channels:
            raise ValueError(
                f"image_shape must have the model's {self.in_channels} channels, got {shape!r}"
            )
        return (self.in_channels, sizes[-2], sizes[-1])

    def _params(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Outputs of the head, [B, P, H, W], for levels x [B, C, H, W]."""
        return self.head(self._features(self._input(x), context))

    def _input(self, x: Tensor) -> Tensor:
        """Levels as the network sees them."""
        return self.likelihood.to_network(x, self._anchor.dtype)

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        if x.requires_grad:
            raise ValueError("x holds levels and must not require grad")
        h = self._features(self._input(x), context)
        return self.likelihood.log_prob(h, self.head, x)

    def _data(self, x: Tensor) -> Tensor:
        """x as [B, C, H, W]."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        if x.device != self._anchor.device:
            raise ValueError(f"x is on {x.device}, but the model is on {self._anchor.device}")
        if x.is_complex():
            raise TypeError(f"x must be bool, integer or floating point, got {x.dtype}")
        channels = self.in_channels
        if x.ndim == 4 and x.shape[1] == channels and 0 not in x.shape[1:]:
            return x
        if x.ndim == 3 and channels == 1 and 0 not in x.shape[1:]:
            return x.unsqueeze(1)
        if x.ndim == 2 and self.image_shape is not None and x.shape[1] == self.num_dims:
            return x.unflatten(1, self.image_shape)
        forms = [f"[B, {channels}, H, W]"]
        forms += ["[B, H, W]"] if channels == 1 else []
        forms += [f"[B, {self.num_dims}]"] if self.image_shape is not None else []
        raise ValueError(f"x must have shape {' or '.join(forms)}, got {tuple(x.shape)}")

    def _context(self, context: Tensor | None, batch: int) -> Tensor | None:
        """The context, or the labels as one-hot vectors, [B, context_dim]."""
        if self.num_classes is None:
            return super()._context(context, batch)
        if context is None:
            raise ValueError(
                f"context is missing: the model was built with num_classes={self.num_classes} and "
                "takes class labels"
            )
        if not isinstance(context, Tensor) or context.is_floating_point() or context.is_complex():
            got = context.dtype if isinstance(context, Tensor) else type(context).__name__
            raise TypeError(f"context must be class labels, an integer tensor, got {got}")
        if context.shape not in ((batch,), ()):
            raise ValueError(
                f"context must be class labels of shape {(batch,)} or (), got {tuple(context.shape)}"
            )
        labels = context.long().expand(batch)
        one_hot = torch_functional.one_hot(labels, self.num_classes)
        return check_context(one_hot, self.context_dim, batch, self._anchor)

    def _features(self, x: Tensor, context: Tensor | None) -> Tensor:
        """What the head takes, [B, F, H, W], from input [B, C, H, W]."""
        raise NotImplementedError

    def _describe(self, network: PixelNetworkBuilder, context: Tensor | None) -> int:
        """Add all layers to a description; returns the buffer of the head's outputs."""
        raise NotImplementedError


def make_likelihood(in_channels: int, num_levels: int) -> PixelLikelihood:
    """Bits for two levels, a softmax for more."""
    if num_levels == 2:
        return BernoulliPixels(in_channels)
    return CategoricalPixels(in_channels, num_levels)


def check_network(
    in_channels: int, num_levels: int, channels: int, num_layers: int, dropout: float
) -> None:
    """The options that the pixel models share."""
    check_count("in_channels", in_channels)
    check_count("num_levels", num_levels, at_least=2)
    check_count("channels", channels, at_least=in_channels)
    check_count("num_layers", num_layers)
    check_dropout(dropout)


def check_kernel_size(name: str, value: int, at_least: int = 1) -> None:
    check_count(name, value, at_least)
    if value % 2 == 0:
        raise ValueError(f"{name} must be odd, got {value}")


def _on_row(progress: bool | Progress) -> Progress:
    if callable(progress):
        return progress
    return show_rows if progress else lambda done, total: None


def _flat_event(part: Any, shape: tuple[int, int, int]) -> Any:
    """A part of a condition with its image dimensions as one."""
    if not isinstance(part, Tensor):
        return part
    for event in (shape, shape[1:]) if shape[0] == 1 else (shape,):
        if tuple(part.shape[-len(event) :]) == event and part.ndim <= len(event) + 1:
            return part.flatten(part.ndim - len(event))
    return part
