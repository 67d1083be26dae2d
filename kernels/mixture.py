"""Launchers of the mixture family."""

from dgm_fast.kernels.gaussian_mixture import (
    gaussian_mixture_log_prob_bwd,
    gaussian_mixture_log_prob_fwd,
)
from dgm_fast.kernels.logistic_mixture import (
    discretized_logistic_mixture_log_prob_bwd,
    discretized_logistic_mixture_log_prob_fwd,
)

__all__ = [
    "discretized_logistic_mixture_log_prob_bwd",
    "discretized_logistic_mixture_log_prob_fwd",
    "gaussian_mixture_log_prob_bwd",
    "gaussian_mixture_log_prob_fwd",
]
