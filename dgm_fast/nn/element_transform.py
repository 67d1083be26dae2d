"""Monotone maps of single entries, with parameters from a network or of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dgm_fast import functional, ops
from dgm_fast.functional import AffineMap, SplineMap

# Smallest distribution function that a logit is taken of: that of float32's normal range.
_TINY = 1.2e-38
# Of a network's last layer: what is left of its own initial weights where it starts near the identity.
INITIAL_SHARE = 0.01


class ElementTransform:
    r"""A map :math:`z_d = f(x_d; \theta_d)`, increasing in x_d: what couplings and others apply.

    Called with x [B, n] and parameters [B, n, P], or [n, P] for all samples alike, it gives z [B, n] and
    :math:`\sum_d \log f'(x_d)`, [B] in nats; with ``inverse`` x of z, and the negative sum.

    Attributes:
        params_first: whether the parameters of one kind should lie side by side in memory, [B, P, n],
            in place of those of one entry.
    """

    params_first: bool = False

    @property
    def params_per_dim(self) -> int:
        """P."""
        raise NotImplementedError

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def initial_params(self) -> Tensor:
        """Parameters [P] of a map that is the identity, or near it: where networks start."""
        return torch.zeros(self.params_per_dim)

    def element_map(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
        """The inverse as :func:`dgm_fast.functional.autoregressive_inverse` takes it."""

        def inverse_of_one(z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
            x, log_abs_det = self(z.unsqueeze(1), params.unsqueeze(1), inverse=True)
            return x.squeeze(1), log_abs_det

        return inverse_of_one


@dataclass(frozen=True)
class AdditiveElement(ElementTransform):
    """z = x + shift: volume-preserving. One parameter, the shift.

    Source: Dinh, Krueger and Bengio, "NICE" (2014), section 3.2.
    """

    @property
    def params_per_dim(self) -> int:
        return 1

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        return functional.affine_coupling(x, None, params.squeeze(-1), inverse=inverse)


@dataclass(frozen=True)
class AffineElement(ElementTransform):
    r"""z = x e^l + shift. Two parameters, the shift and u, of which ``scale`` forms l.

    Args:
        scale, clamp: as for :func:`dgm_fast.functional.affine_coupling`: "exp", "sigmoid2", "softplus",
            "tanh", "atan" or "softsign".

    Starts as the identity, but "sigmoid2", which starts at the scale 0.88.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), equations 7-8.
    """

    scale: str = "tanh"
    clamp: float = 2.0

    params_first = True

    def __post_init__(self) -> None:
        if self.scale not in ops.SCALES:
            raise ValueError(f"scale must be one of {tuple(ops.SCALES)}, got {self.scale!r}")
        if not self.clamp > 0:
            raise ValueError(f"clamp must be positive, got {self.clamp}")

    @property
    def params_per_dim(self) -> int:
        return 2

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        shift, u = params.unbind(-1)
        return functional.affine_coupling(
            x, u, shift, inverse=inverse, scale=self.scale, clamp=self.clamp
        )

    def initial_params(self) -> Tensor:
        # softplus(u) + 1e-3 = 1. The scale of sigmoid2 comes to 1 only where its slope has vanished.
        u = math.log(math.expm1(1 - 1e-3)) if self.scale == "softplus" else 0.0
        return torch.tensor([0.0, u])

    def element_map(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
        return AffineMap(self.scale, self.clamp, inverse=True)


@dataclass(frozen=True)
class SplineElement(ElementTransform):
    """A monotone rational-quadratic spline of K bins on [-B, B], the identity outside.

    3 K - 1 parameters: K widths, K heights, K - 1 slopes, as for
    :func:`dgm_fast.functional.rational_quadratic_spline`.

    Args:
        num_bins: K.
        tail_bound: B.
        min_bin_width, min_bin_height, min_derivative: least shares and slope.

    Source: Durkan, Bekasov, Murray and Papamakarios, "Neural Spline Flows" (2019), section 3.1; K = 8 and
    B = 3 are those of its tabular experiments (appendix B.1).
    """

    num_bins: int = 8
    tail_bound: float = 3.0
    min_bin_width: float = 1e-3
    min_bin_height: float = 1e-3
    min_derivative: float = 1e-3

    def __post_init__(self) -> None:
        if isinstance(self.num_bins, bool) or not isinstance(self.num_bins, int):
            raise TypeError(f"num_bins must be an int, got {type(self.num_bins).__name__}")
        if self.num_bins < 2:
            raise ValueError(f"num_bins must be at least 2, got {self.num_bins}")
        if not self.tail_bound > 0:
            raise ValueError(f"tail_bound must be positive, got {self.tail_bound}")

    @property
    def params_per_dim(self) -> int:
        return 3 * self.num_bins - 1

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        bins = self.num_bins
        widths, heights, derivatives = params.split([bins, bins, bins - 1], -1)
        return functional.rational_quadratic_spline(
            x,
            widths,
            heights,
            derivatives,
            inverse=inverse,
            tail_bound=self.tail_bound,
            min_bin_width=self.min_bin_width,
            min_bin_height=self.min_bin_height,
            min_derivative=self.min_derivative,
            sum_log_det=True,
        )

    def element_map(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
        return SplineMap(
            self.num_bins,
            tail_bound=self.tail_bound,
            min_bin_width=self.min_bin_width,
            min_bin_height=self.min_bin_height,
            min_derivative=self.min_derivative,
            inverse=True,
        )

    def initial_params(self) -> Tensor:
        params = torch.zeros(self.params_per_dim)
        params[2 * self.num_bins :] = math.log(math.expm1(1 - self.min_derivative))
        return params


@dataclass(frozen=True)
class LogisticMixtureElement(ElementTransform):
    r"""The distribution function F of a mixture of M logistics, and its logit by default.

    .. math:: z = \log \frac{F(x)}{1 - F(x)}, \qquad
        F(x) = \sum_m \pi_m\, \sigma\Big(\frac{x - \mu_m}{s_m}\Big)

    3 M parameters: logits of pi, means, log-scales. Both tails keep their digits, up to 87 scales from all
    means, where the logit stops. Without ``logit`` z = F(x) lies in (0, 1) and suits a uniform base.

    Args:
        num_mixtures: M.
        logit: whether z is the logit.

    Source: Ho et al., "Flow++" (2019), section 3.2.
    """

    num_mixtures: int = 8
    logit: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.num_mixtures, bool) or not isinstance(self.num_mixtures, int):
            raise TypeError(f"num_mixtures must be an int, got {type(self.num_mixtures).__name__}")
        if self.num_mixtures < 1:
            raise ValueError(f"num_mixtures must be at least 1, got {self.num_mixtures}")

    @property
    def params_per_dim(self) -> int:
        return 3 * self.num_mixtures

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        logits, means, log_scales = params.chunk(3, -1)
        if not self.logit:
            z, log_slope = functional.logistic_mixture_cdf(
                x, logits, means, log_scales, inverse=inverse
            )
            return z, log_slope.sum(-1)
        if inverse:
            # From the nearer end, where the distribution function has digits left: x = -F~^-1(1 - F)
            # with the mixture mirrored.
            sign = torch.where(x > 0, -1.0, 1.0).to(x.dtype)
            value = torch.sigmoid(sign * x)
            y, log_slope = functional.logistic_mixture_cdf(
                value, logits, sign.unsqueeze(-1) * means, log_scales, inverse=True
            )
            rest = torch.nn.functional.logsigmoid(x) + torch.nn.functional.logsigmoid(-x)
            return sign * y, (log_slope + rest).sum(-1)
        below, log_slope = functional.logistic_mixture_cdf(x, logits, means, log_scales)
        above, _ = functional.logistic_mixture_cdf(-x, logits, -means, log_scales)
        log_below, log_above = below.clamp(min=_TINY).log(), above.clamp(min=_TINY).log()
        return log_below - log_above, (log_slope - log_below - log_above).sum(-1)

    def initial_params(self) -> Tensor:
        # Equal components would stay equal.
        means = (
            torch.linspace(-2, 2, self.num_mixtures) if self.num_mixtures > 1 else torch.zeros(1)
        )
        zeros = torch.zeros_like(means)
        return torch.cat([zeros, means, zeros])
