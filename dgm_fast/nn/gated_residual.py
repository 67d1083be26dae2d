"""Residual layer of PixelCNN++ and its activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from dgm_fast.functional import PixelNetworkBuilder

# Of the released code: layers begin close to the identity.
GATE_SCALE = 0.1


def concat_elu(x: Tensor) -> Tensor:
    """ELU of x and of -x, one after the other along dimension 1: twice the channels.

    Source: Salimans et al., "PixelCNN++" (2017), released code.
    """
    return torch_functional.elu(torch.cat([x, -x], 1))


class GatedResidual(nn.Module):
    r"""Residual layer of PixelCNN++.

    .. math:: y = x + a\, \sigma(b), \qquad
        (a, b) = W_2 * \mathrm{elu}^\pm(W_1 * \mathrm{elu}^\pm(x) + N\, \mathrm{elu}^\pm(s)) + U c

    with elu^+-(x) = elu of (x, -x), and skip features s and context c where there are some. Weights of
    convolutions are normalised (:func:`torch.nn.utils.parametrizations.weight_norm`).

    Args:
        channels: feature maps F of x.
        make_conv: (in_channels, out_channels) -> convolution that keeps the image's size.
        skip_channels: feature maps of s, 0 for none.
        context_dim: size of the context c.
        dropout: between the convolutions.

    Shape: x [B, F, H, W], s [B, skip_channels, H, W] or None, c [B, context_dim] or None -> [B, F, H, W].

    Source: Salimans et al., "PixelCNN++" (2017), section 2.4 and released code.
    """

    def __init__(
        self,
        channels: int,
        make_conv: Callable[[int, int], nn.Conv2d],
        *,
        skip_channels: int = 0,
        context_dim: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv = weight_norm(make_conv(2 * channels, channels))
        self.skip = None
        if skip_channels:
            self.skip = weight_norm(nn.Conv2d(2 * skip_channels, channels, 1))
        self.gate = weight_norm(make_conv(2 * channels, 2 * channels))
        with torch.no_grad():
            self.gate.parametrizations.weight.original0 *= GATE_SCALE  # type: ignore[union-attr, operator]
        self.context_layer = (
            None if context_dim is None else nn.Linear(context_dim, 2 * channels, bias=False)
        )
        self.dropout = dropout

    def forward(
        self, x: Tensor, skip: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        h = self.conv(concat_elu(x))
        if self.skip is not None:
            assert skip is not None
            h = h + self.skip(concat_elu(skip))
        h = concat_elu(h)
        if self.dropout:
            h = torch_functional.dropout(h, self.dropout, self.training)
        h = self.gate(h)
        if self.context_layer is not None:
            h = h + self.context_layer(context)[:, :, None, None]
        return x + torch_functional.glu(h, 1)

    def describe(
        self,
        network: PixelNetworkBuilder,
        x: int,
        skip: int | None = None,
        context: Tensor | None = None,
        *,
        moment: str,
    ) -> int:
        """Add the layer to a description for cached sampling; returns its buffer.

        ``skip`` is the buffer of s; ``moment``, "row" or "pixel", is when the convolutions run.
        """
        conv: Any = self.conv
        gate: Any = self.gate
        h = conv.describe(network, network.elementwise("concat_elu", x), moment=moment)
        if self.skip is not None and skip is not None:
            weight, bias = self.skip.weight.flatten(2), self.skip.bias
            skip = network.elementwise("concat_elu", skip)
            skip = network.convolution(skip, weight, bias, taps=[(0, 0)], moment=moment)
            h = network.elementwise("add", h, skip)
        added = None if self.context_layer is None else self.context_layer(context)
        h = network.elementwise("concat_elu", h)
        h = gate.describe(network, h, moment=moment, added=added)
        return network.elementwise("add", x, network.elementwise("linear_gate", h))
