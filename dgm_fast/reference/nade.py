"""Reference log-probabilities and samples of neural autoregressive density estimators (NADE), in nats.

Hidden units h_d = sigmoid(a_d) with a_1 = c and a_{d+1} = a_d + W_d x_d give the parameters of the
conditional of x_d. The log-probabilities form all pre-activations [B, D, H] by a cumulative sum; the
samplers go through the dimensions one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast.reference._common import (
    LOG_2PI,
    compute_dtype,
    draw_class,
    log_sum_exp,
    log_weights,
)
from dgm_fast.reference.likelihood import bernoulli_log_prob, categorical_log_prob
from dgm_fast.reference.mixture import max_log_inverse_scale


def nade_log_prob(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """sum_d log Bernoulli(x_d; logit V_d h_d + b_d)."""
    return bernoulli_log_prob(nade_logits(x, W, c, V, b), x)


def nade_logits(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """The logits [B, D] of all conditionals."""
    W, c, V, b = _computed(W, c, V, b)
    units = _hidden_units(x.to(W.dtype).unsqueeze(-1) * W.t(), c)
    return (units * V).sum(-1) + b


def nade_categorical_log_prob(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """sum_d log Categorical(x_d; logits V_d h_d + b_d), with one-hot inputs."""
    logits = nade_categorical_logits(x, W, c, V, b)
    return categorical_log_prob(logits, x, class_dim=2, event_ndim=1)


def nade_categorical_logits(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """The logits [B, D, C] of all conditionals."""
    W, c, V, b = _computed(W, c, V, b)
    by_class = W.permute(1, 2, 0)  # [D, C, H]
    steps = by_class[torch.arange(W.shape[1], device=W.device), x.long()]  # [B, D, H]
    return _layer(_hidden_units(steps, c), V, b)


def rnade_log_prob(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    V_logits: Tensor | None,
    b_logits: Tensor | None,
    V_means: Tensor,
    b_means: Tensor,
    V_log_scales: Tensor,
    b_log_scales: Tensor,
    *,
    activation_scale: Tensor | None = None,
    mixture: str = "gaussian",
) -> Tensor:
    """sum_d log sum_m w_m N(x_d; mean_m, scale_m), or logistics, with parameters linear in h_d."""
    logits, means, log_scales = rnade_parameters(
        x,
        W,
        c,
        V_logits,
        b_logits,
        V_means,
        b_means,
        V_log_scales,
        b_log_scales,
        activation_scale=activation_scale,
    )
    return mixture_log_prob(x, logits, means, log_scales, mixture=mixture)


def mixture_log_prob(
    x: Tensor, logits: Tensor | None, means: Tensor, log_scales: Tensor, *, mixture: str
) -> Tensor:
    """x [B, D], mixtures [B, D, M] -> [B]."""
    inverse = torch.exp((-log_scales).clamp(max=max_log_inverse_scale(means.dtype)))
    scaled = (x.to(means.dtype).unsqueeze(-1) - means) * inverse
    if mixture == "gaussian":
        kernel = -0.5 * scaled.square() - 0.5 * LOG_2PI
    else:
        kernel = F.logsigmoid(scaled) + F.logsigmoid(-scaled)
    if logits is None:
        joint = kernel - log_scales - math.log(means.shape[-1])
    else:
        joint = kernel - log_scales + log_weights(logits, -1)
    return log_sum_exp(joint, -1).sum(-1)


def rnade_parameters(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    V_logits: Tensor | None,
    b_logits: Tensor | None,
    V_means: Tensor,
    b_means: Tensor,
    V_log_scales: Tensor,
    b_log_scales: Tensor,
    *,
    activation_scale: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Weight logits (None for equal weights), means and log-scales [B, D, M] of all conditionals."""
    dtype = compute_dtype(W, c, V_logits, V_means, V_log_scales)
    x, W, c = x.to(dtype), W.to(dtype), c.to(dtype)
    scale = None if activation_scale is None else activation_scale.to(dtype)
    units = _hidden_units(x.unsqueeze(-1) * W.t(), c, scale)
    logits = None
    if V_logits is not None and b_logits is not None:
        logits = _layer(units, V_logits.to(dtype), b_logits.to(dtype))
    means = _layer(units, V_means.to(dtype), b_means.to(dtype))
    return logits, means, _layer(units, V_log_scales.to(dtype), b_log_scales.to(dtype))


def nade_sample(
    W: Tensor,
    c: Tensor,
    V: Tensor,
    b: Tensor,
    noise: Tensor,
    values: Tensor | None = None,
    given: Tensor | None = None,
) -> Tensor:
    """x_d = [noise_d < p_d], noise [B, D]; ``values`` where ``given``."""
    W, c, V, b = _computed(W, c, V, b)
    noise = noise.to(W.dtype)

    def draw(d: int, units: Tensor) -> Tensor:
        return (noise[:, d] < torch.sigmoid(units @ V[d] + b[d])).to(W.dtype)

    def step(d: int, x: Tensor) -> Tensor:
        return x.unsqueeze(-1) * W[:, d]

    return _ancestral(noise.shape[0], c, W.shape[1], draw, step, values, given)


def nade_categorical_sample(
    W: Tensor,
    c: Tensor,
    V: Tensor,
    b: Tensor,
    noise: Tensor,
    values: Tensor | None = None,
    given: Tensor | None = None,
) -> Tensor:
    """The first class whose cumulative probability passes the noise [B, D]; ``values`` where ``given``."""
    W, c, V, b = _computed(W, c, V, b)
    noise = noise.to(W.dtype)

    def draw(d: int, units: Tensor) -> Tensor:
        return draw_class(units @ V[d].t() + b[d], noise[:, d])

    def step(d: int, x: Tensor) -> Tensor:
        return W[:, d].t()[x.long()]

    if values is not None:
        values = values.long()
    return _ancestral(noise.shape[0], c, W.shape[1], draw, step, values, given)


def rnade_sample(
    W: Tensor,
    c: Tensor,
    V_logits: Tensor | None,
    b_logits: Tensor | None,
    V_means: Tensor,
    b_means: Tensor,
    V_log_scales: Tensor,
    b_log_scales: Tensor,
    noise: Tensor,
    values: Tensor | None = None,
    given: Tensor | None = None,
    *,
    activation_scale: Tensor | None = None,
    mixture: str = "gaussian",
) -> Tensor:
    """mean + scale times standard noise of a component drawn by its weight; ``values`` where ``given``.

    noise [B, D, 2]: a uniform for the component, and a standard normal (or a uniform, for logistics).
    """
    dtype = compute_dtype(W, c, V_logits, V_means, V_log_scales)
    W, c, noise = W.to(dtype), c.to(dtype), noise.to(dtype)
    V_means, b_means = V_means.to(dtype), b_means.to(dtype)
    V_log_scales, b_log_scales = V_log_scales.to(dtype), b_log_scales.to(dtype)
    scale = None if activation_scale is None else activation_scale.to(dtype)
    num_mixtures = V_means.shape[1]

    def draw(d: int, units: Tensor) -> Tensor:
        if V_logits is None or b_logits is None:
            component = (noise[:, d, 0] * num_mixtures).long().clamp(max=num_mixtures - 1)
        else:
            logits = units @ V_logits[d].to(dtype).t() + b_logits[d].to(dtype)
            component = draw_class(logits, noise[:, d, 0])
        component = component.unsqueeze(-1)
        mean = (units @ V_means[d].t() + b_means[d]).gather(-1, component).squeeze(-1)
        log_scale = units @ V_log_scales[d].t() + b_log_scales[d]
        log_scale = log_scale.gather(-1, component).squeeze(-1)
        standard = noise[:, d, 1] if mixture == "gaussian" else torch.logit(noise[:, d, 1])
        return mean + torch.exp(log_scale) * standard

    def step(d: int, x: Tensor) -> Tensor:
        return x.unsqueeze(-1) * W[:, d]

    return _ancestral(noise.shape[0], c, W.shape[1], draw, step, values, given, scale)


def _computed(*tensors: Tensor) -> list[Tensor]:
    dtype = compute_dtype(*tensors)
    return [t.to(dtype) for t in tensors]


def _hidden_units(steps: Tensor, c: Tensor, scale: Tensor | None = None) -> Tensor:
    """sigmoid(scale_d a_d), where a_d is c plus the steps [B, D, H] before d."""
    before = torch.cat([torch.zeros_like(steps[:, :1]), steps[:, :-1].cumsum(1)], 1)
    pre = before + c
    return torch.sigmoid(pre if scale is None else scale.unsqueeze(-1) * pre)


def _layer(units: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """V_d h_d + b_d for every dimension: [B, D, H], [D, K, H], [D, K] -> [B, D, K]."""
    return torch.einsum("bdh,dkh->bdk", units, V) + b


def _ancestral(
    batch: int,
    c: Tensor,
    size: int,
    draw: Callable[[int, Tensor], Tensor],
    step: Callable[[int, Tensor], Tensor],
    values: Tensor | None,
    given: Tensor | None,
    scale: Tensor | None = None,
) -> Tensor:
    with torch.no_grad():
        pre = c.expand(batch, -1)
        samples = []
        for d in range(size):
            x = draw(d, torch.sigmoid(pre if scale is None else scale[d] * pre))
            if values is not None and given is not None:
                x = torch.where(given[:, d], values[:, d].to(x.dtype), x)
            samples.append(x)
            pre = pre + step(d, x)
        return torch.stack(samples, 1)
