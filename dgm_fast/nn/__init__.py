"""Drop-in modules."""

from dgm_fast.nn.masked_linear import MaskedLinear
from dgm_fast.nn.mlp import MLP
from dgm_fast.nn.pixel import GatedActivation, MaskedConv1d, MaskedConv2d

__all__ = ["MLP", "GatedActivation", "MaskedConv1d", "MaskedConv2d", "MaskedLinear"]
