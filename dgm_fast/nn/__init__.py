"""Drop-in modules."""

from dgm_fast.functional import (
    AffineMap,
    BernoulliDraw,
    CategoricalDraw,
    ElementMap,
    MaskedNetwork,
    MixtureDraw,
    autoregressive_inverse,
)
from dgm_fast.nn.activation import LeakyReLU, ReLU
from dgm_fast.nn.lazy_penalty import LazyPenalty
from dgm_fast.nn.made import MADE
from dgm_fast.nn.masked_linear import MaskedLinear
from dgm_fast.nn.mlp import MLP
from dgm_fast.nn.pixel import GatedActivation, MaskedConv1d, MaskedConv2d

__all__ = ["MLP", "GatedActivation", "MaskedConv1d", "MaskedConv2d", "MaskedLinear"]
__all__ = ["MLP", "LeakyReLU", "MaskedLinear", "ReLU"]
__all__ = ["MLP", "LazyPenalty", "LeakyReLU", "MaskedLinear", "ReLU"]
__all__ = [
    "MADE",
    "MLP",
    "AffineMap",
    "BernoulliDraw",
    "CategoricalDraw",
    "ElementMap",
    "GatedActivation",
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedLinear",
    "MaskedNetwork",
    "MixtureDraw",
    "autoregressive_inverse",
]
