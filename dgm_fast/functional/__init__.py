"""The public stateless API. Functions return one number per sample, in nats."""

from dgm_fast.functional.latent import (
    elbo,
    gaussian_kl,
    iwae_bound,
    log_mean_exp,
    reparameterize,
)
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

__all__ = [
    "bernoulli_log_prob",
    "categorical_log_prob",
    "discretized_logistic_mixture_log_prob",
    "elbo",
    "fvsbn_log_prob",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_mixture_log_prob",
    "iwae_bound",
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
    "sample_discretized_logistic_mixture",
]
