"""Invertible 1x1 convolutions."""

from __future__ import annotations

from dgm_fast.nn.invertible_linear import LULinear


class InvertibleConv1x1(LULinear):
    """Invertible linear map of the channels of every pixel, in LU form, that starts at a random rotation.

    A :class:`LULinear` of the channels, without a bias: actnorm has one.

    Args:
        num_channels: C, of images [B, C, H, W].

    Source: Kingma and Dhariwal, "Glow" (2018), section 3.2.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels, initial="orthogonal", bias=False)
