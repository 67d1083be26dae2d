"""The public stateless API. Functions return one number per sample, in nats; losses a scalar."""

from dgm_fast.functional._masked_network import MaskedNetwork
from dgm_fast.functional.activation import bias_leaky_relu, leaky_relu, relu
from dgm_fast.functional.adversarial import (
    discriminator_loss,
    f_divergence,
    f_divergence_generator_loss,
    f_divergence_loss,
    generator_loss,
)
from dgm_fast.functional.autoregressive import autoregressive_inverse
from dgm_fast.functional.coupling import actnorm, affine_coupling, invertible_linear
from dgm_fast.functional.critic_loss import critic_loss
from dgm_fast.functional.element_maps import (
    AffineMap,
    BernoulliDraw,
    CategoricalDraw,
    ElementMap,
    MixtureDraw,
    SplineMap,
)
from dgm_fast.functional.gradient_penalty import (
    approximate_r1_penalty,
    dragan_penalty,
    explain_gradient_penalty,
    gradient_penalty,
    r1_penalty,
    r2_penalty,
)
from dgm_fast.functional.latent import (
    elbo,
    gaussian_kl,
    iwae_bound,
    log_mean_exp,
    reparameterize,
)
from dgm_fast.functional.layer import conv2d, linear
from dgm_fast.functional.likelihood import (
    bernoulli_log_prob,
    categorical_log_prob,
    gaussian_log_prob,
)
from dgm_fast.functional.linear_head import (
    linear_bernoulli_log_prob,
    linear_categorical_log_prob,
)
from dgm_fast.functional.masked import fvsbn_log_prob, masked_linear
from dgm_fast.functional.mixture import (
    discretized_logistic_mixture_log_prob,
    gaussian_mixture_log_prob,
    sample_discretized_logistic_mixture,
)
from dgm_fast.functional.nade import (
    nade_categorical_log_prob,
    nade_categorical_sample,
    nade_log_prob,
    nade_sample,
    rnade_log_prob,
    rnade_sample,
)
from dgm_fast.functional.pixel import gated_activation, masked_conv1d, masked_conv2d
from dgm_fast.functional.pixel_lstm import diagonal_lstm, row_lstm
from dgm_fast.functional.pixel_network import (
    PixelDraw,
    PixelLayer,
    PixelNetwork,
    PixelNetworkBuilder,
)
from dgm_fast.functional.pixel_sampling import sample_pixels
from dgm_fast.functional.shifted_conv import shifted_conv2d
from dgm_fast.functional.spline import logistic_mixture_cdf, rational_quadratic_spline

__all__ = [
    "AffineMap",
    "BernoulliDraw",
    "CategoricalDraw",
    "ElementMap",
    "MaskedNetwork",
    "MixtureDraw",
    "PixelDraw",
    "PixelLayer",
    "PixelNetwork",
    "PixelNetworkBuilder",
    "SplineMap",
    "actnorm",
    "affine_coupling",
    "approximate_r1_penalty",
    "autoregressive_inverse",
    "bernoulli_log_prob",
    "bias_leaky_relu",
    "categorical_log_prob",
    "conv2d",
    "critic_loss",
    "diagonal_lstm",
    "discretized_logistic_mixture_log_prob",
    "discriminator_loss",
    "dragan_penalty",
    "elbo",
    "explain_gradient_penalty",
    "f_divergence",
    "f_divergence_generator_loss",
    "f_divergence_loss",
    "fvsbn_log_prob",
    "gated_activation",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_mixture_log_prob",
    "generator_loss",
    "gradient_penalty",
    "invertible_linear",
    "iwae_bound",
    "leaky_relu",
    "linear",
    "linear_bernoulli_log_prob",
    "linear_categorical_log_prob",
    "log_mean_exp",
    "logistic_mixture_cdf",
    "masked_conv1d",
    "masked_conv2d",
    "masked_linear",
    "nade_categorical_log_prob",
    "nade_categorical_sample",
    "nade_log_prob",
    "nade_sample",
    "r1_penalty",
    "r2_penalty",
    "rational_quadratic_spline",
    "relu",
    "reparameterize",
    "rnade_log_prob",
    "rnade_sample",
    "row_lstm",
    "sample_discretized_logistic_mixture",
    "sample_pixels",
    "shifted_conv2d",
]
