"""Reference affine maps with their log-determinants: couplings, actnorm, invertible linear layers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast.reference._common import compute_dtype, sum_event


def log_scale_of(u: Tensor, scale: str, clamp: float) -> Tensor:
    """The logarithm of the factor that parameter u stands for."""
    if scale == "exp":
        return u
    if scale == "sigmoid2":
        return torch.log(torch.sigmoid(u + 2) + 1e-3)
    if scale == "softplus":
        return torch.log(F.softplus(u, threshold=40.0) + 1e-3)
    if scale == "tanh":
        return clamp * torch.tanh(u / clamp)
    if scale == "atan":
        return (2 / math.pi) * clamp * torch.atan(u)
    return u / (1 + u.abs() / clamp)


def affine_coupling(
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    *,
    mask: Tensor | None = None,
    inverse: bool = False,
    event_ndim: int = 1,
    scale: str = "exp",
    clamp: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """(x exp(l) + shift, sum l), or with ``inverse`` ((x - shift) exp(-l), -sum l).

    Where the mask is false x stays as it is and l is 0.
    """
    out_dtype = x.dtype
    dtype = compute_dtype(x, log_scale, shift)
    x, log_scale, shift = x.to(dtype), log_scale.to(dtype), shift.to(dtype)
    log = log_scale_of(log_scale, scale, clamp).expand(x.shape)
    y = (x - shift) * torch.exp(-log) if inverse else x * torch.exp(log) + shift
    if mask is not None:
        log = torch.where(mask, log, 0.0)
        y = torch.where(mask, y, x)
    log_det = sum_event(log, event_ndim)
    return y.to(out_dtype), -log_det if inverse else log_det


def actnorm(x: Tensor, log_scale: Tensor, bias: Tensor, *, inverse: bool = False) -> Tensor:
    """x exp(l) + b with one l and b a channel, the second dimension."""
    out_dtype = x.dtype
    dtype = compute_dtype(x, log_scale, bias)
    shape = (-1,) + (1,) * (x.ndim - 2)
    x = x.to(dtype)
    log_scale, bias = log_scale.to(dtype).reshape(shape), bias.to(dtype).reshape(shape)
    y = (x - bias) * torch.exp(-log_scale) if inverse else x * torch.exp(log_scale) + bias
    return y.to(out_dtype)
