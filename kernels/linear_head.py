"""Launchers of the linear-head family."""

from dgm_fast.kernels.linear_bernoulli import (
    linear_bernoulli_log_prob_bwd,
    linear_bernoulli_log_prob_fwd,
)
from dgm_fast.kernels.linear_categorical import (
    linear_categorical_log_prob_bwd,
    linear_categorical_log_prob_fwd,
)

__all__ = [
    "linear_bernoulli_log_prob_bwd",
    "linear_bernoulli_log_prob_fwd",
    "linear_categorical_log_prob_bwd",
    "linear_categorical_log_prob_fwd",
]
