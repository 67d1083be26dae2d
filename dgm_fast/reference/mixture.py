"""Reference log-densities of mixtures, in nats per sample."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast.reference._common import LOG_2PI, compute_dtype, log_sum_exp, log_weights

# Log-scales of logistics below this act as this (Salimans et al. 2017).
MIN_LOG_SCALE = -7.0
# Log CDF differences up to this give way to the density at the centre of the bin.
MIN_LOG_DIFFERENCE = math.log(1e-5)


def edge(levels: int) -> float:
    """Where the outermost bins begin: 0.999, and closer to 1 where bins are narrower than that."""
    return 1.0 - min(1e-3, 0.5 / (levels - 1))


def unpack_logistic_mixture(
    params: Tensor, num_channels: int, num_mixtures: int, packing: str
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """logits [B, M, H, W]; means, log-scales and raw coefficients (None for one channel) [B, M, C, H, W].

    Packings of the channels after the M logits, for mixture k and channel c: "channel" has at
    3 M c + k the means, M further the log-scales, 2 M further the coefficients; "parameter" has the
    means at C k + c, C M further the log-scales, 2 C M further the coefficients. Coefficient c = 0
    weighs red in green, c = 1 red in blue, c = 2 green in blue.
    """
    batch, _, height, width = params.shape
    logits, rest = params[:, :num_mixtures], params[:, num_mixtures:]
    if num_channels == 1:
        means, log_scales = rest.reshape(batch, 2, num_mixtures, 1, height, width).unbind(1)
        return logits, means, log_scales, None
    if packing == "channel":
        rest = rest.reshape(batch, 3, 3, num_mixtures, height, width).permute(2, 0, 3, 1, 4, 5)
    else:
        rest = rest.reshape(batch, 3, num_mixtures, 3, height, width).permute(1, 0, 2, 3, 4, 5)
    means, log_scales, coefficients = rest.unbind(0)
    return logits, means, log_scales, coefficients


def discretized_logistic_mixture_log_prob(
    params: Tensor,
    x: Tensor,
    *,
    num_mixtures: int = 10,
    levels: int = 256,
    packing: str = "channel",
) -> Tensor:
    """sum over pixels of log sum_k w_k prod_c [CDF(x + half bin) - CDF(x - half bin)]."""
    dtype = compute_dtype(params)
    params, x = params.to(dtype), x.to(dtype)
    logits, means, log_scales, raw = unpack_logistic_mixture(
        params, x.shape[-3], num_mixtures, packing
    )
    x = x.unsqueeze(-4)  # [(B,) 1, C, H, W]
    x = x if x.ndim == 5 else x.unsqueeze(0)
    if raw is not None:
        weight = torch.tanh(raw)
        red, green, blue = means.unbind(2)
        green = green + weight[:, :, 0] * x[:, :, 0]
        blue = blue + weight[:, :, 1] * x[:, :, 0] + weight[:, :, 2] * x[:, :, 1]
        means = torch.stack([red, green, blue], 2)
    log_prob = logistic_bin_log_prob(x, means, log_scales, levels)
    joint = log_weights(logits, 1) + log_prob.sum(2)  # [B, M, H, W]
    return log_sum_exp(joint, 1).sum((1, 2))


def logistic_bin_log_prob(x: Tensor, means: Tensor, log_scales: Tensor, levels: int) -> Tensor:
    """log [CDF(x + half bin) - CDF(x - half bin)] of logistics, element by element; x in [-1, 1]."""
    log_scales = log_scales.clamp(min=MIN_LOG_SCALE)
    inverse = torch.exp(-log_scales)
    half_bin = 1.0 / (levels - 1)
    centre = (x - means) * inverse
    plus, minus = centre + half_bin * inverse, centre - half_bin * inverse
    # log[CDF(plus) - CDF(minus)] without the cancellation of the difference itself. The floor keeps the
    # branch that is not taken finite where the scale is beyond the range of the dtype.
    log_difference = (
        F.logsigmoid(plus)
        + F.logsigmoid(-minus)
        + torch.log(-torch.expm1(-2.0 * half_bin * inverse.clamp(min=1e-30)))
    )
    density = F.logsigmoid(centre) + F.logsigmoid(-centre) - log_scales - math.log((levels - 1) / 2)
    interior = torch.where(log_difference > MIN_LOG_DIFFERENCE, log_difference, density)
    outermost = edge(levels)
    return torch.where(
        x < -outermost,
        F.logsigmoid(plus),
        torch.where(x > outermost, F.logsigmoid(-minus), interior),
    )


def logistic_mixture_draw(
    params: Tensor,
    noise: Tensor,
    values: Tensor | None = None,
    given: Tensor | None = None,
    *,
    num_mixtures: int,
    levels: int | None,
    packing: str,
) -> Tensor:
    """Pixels [B, C, H, W] in [-1, 1] from uniforms [B, 1 + C, H, W]: a component, then each colour.

    Colours are ``values`` where ``given``. After a given colour the component is drawn anew, by the noise
    that this colour has no use for, from its posterior given all colours up to there (unrounded ones as
    bins of 256 levels).
    """
    unpacked = unpack_logistic_mixture(params, noise.shape[1] - 1, num_mixtures, packing)
    logits, means, log_scales, raw = unpacked
    weights = None if raw is None else torch.tanh(raw)
    component = _draw_component(logits, noise[:, :1])
    joint = log_weights(logits, 1) if given is not None else None
    colours: list[Tensor] = []
    for c, uniform in enumerate(noise[:, 1:].split(1, 1)):
        mean, log_scale = means[:, :, c], log_scales[:, :, c]  # [B, M, H, W]
        if weights is not None:
            # The mean of green takes coefficient 0, that of blue 1 and 2.
            for before in range(c):
                mean = mean + weights[:, :, c - 1 + before] * colours[before]
        scale = log_scale.gather(1, component).clamp(min=MIN_LOG_SCALE).exp()
        colour = mean.gather(1, component) + scale * torch.logit(uniform)
        colour = _nearest_level(colour, levels)  # [B, 1, H, W]
        if joint is not None and values is not None and given is not None:
            colour = torch.where(given[:, c : c + 1], values[:, c : c + 1].to(colour), colour)
            joint = joint + logistic_bin_log_prob(colour, mean, log_scale, levels or 256)
            component = torch.where(given[:, c : c + 1], _draw_component(joint, uniform), component)
        colours.append(colour)
    return torch.cat(colours, 1)


def _draw_component(logits: Tensor, noise: Tensor) -> Tensor:
    """Components [B, 1, H, W] by the weights of logits [B, M, H, W] from uniforms [B, 1, H, W]."""
    cdf = torch.softmax(logits, 1).cumsum(1)
    # Scaled by the rounded total, so that the last component is never drawn for its rounding error.
    component = (cdf <= noise * cdf[:, -1:]).sum(1, keepdim=True)
    return component.clamp_(max=logits.shape[1] - 1)


def _nearest_level(colour: Tensor, levels: int | None) -> Tensor:
    colour = colour.clamp(-1.0, 1.0)
    if levels is None:
        return colour
    half = (levels - 1) / 2
    return torch.round((colour + 1.0) * half) / half - 1.0


def gaussian_mixture_log_prob(
    z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor | None = None
) -> Tensor:
    """log sum_k w_k N(z; mean_k, diag exp(log_var_k)), weights uniform or the softmax of logits.

    Inverse standard deviations are capped where their squares would leave the range of the dtype.
    """
    dtype = compute_dtype(z, means, log_vars, logits)
    z, means, log_vars = z.to(dtype), means.to(dtype), log_vars.to(dtype)
    num_components, size = means.shape
    inverse = torch.exp((-0.5 * log_vars).clamp(max=max_log_inverse_scale(dtype)))
    scaled = (z.unsqueeze(-2) - means) * inverse  # [..., K, L]
    log_prob = -0.5 * (scaled.square().sum(-1) + log_vars.sum(-1) + size * LOG_2PI)
    if logits is None:
        joint = log_prob - math.log(num_components)
    else:
        joint = log_prob + log_weights(logits.to(dtype), 0)
    return log_sum_exp(joint, -1)


def max_log_inverse_scale(dtype: torch.dtype) -> float:
    """The cap on -log_var / 2: its exponential squared is finite."""
    return 350.0 if dtype == torch.float64 else 43.0
