"""What the last layer of a pixel model means: bits, levels, or mixtures of logistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.functional import PixelDraw
from dgm_fast.functional._checks import class_index, unit_interval
from dgm_fast.functional.likelihood import UNIT_INTERVAL, class_range
from dgm_fast.models._autoregressive import check_values
from dgm_fast.models._mixture import compute_dtype
from dgm_fast.reference.autoregressive import bernoulli_draw, categorical_draw
from dgm_fast.reference.pixel import channel_groups


class PixelLikelihood:
    """Conditionals of a pixel from the outputs of a last 1x1 convolution, the head.

    Attributes:
        num_params: outputs of the head.
        joint: the colours of a pixel are drawn together from the same outputs; otherwise one by one, each
            after another pass through the network.
        noise_per_pixel: numbers that a pixel's draw takes.
    """

    num_params: int
    joint = False
    noise_per_pixel: int

    def __init__(self, data_channels: int, num_levels: int) -> None:
        self.data_channels = data_channels
        self.num_levels = num_levels
        self.noise_per_pixel = data_channels

    def pixel_draw(self) -> PixelDraw:
        """How the cached sampler draws a pixel and shows it to the network."""
        raise NotImplementedError

    def to_network(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Levels as the network sees them."""
        return x.to(dtype) * (1 / (self.num_levels - 1))

    def from_draw(self, drawn: Tensor, like: Tensor) -> Tensor:
        """What the cached sampler drew, as levels of like's dtype."""
        return drawn.to(like.dtype)

    def to_draw(self, x: Tensor) -> Tensor:
        """Levels as the cached sampler takes them."""
        return x

    def check(self, x: Tensor, given: Tensor | None = None) -> None:
        """Raise where x (or what is given of it) holds no levels."""
        valid = class_index(x, self.num_levels)
        valid = valid if given is None else valid | ~given
        check_values(x, valid, class_range(self.num_levels))

    def log_prob(self, h: Tensor, head: nn.Conv2d, x: Tensor) -> Tensor:
        """log p(x), [B]: features h [B, F, H, W] of the head, x [B, C, H, W]."""
        raise NotImplementedError

    def conditionals(self, params: Tensor) -> Tensor:
        """Outputs [B, num_params, H, W] of the head in the public layout."""
        return params

    def draw(
        self, params: Tensor, noise: Tensor, channel: int, values: Tensor, given: Tensor
    ) -> Tensor:
        """A pixel's levels [n, C] from its params [n, num_params] and noise [n, noise_per_pixel].

        ``values`` [n, C] holds what is known of it: given entries, and colours below ``channel``, which is
        drawn now (all of them, of a joint likelihood).
        """
        raise NotImplementedError


class BernoulliPixels(PixelLikelihood):
    """One logit a channel; x in [0, 1], drawn as 0 or 1."""

    def __init__(self, data_channels: int) -> None:
        super().__init__(data_channels, 2)
        self.num_params = data_channels

    def pixel_draw(self) -> PixelDraw:
        return PixelDraw("bernoulli", self.data_channels)

    def check(self, x: Tensor, given: Tensor | None = None) -> None:
        valid = unit_interval(x)
        check_values(x, valid if given is None else valid | ~given, UNIT_INTERVAL)

    def log_prob(self, h: Tensor, head: nn.Conv2d, x: Tensor) -> Tensor:
        return functional.bernoulli_log_prob(head(h), x, event_ndim=3)

    def draw(
        self, params: Tensor, noise: Tensor, channel: int, values: Tensor, given: Tensor
    ) -> Tensor:
        drawn, _ = bernoulli_draw(noise[:, channel], params[:, channel : channel + 1])
        return _set_channel(values, given, channel, drawn)


class CategoricalPixels(PixelLikelihood):
    """A softmax over the levels of each channel; output level * C + c belongs to channel c."""

    def __init__(self, data_channels: int, num_levels: int) -> None:
        super().__init__(data_channels, num_levels)
        self.num_params = data_channels * num_levels

    def pixel_draw(self) -> PixelDraw:
        scale = 1 / (self.num_levels - 1)
        return PixelDraw("categorical", self.data_channels, self.num_levels, scale=scale)

    def log_prob(self, h: Tensor, head: nn.Conv2d, x: Tensor) -> Tensor:
        channels = self.data_channels
        # The masked weight is small: it is formed, so that no logits need be.
        group = channel_groups(h.shape[1], channels, "interleaved", h.device)
        total = None
        for c in range(channels):
            weight = head.weight[c::channels, :, 0, 0]
            if channels > 1:
                weight = torch.where(group <= c, weight, 0.0)
            bias = None if head.bias is None else head.bias[c::channels]
            term = functional.linear_categorical_log_prob(
                h, weight, bias, x[:, c], num_classes=self.num_levels
            )
            total = term if total is None else total + term
        assert total is not None
        return total

    def conditionals(self, params: Tensor) -> Tensor:
        return params.unflatten(1, (self.num_levels, self.data_channels))

    def draw(
        self, params: Tensor, noise: Tensor, channel: int, values: Tensor, given: Tensor
    ) -> Tensor:
        logits = params[:, channel :: self.data_channels]
        drawn, _ = categorical_draw(noise[:, channel], logits)
        return _set_channel(values, given, channel, drawn)


class LogisticMixturePixels(PixelLikelihood):
    """A mixture of discretized logistics over the colours of a pixel, one or three of them."""

    joint = True

    def __init__(self, data_channels: int, num_levels: int, num_mixtures: int) -> None:
        super().__init__(data_channels, num_levels)
        self.num_mixtures = num_mixtures
        self.num_params = (10 if data_channels == 3 else 3) * num_mixtures
        self.noise_per_pixel = 1 + data_channels

    def pixel_draw(self) -> PixelDraw:
        return PixelDraw(
            "logistic_mixture", self.data_channels, self.num_levels, self.num_mixtures, ones=1
        )

    def to_network(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype) * (2 / (self.num_levels - 1)) - 1

    def from_draw(self, drawn: Tensor, like: Tensor) -> Tensor:
        return torch.round((drawn + 1) * ((self.num_levels - 1) / 2)).to(like.dtype)

    def to_draw(self, x: Tensor) -> Tensor:
        return self.to_network(x, torch.float64)

    def log_prob(self, h: Tensor, head: nn.Conv2d, x: Tensor) -> Tensor:
        self.check(x)
        params = head(h)
        scaled = self.to_network(x, compute_dtype(params))
        return functional.discretized_logistic_mixture_log_prob(
            params, scaled, num_mixtures=self.num_mixtures, levels=self.num_levels
        )

    def draw(
        self, params: Tensor, noise: Tensor, channel: int, values: Tensor, given: Tensor
    ) -> Tensor:
        condition = None
        if bool(given.any()):
            known = self.to_network(values, params.dtype)
            condition = known[..., None, None], given[..., None, None]
        drawn = functional.sample_discretized_logistic_mixture(
            params[..., None, None],
            num_mixtures=self.num_mixtures,
            levels=self.num_levels,
            noise=noise[..., None, None],
            conditioned_on=condition,
        )
        return torch.where(given, values, self.from_draw(drawn[..., 0, 0], values))


def _set_channel(values: Tensor, given: Tensor, channel: int, drawn: Tensor) -> Tensor:
    values = values.clone()
    kept = given[:, channel]
    values[:, channel] = torch.where(kept, values[:, channel], drawn.to(values.dtype))
    return values
