"""Registration of the NADE family: log-probabilities and ancestral samples.

The log-probabilities return the outputs of all conditionals beside the result, [B, D] or [B, D, K]:
backward starts from them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgm_fast import reference
from dgm_fast.ops._registry import OpSpec, register, registered
from dgm_fast.reference import nade as formulas
from dgm_fast.reference._common import compute_dtype

# The integer codes of the op's ``mixture`` argument.
MIXTURES = {"gaussian": 0, "logistic": 1}
_MIXTURE_NAMES = tuple(MIXTURES)


def _binary_reference(
    x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    logits = formulas.nade_logits(x, W, c, V, b)
    return reference.bernoulli_log_prob(logits, x), logits.detach()


def _binary_fake(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(W)
    return W.new_empty(x.shape[:1], dtype=dtype), W.new_empty(x.shape, dtype=dtype)


def _categorical_reference(
    x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    logits = formulas.nade_categorical_logits(x, W, c, V, b)
    return (
        reference.categorical_log_prob(logits, x, class_dim=2, event_ndim=1),
        logits.detach(),
    )


def _categorical_fake(
    x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(W)
    shape = (*x.shape, V.shape[1])
    return W.new_empty(x.shape[:1], dtype=dtype), W.new_empty(shape, dtype=dtype)


def _mixture_reference(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    V_logits: Tensor | None,
    b_logits: Tensor | None,
    V_means: Tensor,
    b_means: Tensor,
    V_log_scales: Tensor,
    b_log_scales: Tensor,
    activation_scale: Tensor | None,
    mixture: int,
) -> tuple[Tensor, Tensor]:
    arguments = (
        x,
        W,
        c,
        V_logits,
        b_logits,
        V_means,
        b_means,
        V_log_scales,
        b_log_scales,
    )
    parameters = formulas.rnade_parameters(*arguments, activation_scale=activation_scale)
    log_prob = formulas.mixture_log_prob(x, *parameters, mixture=_MIXTURE_NAMES[mixture])
    outputs = torch.cat([t for t in parameters if t is not None], -1)
    return log_prob, outputs.detach()


def _mixture_fake(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    V_logits: Tensor | None,
    b_logits: Tensor | None,
    V_means: Tensor,
    b_means: Tensor,
    V_log_scales: Tensor,
    b_log_scales: Tensor,
    activation_scale: Tensor | None,
    mixture: int,
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(W)
    width = V_means.shape[1] * (2 if V_logits is None else 3)
    return (
        W.new_empty(x.shape[:1], dtype=dtype),
        W.new_empty((*x.shape, width), dtype=dtype),
    )


def _binary_sample_fake(
    W: Tensor,
    c: Tensor,
    V: Tensor,
    b: Tensor,
    noise: Tensor,
    values: Tensor | None,
    given: Tensor | None,
) -> Tensor:
    return noise.new_empty(noise.shape, dtype=compute_dtype(W))


def _categorical_sample_fake(
    W: Tensor,
    c: Tensor,
    V: Tensor,
    b: Tensor,
    noise: Tensor,
    values: Tensor | None,
    given: Tensor | None,
) -> Tensor:
    return noise.new_empty(noise.shape, dtype=torch.int64)


def _mixture_sample_reference(
    W: Tensor,
    c: Tensor,
    V_logits: Tensor | None,
    b_logits: Tensor | None,
    V_means: Tensor,
    b_means: Tensor,
    V_log_scales: Tensor,
    b_log_scales: Tensor,
    activation_scale: Tensor | None,
    noise: Tensor,
    values: Tensor | None,
    given: Tensor | None,
    mixture: int,
) -> Tensor:
    return reference.rnade_sample(
        W,
        c,
        V_logits,
        b_logits,
        V_means,
        b_means,
        V_log_scales,
        b_log_scales,
        noise,
        values,
        given,
        activation_scale=activation_scale,
        mixture=_MIXTURE_NAMES[mixture],
    )


def _mixture_sample_fake(
    W: Tensor,
    c: Tensor,
    V_logits: Tensor | None,
    b_logits: Tensor | None,
    V_means: Tensor,
    b_means: Tensor,
    V_log_scales: Tensor,
    b_log_scales: Tensor,
    activation_scale: Tensor | None,
    noise: Tensor,
    values: Tensor | None,
    given: Tensor | None,
    mixture: int,
) -> Tensor:
    return noise.new_empty(noise.shape[:2], dtype=compute_dtype(W))


_B, _D, _H, _C, _M = 5, 19, 37, 3, 2


def _parameters(
    device: torch.device, dtype: torch.dtype, *shapes: tuple[int, ...]
) -> tuple[Tensor, ...]:
    return tuple(0.5 * torch.randn(shape, device=device, dtype=dtype) for shape in shapes)


def _binary_parameters(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return _parameters(device, dtype, (_H, _D), (_H,), (_D, _H), (_D,))


def _binary_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x = torch.rand(_B, _D, device=device) < 0.5
    return x.to(dtype), *_binary_parameters(device, dtype)


def _categorical_parameters(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return _parameters(device, dtype, (_H, _D, _C), (_H,), (_D, _C, _H), (_D, _C))


def _categorical_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x = torch.randint(0, _C, (_B, _D), device=device)
    return x, *_categorical_parameters(device, dtype)


def _mixture_parameters(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    heads = ((_D, _M, _H), (_D, _M)) * 3
    return _parameters(device, dtype, (_H, _D), (_H,), *heads, (_D,))


def _mixture_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x = torch.randn(_B, _D, device=device, dtype=dtype)
    return x, *_mixture_parameters(device, dtype), MIXTURES["gaussian"]


def _conditions(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Uniform noise, values, and which of them are given."""
    noise = torch.rand(values.shape, device=values.device, dtype=torch.float32)
    return noise, values, torch.rand(values.shape, device=values.device) < 0.3


def _binary_sample_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x, *parameters = _binary_example(device, dtype)
    return *parameters, *_conditions(x)


def _categorical_sample_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x, *parameters = _categorical_example(device, dtype)
    return *parameters, *_conditions(x)


def _mixture_sample_example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x, *parameters, mixture = _mixture_example(device, dtype)
    uniform, values, given = _conditions(x)
    noise = torch.stack([uniform, torch.randn_like(uniform)], -1)
    return *parameters, noise, values, given, mixture


register(OpSpec("nade_log_prob", "nade", _binary_reference, _binary_fake, _binary_example))
register(
    OpSpec(
        "nade_categorical_log_prob",
        "nade",
        _categorical_reference,
        _categorical_fake,
        _categorical_example,
    )
)
register(OpSpec("rnade_log_prob", "nade", _mixture_reference, _mixture_fake, _mixture_example))
register(
    OpSpec(
        "nade_sample", "nade", reference.nade_sample, _binary_sample_fake, _binary_sample_example
    )
)
register(
    OpSpec(
        "nade_categorical_sample",
        "nade",
        reference.nade_categorical_sample,
        _categorical_sample_fake,
        _categorical_sample_example,
    )
)
register(
    OpSpec(
        "rnade_sample",
        "nade",
        _mixture_sample_reference,
        _mixture_sample_fake,
        _mixture_sample_example,
    )
)

nade_log_prob = registered("nade_log_prob")
nade_categorical_log_prob = registered("nade_categorical_log_prob")
rnade_log_prob = registered("rnade_log_prob")
nade_sample = registered("nade_sample")
nade_categorical_sample = registered("nade_categorical_sample")
rnade_sample = registered("rnade_sample")
