"""Variational dequantisation of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgm_fast.models._image_flow import check_even_width, check_image_shape
from dgm_fast.models._inputs import check_count
from dgm_fast.nn import Compose, ConvResNet, ImageCoupling


class VariationalDequantizer(nn.Module):
    r"""q(u | x) of the noise u in [0, 1) that is added to the levels x of images, a small conditional flow.

    .. math:: u = \sigma(f(\mathrm{logit}(\epsilon); h(x))), \qquad \epsilon \sim U(0, 1)^D

    f is a stack of couplings on checkerboards whose networks hear the features h(x) of a convolutional
    network. It starts as the identity: as uniform dequantisation. (Flow++ starts from normal noise.)

    Args:
        image_shape: (channels, height, width), or (height, width) for one channel; the width even.
        num_levels: C, of x.
        num_couplings: of f.
        coupling: "affine", "mixture" or "spline", as for :class:`dgm_fast.nn.ImageCoupling`.
        channels, num_blocks: of all networks; h(x) has as many channels.

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: Ho et al., "Flow++" (2019), section 3.1.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_levels: int,
        *,
        num_couplings: int = 4,
        coupling: str = "affine",
        channels: int = 32,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        check_count("num_levels", num_levels, at_least=2)
        check_count("num_couplings", num_couplings)
        self.image_shape = check_image_shape(image_shape)
        check_even_width(self.image_shape[2], self.image_shape)
        self.num_levels = num_levels
        number = self.image_shape[0]
        self.features = ConvResNet(
            number, channels, channels=channels, num_blocks=num_blocks, zero_init=False
        )
        self.transform = Compose(
            ImageCoupling(
                number,
                "checkerboard",
                flip=i % 2 == 1,
                coupling=coupling,
                channels=channels,
                num_blocks=num_blocks,
                context_channels=channels,
            )
            for i in range(num_couplings)
        )

    def forward(self, x: Tensor, *, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A draw of u for each of the levels x, and log q(u | x), [B] in nats.

        Args:
            x: floating point, [B, C, H, W] or [B, D].
            noise: epsilon in (0, 1), like x, in place of the global generator's.
        """
        images = x.reshape(-1, *self.image_shape)
        features = self.features(images * (2 / (self.num_levels - 1)) - 1)
        if noise is None:
            # A uniform of exactly 0 would be minus infinity.
            noise = torch.rand_like(images).clamp(min=0.5 * torch.finfo(images.dtype).eps)
        start = torch.logit(noise.reshape(images.shape))
        v, log_det = self.transform(start, context=features)
        # log q(u) = log |d epsilon / d u|: of the logit, f, and the sigmoid.
        log_q = _log_slope(start) - log_det - _log_slope(v)
        # Rounding must not carry a level into the next one.
        u = torch.sigmoid(v).clamp(max=1 - torch.finfo(v.dtype).eps)
        return u.reshape(x.shape), log_q


def _log_slope(v: Tensor) -> Tensor:
    """Sum of log sigmoid'(v), [B]."""
    return (F.logsigmoid(v) + F.logsigmoid(-v)).flatten(1).sum(1)
