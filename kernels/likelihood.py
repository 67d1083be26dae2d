"""Launchers of the likelihood family."""

from dgm_fast.kernels.bernoulli import bernoulli_log_prob_bwd, bernoulli_log_prob_fwd
from dgm_fast.kernels.categorical import categorical_log_prob_bwd, categorical_log_prob_fwd
from dgm_fast.kernels.gaussian import gaussian_log_prob_bwd, gaussian_log_prob_fwd

__all__ = [
    "bernoulli_log_prob_bwd",
    "bernoulli_log_prob_fwd",
    "categorical_log_prob_bwd",
    "categorical_log_prob_fwd",
    "gaussian_log_prob_bwd",
    "gaussian_log_prob_fwd",
]
