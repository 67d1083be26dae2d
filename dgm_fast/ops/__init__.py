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
    built_isas,
    empty_cache,
    machine_isa,
    missing,
    runnable_isas,
    use_isa,
)
from dgm_fast.ops._registry import SPECS, OpSpec, differentiable_arguments
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

__all__ = [
    "BACKENDS",
    "CHANNEL_ORDERS",
    "ISA_LEVELS",
    "LIKELIHOODS",
    "MASK_TYPES",
    "MIXTURES",
    "PACKINGS",
    "SPECS",
    "WITHOUT_TRITON",
    "OpSpec",
    "active_isa",
    "backend",
    "bernoulli_log_prob",
    "built_isas",
    "categorical_log_prob",
    "check_values",
    "differentiable_arguments",
    "discretized_logistic_mixture_log_prob",
    "elbo",
    "empty_cache",
    "explain",
    "gated_activation",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_mixture_log_prob",
    "get_backend",
    "iwae_bound",
    "linear_bernoulli_log_prob",
    "linear_categorical_log_prob",
    "log_mean_exp",
    "machine_isa",
    "masked_conv2d",
    "missing",
    "nade_categorical_log_prob",
    "nade_categorical_sample",
    "nade_log_prob",
    "nade_sample",
    "reparameterize",
    "rnade_log_prob",
    "rnade_sample",
    "runnable_isas",
    "use_isa",
    "use_kernel",
    "values_checked",
]
