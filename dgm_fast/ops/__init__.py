"""Registration: schema, fake, autograd and backend choice of every op in the namespace ``dgm_fast::``."""

from dgm_fast.ops._backend import (
    BACKENDS,
    WITHOUT_TRITON,
    backend,
    check_values,
    explain,
    get_backend,
    use_kernel,
    values_checked,
)
from dgm_fast.ops._extension import (
    ISA_LEVELS,
    active_isa,
    active_library,
    built_isas,
    default_isa,
    empty_cache,
    machine_isa,
    missing,
    runnable_isas,
    use_isa,
)
from dgm_fast.ops._registry import (
    SPECS,
    STANDALONE,
    OpSpec,
    differentiable_arguments,
    differentiable_outputs,
    saved_outputs,
)
from dgm_fast.ops._tuning import Tuning, clear_tuning, load_tuning, strategy
from dgm_fast.ops.adversarial import (
    adversarial_loss,
    bias_leaky_relu,
    interpolate,
    leaky_relu,
    norm_penalty,
    term_code,
)
from dgm_fast.ops.autoregressive import (
    ACTIVATIONS,
    ELEMENT_MAPS,
    autoregressive_inverse,
)
from dgm_fast.ops.bilinear_layer import layer
from dgm_fast.ops.coupling import SCALES, actnorm, affine_coupling
from dgm_fast.ops.critic_step import critic_step
from dgm_fast.ops.latent import elbo, gaussian_kl, iwae_bound, log_mean_exp, reparameterize
from dgm_fast.ops.likelihood import (
    LIKELIHOODS,
    bernoulli_log_prob,
    categorical_log_prob,
    gaussian_log_prob,
)
from dgm_fast.ops.linear_head import (
    PACKINGS,
    linear_bernoulli_log_prob,
    linear_categorical_log_prob,
)
from dgm_fast.ops.masked import fvsbn_log_prob, masked_linear
from dgm_fast.ops.mixture import (
    discretized_logistic_mixture_log_prob,
    gaussian_mixture_log_prob,
)
from dgm_fast.ops.nade import (
    MIXTURES,
    nade_categorical_log_prob,
    nade_categorical_sample,
    nade_log_prob,
    nade_sample,
    rnade_log_prob,
    rnade_sample,
)
from dgm_fast.ops.pixel import CHANNEL_ORDERS, MASK_TYPES, gated_activation, masked_conv2d
from dgm_fast.ops.pixel_lstm import diagonal_lstm, row_lstm
from dgm_fast.ops.pixel_sampling import pixel_arguments, pixel_sample, row_progress
from dgm_fast.ops.shifted_conv import shifted_conv2d
from dgm_fast.ops.spline import (
    PARAMETERIZATIONS,
    SPLINE_ENDS,
    logistic_mixture_cdf,
    rational_quadratic_spline,
)

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "CHANNEL_ORDERS",
    "ELEMENT_MAPS",
    "ISA_LEVELS",
    "LIKELIHOODS",
    "MASK_TYPES",
    "MIXTURES",
    "PACKINGS",
    "PARAMETERIZATIONS",
    "SCALES",
    "SPECS",
    "SPLINE_ENDS",
    "STANDALONE",
    "WITHOUT_TRITON",
    "OpSpec",
    "Tuning",
    "active_isa",
    "active_library",
    "actnorm",
    "adversarial_loss",
    "affine_coupling",
    "autoregressive_inverse",
    "backend",
    "bernoulli_log_prob",
    "bias_leaky_relu",
    "built_isas",
    "categorical_log_prob",
    "check_values",
    "clear_tuning",
    "critic_step",
    "default_isa",
    "diagonal_lstm",
    "differentiable_arguments",
    "differentiable_outputs",
    "discretized_logistic_mixture_log_prob",
    "elbo",
    "empty_cache",
    "explain",
    "fvsbn_log_prob",
    "gated_activation",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_mixture_log_prob",
    "get_backend",
    "interpolate",
    "iwae_bound",
    "layer",
    "leaky_relu",
    "linear_bernoulli_log_prob",
    "linear_categorical_log_prob",
    "load_tuning",
    "log_mean_exp",
    "logistic_mixture_cdf",
    "machine_isa",
    "masked_conv2d",
    "masked_linear",
    "missing",
    "nade_categorical_log_prob",
    "nade_categorical_sample",
    "nade_log_prob",
    "nade_sample",
    "norm_penalty",
    "pixel_arguments",
    "pixel_sample",
    "rational_quadratic_spline",
    "reparameterize",
    "rnade_log_prob",
    "rnade_sample",
    "row_lstm",
    "row_progress",
    "runnable_isas",
    "saved_outputs",
    "shifted_conv2d",
    "strategy",
    "term_code",
    "use_isa",
    "use_kernel",
    "values_checked",
]
