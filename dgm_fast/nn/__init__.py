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
from dgm_fast.nn.actnorm import ActNorm
from dgm_fast.nn.base_distribution import BaseDistribution, StandardNormal, StandardUniform
from dgm_fast.nn.conv_resnet import ConvResNet, GlowNet
from dgm_fast.nn.element_transform import (
    AdditiveElement,
    AffineElement,
    ElementTransform,
    LogisticMixtureElement,
    SplineElement,
)
from dgm_fast.nn.elementwise import Elementwise, Standardize
from dgm_fast.nn.feature_coupling import FeatureCoupling
from dgm_fast.nn.gated_residual import GatedResidual, concat_elu
from dgm_fast.nn.image_coupling import ImageCoupling
from dgm_fast.nn.invertible_conv import InvertibleConv1x1
from dgm_fast.nn.invertible_linear import GeneralLinear, LULinear
from dgm_fast.nn.layer import Conv2d, Linear
from dgm_fast.nn.lazy_penalty import LazyPenalty
from dgm_fast.nn.logit import LogitTransform
from dgm_fast.nn.made import MADE
from dgm_fast.nn.masked_autoregressive import MaskedAutoregressive
from dgm_fast.nn.masked_linear import MaskedLinear
from dgm_fast.nn.mixture_element import MixtureAffineElement
from dgm_fast.nn.mlp import MLP
from dgm_fast.nn.multi_scale import MultiScale
from dgm_fast.nn.permutation import Permutation
from dgm_fast.nn.pixel import GatedActivation, MaskedConv1d, MaskedConv2d
from dgm_fast.nn.pixel_layers import GatedPixelLayer, PixelResidual
from dgm_fast.nn.pixel_lstm import DiagonalBiLSTM, RecurrentPixelResidual, RowLSTM
from dgm_fast.nn.residual_mlp import ResidualMLP
from dgm_fast.nn.reversible import ReversibleCompose
from dgm_fast.nn.shifted_conv import ShiftedConv2d, ShiftedConvTranspose2d
from dgm_fast.nn.squeeze import Squeeze
from dgm_fast.nn.transform import Compose, Inverse, Transform

__all__ = [
    "MADE",
    "MLP",
    "ActNorm",
    "AdditiveElement",
    "AffineElement",
    "AffineMap",
    "BaseDistribution",
    "BernoulliDraw",
    "CategoricalDraw",
    "Compose",
    "Conv2d",
    "ConvResNet",
    "DiagonalBiLSTM",
    "ElementMap",
    "ElementTransform",
    "Elementwise",
    "FeatureCoupling",
    "GatedActivation",
    "GatedPixelLayer",
    "GatedResidual",
    "GeneralLinear",
    "GlowNet",
    "ImageCoupling",
    "Inverse",
    "InvertibleConv1x1",
    "LULinear",
    "LazyPenalty",
    "LeakyReLU",
    "Linear",
    "LogisticMixtureElement",
    "LogitTransform",
    "MaskedAutoregressive",
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedLinear",
    "MaskedNetwork",
    "MixtureAffineElement",
    "MixtureDraw",
    "MultiScale",
    "Permutation",
    "PixelResidual",
    "ReLU",
    "RecurrentPixelResidual",
    "ResidualMLP",
    "ReversibleCompose",
    "RowLSTM",
    "ShiftedConv2d",
    "ShiftedConvTranspose2d",
    "SplineElement",
    "SplineMap",
    "Squeeze",
    "StandardNormal",
    "StandardUniform",
    "Standardize",
    "Transform",
    "autoregressive_inverse",
    "concat_elu",
]
