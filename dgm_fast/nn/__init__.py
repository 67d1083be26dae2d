"""Drop-in modules."""

from dgm_fast.nn.masked_linear import MaskedLinear
from dgm_fast.nn.mlp import MLP

__all__ = ["MLP", "MaskedLinear"]
