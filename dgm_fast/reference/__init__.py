"""Plain differentiable PyTorch for every op: ground truth, fallback and benchmark baseline.

Each function states the textbook formula and nothing else: no argument checks, no dispatch. Inputs of
reduced precision are promoted to float32 first, as the kernels do.
"""

from dgm_fast.reference.adversarial import (
    adversarial_loss,
    bias_leaky_relu,
    discriminator_loss,
    f_divergence_generator_loss,
    f_divergence_loss,
    generator_loss,
    interpolate,
    leaky_relu,
    norm_penalty,
)
from dgm_fast.reference.autoregressive import ACTIVATIONS, autoregressive_inverse
from dgm_fast.reference.coupling import actnorm, affine_coupling
from dgm_fast.reference.latent import (
    elbo,
    gaussian_kl,
    iwae_bound,
    iwae_log_weights,
    log_mean_exp,
    reparameterize,
)
from dgm_fast.reference.likelihood import (
    bernoulli_log_prob,
    categorical_log_prob,
    gaussian_log_prob,
)
from dgm_fast.reference.linear_head import (
    linear_bernoulli_log_prob,
    linear_categorical_log_prob,
)
from dgm_fast.reference.masked import degree_mask, fvsbn_log_prob, masked_linear
from dgm_fast.reference.mixture import (
    discretized_logistic_mixture_log_prob,
    gaussian_mixture_log_prob,
)
from dgm_fast.reference.nade import (
    nade_categorical_log_prob,
    nade_categorical_sample,
    nade_log_prob,
    nade_sample,
    rnade_log_prob,
    rnade_sample,
)
from dgm_fast.reference.pixel import (
    conv_mask,
    cropped_conv2d,
    gated_activation,
    masked_conv1d,
    masked_conv2d,
    shifted_conv2d,
)
from dgm_fast.reference.pixel_lstm import diagonal_lstm, lstm_states, row_lstm
from dgm_fast.reference.pixel_sampling import pixel_sample
from dgm_fast.reference.spline import logistic_mixture_cdf, rational_quadratic_spline

__all__ = [
    "ACTIVATIONS",
    "actnorm",
    "adversarial_loss",
    "affine_coupling",
    "autoregressive_inverse",
    "bernoulli_log_prob",
    "bias_leaky_relu",
    "categorical_log_prob",
    "conv_mask",
    "cropped_conv2d",
    "degree_mask",
    "diagonal_lstm",
    "discretized_logistic_mixture_log_prob",
    "discriminator_loss",
    "elbo",
    "f_divergence_generator_loss",
    "f_divergence_loss",
    "fvsbn_log_prob",
    "gated_activation",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_mixture_log_prob",
    "generator_loss",
    "interpolate",
    "iwae_bound",
    "iwae_log_weights",
    "leaky_relu",
    "linear_bernoulli_log_prob",
    "linear_categorical_log_prob",
    "log_mean_exp",
    "logistic_mixture_cdf",
    "lstm_states",
    "masked_conv1d",
    "masked_conv2d",
    "masked_linear",
    "nade_categorical_log_prob",
    "nade_categorical_sample",
    "nade_log_prob",
    "nade_sample",
    "norm_penalty",
    "pixel_sample",
    "rational_quadratic_spline",
    "reparameterize",
    "rnade_log_prob",
    "rnade_sample",
    "row_lstm",
    "shifted_conv2d",
]
