"""Multi-layer perceptron: the default encoder and decoder of the latent-variable models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Fully connected network with an activation after every hidden layer and a linear output.

    Args:
        in_features: size of the last input dimension.
        hidden_sizes: widths of the hidden layers; () gives a single linear layer.
        out_features: size of the last output dimension.
        activation: makes the activation module, called once per hidden layer.
        context_dim: size of a context, which is one more input.

    Shape: [..., in_features] (and context [..., context_dim]) -> [..., out_features]. The last layer is
    ``output``.

    Raises:
        ValueError: if a size is below 1.
    """

    def __init__(
        self,
        in_features: int,
        hidden_sizes: Sequence[int],
        out_features: int,
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.context_dim = context_dim
        widths = [in_features + (context_dim or 0), *hidden_sizes]
        if context_dim is not None and context_dim < 1:
            raise ValueError(f"context_dim must be at least 1, got {context_dim}")
        if min(in_features, *widths, out_features) < 1:
            raise ValueError(
                "in_features, hidden_sizes and out_features must be at least 1, got "
                f"{in_features}, {tuple(hidden_sizes)} and {out_features}"
            )
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), activation()]
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear(widths[-1], out_features)

    def sequential_layers(self) -> Iterable[nn.Module]:
        """What ``forward`` applies, in order: lets penalties of this network take it apart."""
        return (self.hidden, self.output)

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        return self.output(self.hidden(with_context(x, context, self.context_dim)))


def with_context(x: Tensor, context: Tensor | None, context_dim: int | None) -> Tensor:
    """x and the context side by side in the last dimension.

    Raises:
        ValueError: if there is a context for a network without one, or none for one that needs it.
    """
    if (context is None) != (context_dim is None):
        raise ValueError(
            f"context is {'missing' if context is None else 'given'}, but the network was built "
            f"with context_dim={context_dim}"
        )
    return x if context is None else torch.cat([x, context], -1)
