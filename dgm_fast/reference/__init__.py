"""Plain differentiable PyTorch for every op: ground truth, fallback and benchmark baseline.

Each function states the textbook formula and nothing else: no argument checks, no dispatch. Inputs of
reduced precision are promoted to float32 first, as the kernels do.
"""

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

__all__ = [
    "bernoulli_log_prob",
    "categorical_log_prob",
    "degree_mask",
    "discretized_logistic_mixture_log_prob",
    "elbo",
    "fvsbn_log_prob",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_mixture_log_prob",
    "iwae_bound",
    "iwae_log_weights",
    "linear_bernoulli_log_prob",
    "linear_categorical_log_prob",
    "log_mean_exp",
    "masked_linear",
    "nade_categorical_log_prob",
    "nade_categorical_sample",
    "nade_log_prob",
    "nade_sample",
    "reparameterize",
    "rnade_log_prob",
    "rnade_sample",
]
