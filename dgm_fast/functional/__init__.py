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

__all__ = [
    "bernoulli_log_prob",
    "categorical_log_prob",
    "elbo",
    "gaussian_kl",
    "gaussian_log_prob",
    "iwae_bound",
    "log_mean_exp",
    "reparameterize",
]
