"""f-divergences between known densities: what the variational bounds of f-GAN are measured against.

D_f(P || Q) = integral of q f(p / q). The generators f, with u = p / q:

    total_variation           |u - 1| / 2
    kl                        u log u
    reverse_kl                -log u
    pearson                   (u - 1)^2
    neyman                    (1 - u)^2 / u
    squared_hellinger         (sqrt u - 1)^2
    jeffrey                   (u - 1) log u
    jensen_shannon            u log u - (u + 1) log((u + 1) / 2)
    weighted_jensen_shannon   pi u log u - (1 - pi + pi u) log(1 - pi + pi u)
    gan                       u log u - (u + 1) log(u + 1)
    alpha                     (u^alpha - 1 - alpha (u - 1)) / (alpha (alpha - 1))
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgm_fast.reference._common import LOG_2PI

# Quadrature between Gaussians: the trapezoidal rule converges like exp(-points^2) there.
_POINTS = 4001
_DEVIATIONS = 12.0


def _log_ratio(p: Tensor, q: Tensor) -> Tensor:
    """p log(p / q) with its limits: 0 at p = 0, inf at q = 0 < p."""
    return torch.xlogy(p, p) - torch.xlogy(p, q)


def _density_term(p: Tensor, q: Tensor, divergence: str, alpha: float, pi: float) -> Tensor:
    """q f(p / q), with the limits at p = 0 and q = 0."""
    match divergence:
        case "total_variation":
            return 0.5 * (p - q).abs()
        case "kl":
            return _log_ratio(p, q)
        case "reverse_kl":
            return _log_ratio(q, p)
        case "pearson":
            return torch.where(p == q, 0.0, (p - q).square() / q)
        case "neyman":
            return torch.where(p == q, 0.0, (p - q).square() / p)
        case "squared_hellinger":
            return (p.sqrt() - q.sqrt()).square()
        case "jeffrey":
            return _log_ratio(p, q) + _log_ratio(q, p)
        case "jensen_shannon":
            middle = 0.5 * (p + q)
            return _log_ratio(p, middle) + _log_ratio(q, middle)
        case "weighted_jensen_shannon":
            middle = pi * p + (1.0 - pi) * q
            return pi * _log_ratio(p, middle) + (1.0 - pi) * _log_ratio(q, middle)
        case "gan":
            return _log_ratio(p, p + q) + _log_ratio(q, p + q)
        case _:
            power = torch.where(p == q, p, p.pow(alpha) * q.pow(1.0 - alpha))
            return (power - q - alpha * (p - q)) / (alpha * (alpha - 1.0))


def discrete_f_divergence(
    p: Tensor, q: Tensor, divergence: str, *, alpha: float = 2.0, pi: float = 0.5
) -> Tensor:
    """Between probability vectors [..., K] -> [...], in nats."""
    return _density_term(p, q, divergence, alpha, pi).sum(-1)


Gaussian = tuple[Tensor, Tensor]


def _gaussian_kl(p: Gaussian, q: Gaussian) -> Tensor:
    (mean_p, log_var_p), (mean_q, log_var_q) = p, q
    d = log_var_p - log_var_q
    terms = d.exp() - 1.0 - d + (mean_p - mean_q).square() * (-log_var_q).exp()
    return 0.5 * terms.sum(-1)


def _gaussian_power(p: Gaussian, q: Gaussian, alpha: float) -> Tensor:
    """Integral of p^alpha q^(1 - alpha): infinite where the product of powers has no finite mass."""
    (mean_p, log_var_p), (mean_q, log_var_q) = p, q
    spread = alpha * log_var_q.exp() + (1.0 - alpha) * log_var_p.exp()
    exists = spread > 0.0
    spread = torch.where(exists, spread, 1.0)
    log_terms = 0.5 * (
        (1.0 - alpha) * log_var_p
        + alpha * log_var_q
        - spread.log()
        - alpha * (1.0 - alpha) * (mean_p - mean_q).square() / spread
    )
    return torch.where(exists, log_terms, math.inf).sum(-1).exp()


def _gaussian_quadrature(
    p: Gaussian, q: Gaussian, divergence: str, alpha: float, pi: float
) -> Tensor:
    if p[0].shape[-1] != 1:
        raise ValueError(
            f"{divergence} between Gaussians is integrated numerically, in one dimension only; "
            f"got {p[0].shape[-1]}"
        )
    deviations = [(0.5 * log_var).exp() for _, log_var in (p, q)]
    ends = [(m, s * _DEVIATIONS) for (m, _), s in zip((p, q), deviations, strict=True)]
    low = torch.minimum(ends[0][0] - ends[0][1], ends[1][0] - ends[1][1])
    high = torch.maximum(ends[0][0] + ends[0][1], ends[1][0] + ends[1][1])
    grid = torch.linspace(0.0, 1.0, _POINTS, dtype=low.dtype, device=low.device)
    x = low + (high - low) * grid  # [..., points]
    p_x, q_x = (
        torch.exp(-0.5 * (((x - m) / s).square() + 2.0 * s.log() + LOG_2PI))
        for (m, _), s in zip((p, q), deviations, strict=True)
    )
    return torch.trapezoid(_density_term(p_x, q_x, divergence, alpha, pi), x, dim=-1)


def gaussian_f_divergence(
    p: Gaussian, q: Gaussian, divergence: str, *, alpha: float = 2.0, pi: float = 0.5
) -> Tensor:
    """Between diagonal Gaussians (mean, log_var), [..., D] -> [...], in nats.

    In closed form where there is one; the total variation, both Jensen-Shannon divergences and GAN by
    quadrature in one dimension.
    """
    match divergence:
        case "kl":
            return _gaussian_kl(p, q)
        case "reverse_kl":
            return _gaussian_kl(q, p)
        case "jeffrey":
            return _gaussian_kl(p, q) + _gaussian_kl(q, p)
        case "pearson":
            return _gaussian_power(p, q, 2.0) - 1.0
        case "neyman":
            return _gaussian_power(p, q, -1.0) - 1.0
        case "squared_hellinger":
            return 2.0 - 2.0 * _gaussian_power(p, q, 0.5)
        case "alpha":
            return (_gaussian_power(p, q, alpha) - 1.0) / (alpha * (alpha - 1.0))
        case _:
            return _gaussian_quadrature(p, q, divergence, alpha, pi)
