"""Launchers of the adversarial family. The critic's step is matrix products, which are the library's."""

from dgm_fast.kernels.activation import (
    bias_leaky_relu_bwd,
    bias_leaky_relu_fwd,
    leaky_relu_bwd,
    leaky_relu_fwd,
)
from dgm_fast.kernels.adversarial_loss import adversarial_loss_bwd, adversarial_loss_fwd
from dgm_fast.kernels.gradient_penalty import (
    interpolate_fwd,
    norm_penalty_bwd,
    norm_penalty_fwd,
)

__all__ = [
    "adversarial_loss_bwd",
    "adversarial_loss_fwd",
    "bias_leaky_relu_bwd",
    "bias_leaky_relu_fwd",
    "interpolate_fwd",
    "leaky_relu_bwd",
    "leaky_relu_fwd",
    "norm_penalty_bwd",
    "norm_penalty_fwd",
]
