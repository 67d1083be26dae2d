"""Launchers of the latent family."""

from dgm_fast.kernels.divergence import gaussian_kl_bwd, gaussian_kl_fwd
from dgm_fast.kernels.elbo import elbo_bwd, elbo_fwd
from dgm_fast.kernels.iwae import iwae_bound_bwd, iwae_bound_fwd
from dgm_fast.kernels.log_mean_exp import log_mean_exp_bwd, log_mean_exp_fwd
from dgm_fast.kernels.sampling import reparameterize_bwd, reparameterize_fwd

__all__ = [
    "elbo_bwd",
    "elbo_fwd",
    "gaussian_kl_bwd",
    "gaussian_kl_fwd",
    "iwae_bound_bwd",
    "iwae_bound_fwd",
    "log_mean_exp_bwd",
    "log_mean_exp_fwd",
    "reparameterize_bwd",
    "reparameterize_fwd",
]
