"""Registration of the likelihood family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgm_fast import reference
from dgm_fast.ops._registry import OpSpec, register, registered
from dgm_fast.ops._shapes import broadcast_shape, per_sample

# The integer codes of the fused bounds' ``likelihood`` argument.
LIKELIHOODS = {"bernoulli": 0, "gaussian": 1, "categorical": 2}


def _bernoulli_reference(logits: Tensor, x: Tensor, event_ndim: int) -> Tensor:
    return reference.bernoulli_log_prob(logits, x, event_ndim=event_ndim)


def _bernoulli_fake(logits: Tensor, x: Tensor, event_ndim: int) -> Tensor:
    return per_sample(broadcast_shape(logits, x), event_ndim, logits, like=logits)


def _bernoulli_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    logits = torch.randn(6, 5, 37, device=device, dtype=dtype) * 3
    x = (torch.rand(6, 1, 37, device=device) < 0.5).to(dtype)
    return logits, x, 1


def _gaussian_reference(x: Tensor, mean: Tensor, log_var: Tensor | None, event_ndim: int) -> Tensor:
    return reference.gaussian_log_prob(x, mean, log_var, event_ndim=event_ndim)


def _gaussian_fake(x: Tensor, mean: Tensor, log_var: Tensor | None, event_ndim: int) -> Tensor:
    shape = broadcast_shape(x, mean, log_var)
    return per_sample(shape, event_ndim, x, mean, log_var, like=x)


def _gaussian_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x = torch.randn(6, 1, 37, device=device, dtype=dtype)
    mean = torch.randn(6, 5, 37, device=device, dtype=dtype)
    log_var = torch.randn(37, device=device, dtype=dtype)
    return x, mean, log_var, 1


def _categorical_reference(logits: Tensor, x: Tensor, class_dim: int, event_ndim: int) -> Tensor:
    return reference.categorical_log_prob(logits, x, class_dim=class_dim, event_ndim=event_ndim)


def _categorical_fake(logits: Tensor, x: Tensor, class_dim: int, event_ndim: int) -> Tensor:
    shape = logits.shape[:class_dim] + logits.shape[class_dim + 1 :]
    return per_sample(shape, event_ndim, logits, like=logits)


def _categorical_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    logits = torch.randn(6, 17, 37, device=device, dtype=dtype) * 3
    x = torch.randint(0, 17, (6, 37), device=device)
    return logits, x, 1, 1


register(
    OpSpec(
        "bernoulli_log_prob",
        "likelihood",
        _bernoulli_reference,
        _bernoulli_fake,
        _bernoulli_example,
    )
)
register(
    OpSpec(
        "gaussian_log_prob", "likelihood", _gaussian_reference, _gaussian_fake, _gaussian_example
    )
)
register(
    OpSpec(
        "categorical_log_prob",
        "likelihood",
        _categorical_reference,
        _categorical_fake,
        _categorical_example,
    )
)

bernoulli_log_prob = registered("bernoulli_log_prob")
gaussian_log_prob = registered("gaussian_log_prob")
categorical_log_prob = registered("categorical_log_prob")
