"""Drop-in activations without a second derivative."""

from __future__ import annotations

from torch import Tensor, nn

from dgm_fast import functional


class LeakyReLU(nn.LeakyReLU):
    """``torch.nn.LeakyReLU`` by :func:`dgm_fast.functional.leaky_relu`; ``inplace`` is not acted on."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(x, self.negative_slope)


class ReLU(nn.ReLU):
    """``torch.nn.ReLU`` by :func:`dgm_fast.functional.relu`; ``inplace`` is not acted on."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x)
