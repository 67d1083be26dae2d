"""Drop-in modules."""

from dgm_fast.functional import (
    AffineMap,
    BernoulliDraw,
    CategoricalDraw,
    ElementMap,
    MaskedNetwork,
    MixtureDraw,
    SplineMap,
    autoregressive_inverse,
)
from dgm_fast.nn.activation import LeakyReLU, ReLU
from dgm_fast.nn.base_distribution import BaseDistribution, StandardNormal, StandardUniform
from dgm_fast.nn.lazy_penalty import LazyPenalty
from dgm_fast.nn.made import MADE
from dgm_fast.nn.masked_linear import MaskedLinear
from dgm_fast.nn.mlp import MLP
from dgm_fast.nn.pixel import GatedActivation, MaskedConv1d, MaskedConv2d
from dgm_fast.nn.transform import Compose, Inverse, Transform

__all__ = [
    "MADE",
    "MLP",
    "AffineMap",
    "BaseDistribution",
    "BernoulliDraw",
    "CategoricalDraw",
    "Compose",
    "ElementMap",
    "GatedActivation",
    "Inverse",
    "LazyPenalty",
    "LeakyReLU",
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedLinear",
    "MaskedNetwork",
    "MixtureDraw",
    "ReLU",
    "SplineMap",
    "StandardNormal",
    "StandardUniform",
    "Transform",
    "autoregressive_inverse",
]
