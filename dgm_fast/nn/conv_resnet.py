"""Convolutional networks that give a coupling its parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_fast import functional


class ConvResNet(nn.Module):
    """Residual network of 3x3 convolutions that keeps the image's size.

    A convolution, ``num_blocks`` blocks h + conv(relu(conv(relu(h)))), and a last convolution that starts
    at zero: a coupling whose parameters it gives begins as the identity. The second convolution of each
    block starts at zero too, which takes the place of a normalisation. Nothing in it depends on the rest of
    the batch.

    Args:
        in_channels, out_channels: of the image and of the result.
        channels: of the hidden layers.
        num_blocks: residual blocks.
        context_dim: size of a context vector on which the result depends, by a linear layer into the first
            layer and into every block.
        context_channels: channels of a context map, which joins the image.
        gated: each block ends in tanh(a) sigmoid(b), as in Gated PixelCNN; Flow++ has the like.
        zero_init: whether the last convolution starts at zero.

    Shape: [B, in_channels, H, W], context [B, context_dim] or [B, context_channels, H, W] ->
    [B, out_channels, H, W].

    Raises:
        ValueError: if a size is below 1, or both contexts are asked for.

    Source: He et al., "Identity Mappings in Deep Residual Networks" (2016); blocks that start at zero as in
    Zhang et al., "Fixup Initialization" (2019).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: int = 32,
        num_blocks: int = 2,
        context_dim: int | None = None,
        context_channels: int | None = None,
        gated: bool = False,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("in_channels", in_channels, 1),
            ("out_channels", out_channels, 1),
            ("channels", channels, 1),
            ("num_blocks", num_blocks, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if context_dim is not None and context_channels is not None:
            raise ValueError("a context is a vector (context_dim) or a map (context_channels)")
        self.first = _conv(in_channels + (context_channels or 0), channels)
        self.blocks = nn.ModuleList(_Block(channels, gated) for _ in range(num_blocks))
        self.last = _conv(channels, out_channels)
        if zero_init:
            _zero(self.last)
        self.condition = None
        if context_dim is not None:
            self.condition = nn.Linear(context_dim, channels * (num_blocks + 1))

    def start_at(self, values: Tensor) -> None:
        """Make ``values`` [out_channels] the result everywhere, whatever the input, until training."""
        _start_at(self.last, values)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        conditions: list[Tensor | None] = [None] * (len(self.blocks) + 1)
        if self.condition is not None:
            assert context is not None
            conditions = list(
                self.condition(context)[..., None, None].chunk(len(self.blocks) + 1, 1)
            )
        elif context is not None:
            x = torch.cat([x, context], 1)
        h = _plus(self.first(_channels_last(x)), conditions[0])
        for block, condition in zip(self.blocks, conditions[1:], strict=True):
            h = block(h, condition)
        return self.last(torch.relu(h))


class _Block(nn.Module):
    def __init__(self, channels: int, gated: bool) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = _conv(channels, 2 * channels if gated else channels)
        _zero(self.second)
        self.gated = gated

    def forward(self, h: Tensor, condition: Tensor | None) -> Tensor:
        out = _plus(self.first(torch.relu(h)), condition)
        # In place: the convolution keeps what it reads, not what it gives.
        out = self.second(out.relu_())
        return h + (functional.gated_activation(out) if self.gated else out)


class GlowNet(nn.Module):
    """3x3, 1x1 and 3x3 convolutions with ReLUs between, the last one zero at the start.

    Arguments and shapes as for :class:`ConvResNet`; a context vector enters both hidden layers.

    Source: Kingma and Dhariwal, "Glow" (2018), section 3.3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: int = 64,
        context_dim: int | None = None,
        context_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.first = _conv(in_channels + (context_channels or 0), channels)
        self.second = nn.Conv2d(channels, channels, 1)
        self.last = _conv(channels, out_channels)
        _zero(self.last)
        self.condition = None if context_dim is None else nn.Linear(context_dim, 2 * channels)

    def start_at(self, values: Tensor) -> None:
        """As for :class:`ConvResNet`."""
        _start_at(self.last, values)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        first: Tensor | None = None
        second: Tensor | None = None
        if self.condition is not None:
            assert context is not None
            first, second = self.condition(context)[..., None, None].chunk(2, 1)
        elif context is not None:
            x = torch.cat([x, context], 1)
        h = _plus(self.first(_channels_last(x)), first).relu_()
        return self.last(_plus(self.second(h), second).relu_())


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def _zero(layer: nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def _start_at(layer: nn.Conv2d, values: Tensor) -> None:
    assert layer.bias is not None
    layer.weight.zero_()
    layer.bias.copy_(values)


def _channels_last(x: Tensor) -> Tensor:
    # Convolutions of this format take about a quarter less time on a CPU.
    return x.contiguous(memory_format=torch.channels_last)


def _plus(h: Tensor, condition: Tensor | None) -> Tensor:
    return h if condition is None else h + condition
