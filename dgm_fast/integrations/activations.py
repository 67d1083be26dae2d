"""Rules for activations of plain PyTorch."""

from __future__ import annotations

from typing import Any

from torch import nn

from dgm_fast.integrations.accelerate import rule
from dgm_fast.nn import LeakyReLU, ReLU

# Their outputs are new tensors, which nobody else holds: overwriting them or not makes no difference.
_FRESH = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
)


@rule
def piecewise_linear(module: nn.Module, previous: nn.Module | None) -> tuple[str, str] | None:
    """LeakyReLU and ReLU: those of this library have no second derivative to push through the network."""
    if not isinstance(module, nn.ReLU | nn.LeakyReLU) or type(module) not in (
        nn.ReLU,
        nn.LeakyReLU,
    ):
        return None
    if module.inplace and not isinstance(previous, _FRESH):
        return "", "it works in place, and its input may be used elsewhere"
    if type(module) is nn.ReLU:
        # The class only: hooks, training mode and other references to the module stay.
        module.__class__ = ReLU
        return "dgm_fast.nn.ReLU", ""
    slope: Any = module.negative_slope
    if not 0.0 <= slope <= 1.0:
        return "", f"its slope {slope} is outside [0, 1]"
    module.__class__ = LeakyReLU
    return "dgm_fast.nn.LeakyReLU", ""
