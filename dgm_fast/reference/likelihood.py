"""Reference log-likelihoods of decoders, in nats per sample."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast.reference._common import LOG_2PI, compute_dtype, sum_event


def bernoulli_log_prob(logits: Tensor, x: Tensor, *, event_ndim: int = 1) -> Tensor:
    """sum_d x_d l_d - log(1 + exp(l_d))."""
    dtype = compute_dtype(logits)
    logits, x = torch.broadcast_tensors(logits.to(dtype), x.to(dtype))
    return -sum_event(F.binary_cross_entropy_with_logits(logits, x, reduction="none"), event_ndim)


def gaussian_log_prob(
    x: Tensor, mean: Tensor, log_var: Tensor | None = None, *, event_ndim: int = 1
) -> Tensor:
    """-1/2 sum_d [log 2 pi + log_var_d + (x_d - mean_d)^2 / exp(log_var_d)]."""
    dtype = compute_dtype(x, mean, log_var)
    diff = x.to(dtype) - mean.to(dtype)
    if log_var is None:
        terms = diff.square()
    else:
        log_var = log_var.to(dtype)
        terms = log_var + diff.square() * torch.exp(-log_var)
    event_size = math.prod(terms.shape[terms.ndim - event_ndim :])
    return -0.5 * (sum_event(terms, event_ndim) + event_size * LOG_2PI)


def categorical_log_prob(
    logits: Tensor, x: Tensor, *, class_dim: int = 1, event_ndim: int | None = None
) -> Tensor:
    """sum over the event of logits[x] - logsumexp(logits) along ``class_dim``."""
    class_dim %= logits.ndim
    if event_ndim is None:
        event_ndim = logits.ndim - 1 - class_dim
    logits = logits.to(compute_dtype(logits))
    shape = logits.shape[:class_dim] + logits.shape[class_dim + 1 :]
    num_classes = logits.shape[class_dim]
    outer = math.prod(shape[:class_dim])
    inner = math.prod(shape[class_dim:])
    log_prob = -F.cross_entropy(
        logits.reshape(outer, num_classes, inner),
        x.long().expand(shape).reshape(outer, inner),
        reduction="none",
    )
    return sum_event(log_prob.reshape(shape), event_ndim)
