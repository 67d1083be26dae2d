"""Residual multi-layer perceptron: the conditioner of neural spline flows."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgm_fast.nn.mlp import with_context


class ResidualMLP(nn.Module):
    """Linear layer, pre-activation residual blocks of two linear layers each, linear output.

    A context is part of the input, and gates what every block adds. The names in the ``state_dict`` are
    those of nflows' ``ResidualNet``, whose weights fit. The second layer of a block starts near zero.

    Args:
        in_features: size of the last input dimension.
        out_features: size of the last output dimension.
        hidden_size: width of all blocks.
        num_blocks: how many.
        context_dim: size of a context, for conditional networks.
        activation: makes the activation module.
        dropout: probability of zeroing a unit between the two layers of a block.

    Shape: x [..., in_features] (and context [..., context_dim]) -> [..., out_features]. The last layer is
    ``output``.

    Raises:
        ValueError: if a size is below 1, or dropout lies outside [0, 1).

    Source: Durkan et al., "Neural Spline Flows" (2019), section 5 and appendix B; He et al., "Identity
    Mappings in Deep Residual Networks" (2016).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_size: int = 256,
        *,
        num_blocks: int = 2,
        context_dim: int | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {
            "in_features": in_features,
            "out_features": out_features,
            "hidden_size": hidden_size,
            "num_blocks": num_blocks,
            "context_dim": 1 if context_dim is None else context_dim,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.context_dim = context_dim
        self.initial_layer = nn.Linear(in_features + (context_dim or 0), hidden_size)
        self.blocks = nn.ModuleList(
            _Block(hidden_size, context_dim, activation, dropout) for _ in range(num_blocks)
        )
        self.final_layer = nn.Linear(hidden_size, out_features)

    @property
    def output(self) -> nn.Linear:
        return self.final_layer

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        h = self.initial_layer(with_context(x, context, self.context_dim))
        for block in self.blocks:
            h = block(h, context)
        return self.final_layer(h)


class _Block(nn.Module):
    def __init__(
        self,
        size: int,
        context_dim: int | None,
        activation: Callable[[], nn.Module],
        dropout: float,
    ) -> None:
        super().__init__()
        self.activation = activation()
        self.linear_layers = nn.ModuleList(nn.Linear(size, size) for _ in range(2))
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        if context_dim is not None:
            self.context_layer = nn.Linear(context_dim, size)
        for parameter in self.linear_layers[1].parameters():
            nn.init.uniform_(parameter, -1e-3, 1e-3)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        h = self.linear_layers[0](self.activation(x))
        # In place where nothing else needs the outputs of a layer: fresh memory costs more than the sum.
        h = torch.relu_(h) if type(self.activation) is nn.ReLU else self.activation(h)
        h = self.linear_layers[1](self.dropout(h))
        if context is not None:
            h = F.glu(torch.cat([h, self.context_layer(context)], -1), -1)
        return h.add_(x) if h.dtype == x.dtype else h + x
