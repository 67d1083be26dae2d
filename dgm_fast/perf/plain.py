"""The rivals: what a good PyTorch user writes for each op, without this library.

Where the reference formula pays for limits that few users think of (rows of -inf, cancellation near
the prior), these take the faster, usual form, so that a speed-up is not won against our own care.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    dtype = _compute(logits)
    loss = F.binary_cross_entropy_with_logits(logits.to(dtype), x.to(dtype), reduction="none")
    return -loss.sum(-1)


def gaussian_log_prob(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    dtype = _compute(mean)
    mean, log_var = mean.to(dtype), log_var.to(dtype)
    terms = log_var + (x - mean).square() * torch.exp(-log_var)
    return -0.5 * (terms.sum(-1) + terms.shape[-1] * LOG_2PI)


def unit_gaussian_log_prob(x: Tensor, mean: Tensor) -> Tensor:
    diff = x - mean.to(_compute(mean))
    return -0.5 * (diff.square().sum(-1) + diff.shape[-1] * LOG_2PI)


def categorical_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """logits [B, C, D], x [B, D] -> [B]."""
    return -F.cross_entropy(logits.to(_compute(logits)), x, reduction="none").sum(-1)


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    dtype = _compute(mean)
    mean, log_var = mean.to(dtype), log_var.to(dtype)
    return 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum(-1)


def reparameterize(mean: Tensor, log_var: Tensor, eps: Tensor) -> Tensor:
    """mean, log_var [B, L], eps [B, K, L]."""
    return mean.unsqueeze(1) + torch.exp(0.5 * log_var).unsqueeze(1) * eps


def log_mean_exp(log_w: Tensor) -> Tensor:
    log_w = log_w.to(_compute(log_w))
    return torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])


def elbo(x: Tensor, logits: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return bernoulli_log_prob(logits, x) - gaussian_kl(mean, log_var)


def iwae_bernoulli(x: Tensor, logits: Tensor, z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    target = x.unsqueeze(1).expand(logits.shape)
    return _bound(bernoulli_log_prob(logits, target), z, mean, log_var)


def iwae_gaussian(
    x: Tensor, out_mean: Tensor, out_log_var: Tensor, z: Tensor, mean: Tensor, log_var: Tensor
) -> Tensor:
    return _bound(gaussian_log_prob(x.unsqueeze(1), out_mean, out_log_var), z, mean, log_var)


def iwae_unit_gaussian(
    x: Tensor, out_mean: Tensor, z: Tensor, mean: Tensor, log_var: Tensor
) -> Tensor:
    return _bound(unit_gaussian_log_prob(x.unsqueeze(1), out_mean), z, mean, log_var)


def iwae_categorical(x: Tensor, logits: Tensor, z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """logits [B, K, C, D], x [B, D] -> [B]."""
    batch, samples, _, dims = logits.shape
    target = x.unsqueeze(1).expand(batch, samples, dims).flatten(0, 1)
    log_prob = categorical_log_prob(logits.flatten(0, 1), target)
    return _bound(log_prob.view(batch, samples), z, mean, log_var)


def _bound(log_likelihood: Tensor, z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    dtype = _compute(z)
    z, mean, log_var = z.to(dtype), mean.to(dtype).unsqueeze(1), log_var.to(dtype).unsqueeze(1)
    # log p(z) - log q(z | x): the constants L/2 log(2 pi) of both cancel.
    log_q = log_var + (z - mean).square() * torch.exp(-log_var)
    log_ratio = 0.5 * (log_q - z.square()).sum(-1)
    return log_mean_exp(log_likelihood + log_ratio)


def _compute(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32
