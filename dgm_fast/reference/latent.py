"""Reference formulas of variational bounds, in nats per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_fast.reference._common import compute_dtype, log_sum_exp, sum_event
from dgm_fast.reference.likelihood import (
    bernoulli_log_prob,
    categorical_log_prob,
    gaussian_log_prob,
)

TensorOrPair = Tensor | tuple[Tensor, Tensor]


def gaussian_kl(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None = None,
    prior_log_var: Tensor | None = None,
    *,
    event_ndim: int = 1,
) -> Tensor:
    """KL(N(mean, e^log_var) || N(prior_mean, e^prior_log_var)).

    Written as 1/2 sum [expm1(d) - d + (mean - prior_mean)^2 e^-prior_log_var] with
    d = log_var - prior_log_var, which does not cancel when the two are close.
    """
    dtype = compute_dtype(mean, log_var, prior_mean, prior_log_var)
    mean, log_var = mean.to(dtype), log_var.to(dtype)
    diff = mean if prior_mean is None else mean - prior_mean.to(dtype)
    if prior_log_var is None:
        terms = torch.expm1(log_var) - log_var + diff.square()
    else:
        prior_log_var = prior_log_var.to(dtype)
        delta = log_var - prior_log_var
        terms = torch.expm1(delta) - delta + diff.square() * torch.exp(-prior_log_var)
    return 0.5 * sum_event(terms, event_ndim)


def reparameterize(mean: Tensor, log_var: Tensor, eps: Tensor) -> Tensor:
    """mean + exp(log_var / 2) * eps; eps [B, L] or, for K samples, [B, K, L]."""
    if eps.ndim == mean.ndim + 1:
        mean, log_var = mean.unsqueeze(-2), log_var.unsqueeze(-2)
    dtype = compute_dtype(mean, log_var)
    z = mean.to(dtype) + torch.exp(0.5 * log_var.to(dtype)) * eps.to(dtype)
    return z.to(torch.promote_types(mean.dtype, log_var.dtype))


def log_mean_exp(log_w: Tensor, dim: int = -1) -> Tensor:
    """log(1/K sum_k exp(log_w_k)) with the right limits.

    Rows of -inf give -inf and zero gradient, a +inf entry gives +inf and a one-hot gradient;
    ``torch.logsumexp`` differentiates both to NaN.
    """
    return log_sum_exp(log_w.to(compute_dtype(log_w)), dim, mean=True)


def decoder_log_prob(
    x: Tensor, decoder_out: TensorOrPair, likelihood: str, *, samples: bool
) -> Tensor:
    """log p(x | z) for decoder outputs [B, D] or, with ``samples``, [B, K, D] -> [B] or [B, K]."""
    if samples and x.ndim == 2:
        x = x.unsqueeze(1)
    if likelihood == "bernoulli":
        assert isinstance(decoder_out, Tensor)
        return bernoulli_log_prob(decoder_out, x)
    if likelihood == "gaussian":
        mean, log_var = decoder_out if isinstance(decoder_out, tuple) else (decoder_out, None)
        return gaussian_log_prob(x, mean, log_var)
    assert isinstance(decoder_out, Tensor)
    return categorical_log_prob(decoder_out, x, class_dim=-2)


def elbo(
    x: Tensor,
    decoder_out: TensorOrPair,
    mean: Tensor,
    log_var: Tensor,
    *,
    likelihood: str = "bernoulli",
    beta: float = 1.0,
) -> Tensor:
    """log p(x | z) - beta KL(q(z | x) || N(0, I))."""
    log_prob = decoder_log_prob(x, decoder_out, likelihood, samples=False)
    return log_prob - beta * gaussian_kl(mean, log_var)


def iwae_log_weights(
    x: Tensor,
    decoder_out: TensorOrPair,
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    *,
    likelihood: str = "bernoulli",
    prior: TensorOrPair | None = None,
    estimator: str = "iwae",
) -> Tensor:
    """log p(x | z_k) + log p(z_k) - log q(z_k | x), [B, K]."""
    if estimator in ("stl", "dreg"):
        mean, log_var = mean.detach(), log_var.detach()
    log_likelihood = decoder_log_prob(x, decoder_out, likelihood, samples=True)
    if prior is None:
        log_prior = gaussian_log_prob(z, z.new_zeros(()))
    elif isinstance(prior, tuple):
        log_prior = gaussian_log_prob(z, *prior)
    else:
        log_prior = prior.to(log_likelihood.dtype)
    log_q = gaussian_log_prob(z, mean.unsqueeze(1), log_var.unsqueeze(1))
    return log_likelihood + log_prior - log_q


def iwae_bound(
    x: Tensor,
    decoder_out: TensorOrPair,
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    *,
    likelihood: str = "bernoulli",
    prior: TensorOrPair | None = None,
    estimator: str = "iwae",
) -> Tensor:
    """log 1/K sum_k w_k with w_k = p(x | z_k) p(z_k) / q(z_k | x), [B].

    For ``estimator="dreg"`` this gives the value and the gradient of "stl"; the extra weight on the
    path through z is a hook that ``functional.iwae_bound`` places on z.
    """
    log_w = iwae_log_weights(
        x, decoder_out, z, mean, log_var, likelihood=likelihood, prior=prior, estimator=estimator
    )
    return log_mean_exp(log_w, dim=-1)
