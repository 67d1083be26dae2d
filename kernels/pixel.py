"""Launchers of the pixel family."""

from dgm_fast.kernels.gated import gated_activation_bwd, gated_activation_fwd
from dgm_fast.kernels.masked_conv import masked_conv2d_bwd, masked_conv2d_fwd

__all__ = [
    "gated_activation_bwd",
    "gated_activation_fwd",
    "masked_conv2d_bwd",
    "masked_conv2d_fwd",
]
