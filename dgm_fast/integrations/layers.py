"""Rules for layers of plain PyTorch."""

from __future__ import annotations

from torch import nn

from dgm_fast.integrations.accelerate import rule
from dgm_fast.nn import Conv2d, Linear

# Gradients of this many bytes come from the library's pool of memory.
_POOLED_BYTES = 1 << 20


@rule
def convolution(module: nn.Module, previous: nn.Module | None) -> tuple[str, str] | None:
    """Conv2d: the second derivative of this library's forms only the gradients that are wanted."""
    if type(module) is not nn.Conv2d:
        return None
    if module.padding_mode != "zeros":
        return "", f"it pads by {module.padding_mode!r}"
    # The class only: parameters, hooks and other references to the module stay.
    module.__class__ = Conv2d
    return "dgm_fast.nn.Conv2d", ""


@rule
def large_linear(module: nn.Module, previous: nn.Module | None) -> tuple[str, str] | None:
    """Linear with a large weight: its gradient has memory that is used again, and autograd adds to it in
    place. A small one has nothing to gain."""
    if type(module) is not nn.Linear or module.weight.nbytes < _POOLED_BYTES:
        return None
    module.__class__ = Linear
    return "dgm_fast.nn.Linear", ""
