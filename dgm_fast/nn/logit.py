"""The logit of bounded data: what a flow of images begins with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast import ops
from dgm_fast.functional._checks import raise_unless_valid, values_visible
from dgm_fast.nn.transform import Transform
from dgm_fast.reference._common import compute_dtype


class LogitTransform(Transform):
    r"""Data in [0, 1] on the real line.

    .. math:: z = \mathrm{logit}(s), \qquad s = \alpha + (1 - 2 \alpha)\, x, \qquad
        \log|\det| = \sum \log \frac{1 - 2 \alpha}{s\,(1 - s)}

    The inverse reaches a little beyond: from :math:`-\alpha / (1 - 2 \alpha)` to 1 plus as much.

    Args:
        alpha: how far data stay from the ends, in [0, 0.5).

    Raises:
        ValueError: of ``forward``, on the CPU or under ``check_values(True)``: if x is outside of what the
            inverse reaches; elsewhere such an entry gives NaN.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), section 4.1; with both ends kept
    away as in Papamakarios et al., "Masked Autoregressive Flow for Density Estimation" (2017), appendix E.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha must be in [0, 0.5), got {alpha}")
        self.alpha = alpha

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = x.to(compute_dtype(x))
        s = self.alpha + (1 - 2 * self.alpha) * x
        if values_visible() and (x.is_cpu or ops.values_checked()):
            raise_unless_valid(x, (s > 0) & (s < 1), "values in [0, 1] for the logit")
        below, above = s.log(), (-s).log1p()
        log_det = math.log1p(-2 * self.alpha) - below - above
        return below - above, log_det.flatten(1).sum(1)

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = z.to(compute_dtype(z))
        x = (torch.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)
        log_det = F.logsigmoid(z) + F.logsigmoid(-z) - math.log1p(-2 * self.alpha)
        return x, log_det.flatten(1).sum(1)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
