"""Multi-layer perceptron: the default encoder and decoder of the latent-variable models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Fully connected network with an activation after every hidden layer and a linear output.

    Args:
        in_features: size of the last input dimension.
        hidden_sizes: widths of the hidden layers; () gives a single linear layer.
        out_features: size of the last output dimension.
        activation: makes the activation module, called once per hidden layer.

    Shape: [..., in_features] -> [..., out_features]. The last layer is ``output``.

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
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden_sizes]
        if min(*widths, out_features) < 1:
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

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.hidden(x))
