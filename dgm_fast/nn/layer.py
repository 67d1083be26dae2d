"""Drop-in layers whose derivatives of any order form only what is wanted, in memory that is used again."""

from __future__ import annotations

from torch import Tensor, nn

from dgm_fast import functional


class Linear(nn.Linear):
    """``torch.nn.Linear`` by :func:`dgm_fast.functional.linear`."""

    # For code that takes networks apart: forward is that of nn.Linear but for its derivatives.
    plain_forward = True

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` by :func:`dgm_fast.functional.conv2d`."""

    # Not forward: code that asks whether a module's forward is that of nn.Conv2d still gets a yes.
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            return super()._conv_forward(input, weight, bias)
        return functional.conv2d(
            input, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )
