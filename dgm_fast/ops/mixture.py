"""Registration of the mixture family: discretized logistic and Gaussian mixtures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgm_fast import reference
from dgm_fast.ops._registry import OpSpec, register, registered
from dgm_fast.reference._common import compute_dtype


def _logistic_reference(
    params: Tensor, x: Tensor, num_mixtures: int, levels: int, parameter_major: bool
) -> Tensor:
    return reference.discretized_logistic_mixture_log_prob(
        params,
        x,
        num_mixtures=num_mixtures,
        levels=levels,
        packing="parameter" if parameter_major else "channel",
    )


def _logistic_fake(
    params: Tensor, x: Tensor, num_mixtures: int, levels: int, parameter_major: bool
) -> Tensor:
    return params.new_empty(
        torch.broadcast_shapes(params.shape[:1], x.shape[:-3]), dtype=compute_dtype(params)
    )


def _logistic_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    params = torch.randn(2, 30, 3, 7, device=device, dtype=dtype)
    x = torch.randint(0, 256, (2, 3, 3, 7), device=device).to(dtype) / 127.5 - 1
    return params, x, 3, 256, False


def _gaussian_reference(
    z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor | None
) -> Tensor:
    return reference.gaussian_mixture_log_prob(z, means, log_vars, logits)


def _gaussian_fake(z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor | None) -> Tensor:
    return z.new_empty(z.shape[:-1], dtype=compute_dtype(z, means, log_vars, logits))


def _gaussian_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    z = torch.randn(7, 5, 3, device=device, dtype=dtype)
    means, log_vars = torch.randn(2, 37, 3, device=device, dtype=dtype)
    return z, means, log_vars, torch.randn(37, device=device, dtype=dtype)


register(
    OpSpec(
        "discretized_logistic_mixture_log_prob",
        "mixture",
        _logistic_reference,
        _logistic_fake,
        _logistic_example,
    )
)
register(
    OpSpec(
        "gaussian_mixture_log_prob",
        "mixture",
        _gaussian_reference,
        _gaussian_fake,
        _gaussian_example,
    )
)

discretized_logistic_mixture_log_prob = registered("discretized_logistic_mixture_log_prob")
gaussian_mixture_log_prob = registered("gaussian_mixture_log_prob")
