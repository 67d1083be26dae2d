"""Registration of the latent family: divergences, sampling and variational bounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgm_fast import reference
from dgm_fast.ops._registry import OpSpec, register, registered
from dgm_fast.ops._shapes import broadcast_shape, per_sample
from dgm_fast.ops.likelihood import LIKELIHOODS
from dgm_fast.reference._common import compute_dtype

_LIKELIHOOD_NAMES = tuple(LIKELIHOODS)


def _kl_reference(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None,
    prior_log_var: Tensor | None,
    event_ndim: int,
) -> Tensor:
    return reference.gaussian_kl(mean, log_var, prior_mean, prior_log_var, event_ndim=event_ndim)


def _kl_fake(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None,
    prior_log_var: Tensor | None,
    event_ndim: int,
) -> Tensor:
    tensors = (mean, log_var, prior_mean, prior_log_var)
    return per_sample(broadcast_shape(*tensors), event_ndim, *tensors, like=mean)


def _kl_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    mean, log_var = torch.randn(2, 6, 37, device=device, dtype=dtype)
    return mean, log_var, torch.randn(37, device=device, dtype=dtype), None, 1


def _reparameterize_fake(mean: Tensor, log_var: Tensor, eps: Tensor) -> Tensor:
    return eps.new_empty(eps.shape, dtype=torch.promote_types(mean.dtype, log_var.dtype))


def _reparameterize_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    mean, log_var = torch.randn(2, 6, 37, device=device, dtype=dtype)
    return mean, log_var, torch.randn(6, 5, 37, device=device, dtype=dtype)


def _log_mean_exp_fake(log_w: Tensor, dim: int) -> Tensor:
    shape = list(log_w.shape)
    del shape[dim]
    return log_w.new_empty(shape, dtype=compute_dtype(log_w))


def _log_mean_exp_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    return torch.randn(6, 37, device=device, dtype=dtype) * 5, 1


def _decoder(out: Tensor, out_log_var: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    return out if out_log_var is None else (out, out_log_var)


def _elbo_reference(
    out: Tensor,
    out_log_var: Tensor | None,
    x: Tensor,
    mean: Tensor,
    log_var: Tensor,
    likelihood: int,
    beta: float,
) -> Tensor:
    return reference.elbo(
        x,
        _decoder(out, out_log_var),
        mean,
        log_var,
        likelihood=_LIKELIHOOD_NAMES[likelihood],
        beta=beta,
    )


def _elbo_fake(
    out: Tensor,
    out_log_var: Tensor | None,
    x: Tensor,
    mean: Tensor,
    log_var: Tensor,
    likelihood: int,
    beta: float,
) -> Tensor:
    return out.new_empty(out.shape[:1], dtype=compute_dtype(out, mean))


def _elbo_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    out = torch.randn(6, 37, device=device, dtype=dtype)
    x = (torch.rand(6, 37, device=device) < 0.5).to(dtype)
    mean, log_var = torch.randn(2, 6, 9, device=device, dtype=dtype)
    return out, None, x, mean, log_var, 0, 0.7


def _iwae_reference(
    out: Tensor,
    out_log_var: Tensor | None,
    x: Tensor,
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    log_prior: Tensor | None,
    likelihood: int,
    stop_score: bool,
) -> tuple[Tensor, Tensor]:
    log_w = reference.iwae_log_weights(
        x,
        _decoder(out, out_log_var),
        z,
        mean,
        log_var,
        likelihood=_LIKELIHOOD_NAMES[likelihood],
        prior=log_prior,
        estimator="stl" if stop_score else "iwae",
    )
    return reference.log_mean_exp(log_w, -1), log_w


def _iwae_fake(
    out: Tensor,
    out_log_var: Tensor | None,
    x: Tensor,
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    log_prior: Tensor | None,
    likelihood: int,
    stop_score: bool,
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(out, z)
    return z.new_empty(z.shape[:1], dtype=dtype), z.new_empty(z.shape[:2], dtype=dtype)


def _iwae_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    out = torch.randn(6, 5, 37, device=device, dtype=dtype)
    x = (torch.rand(6, 37, device=device) < 0.5).to(dtype)
    mean, log_var = torch.randn(2, 6, 9, device=device, dtype=dtype)
    z = torch.randn(6, 5, 9, device=device, dtype=dtype)
    return out, None, x, z, mean, log_var, None, 0, False


register(OpSpec("gaussian_kl", "latent", _kl_reference, _kl_fake, _kl_example))
register(
    OpSpec(
        "reparameterize",
        "latent",
        reference.reparameterize,
        _reparameterize_fake,
        _reparameterize_example,
    )
)
register(
    OpSpec(
        "log_mean_exp",
        "latent",
        reference.log_mean_exp,
        _log_mean_exp_fake,
        _log_mean_exp_example,
    )
)
register(OpSpec("elbo", "latent", _elbo_reference, _elbo_fake, _elbo_example))
register(OpSpec("iwae_bound", "latent", _iwae_reference, _iwae_fake, _iwae_example))

gaussian_kl = registered("gaussian_kl")
reparameterize = registered("reparameterize")
log_mean_exp = registered("log_mean_exp")
elbo = registered("elbo")
iwae_bound = registered("iwae_bound")
