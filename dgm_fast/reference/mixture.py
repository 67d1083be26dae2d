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
    *,
    num_mixtures: int,
    levels: int | None,
    packing: str,
    values: Tensor | None = None,
    given: Tensor | None = None,
) -> Tensor:
    """Pixels [B, C, H, W] in [-1, 1] from uniforms [B, 1 + C, H, W]: a component, then each colour.

    ``values`` are kept where ``given``; after a given colour the component is drawn anew, from its
    distribution under all colours so far (unrounded ones as bins of 256 levels).
    """
    num_channels = noise.shape[1] - 1
    unpacked = unpack_logistic_mixture(params, num_channels, num_mixtures, packing)
    logits, means, log_scales, raw = unpacked
    weights = None if raw is None else torch.tanh(raw)
    component = _draw_component(logits, noise[:, :1])
    log_joint = torch.log_softmax(logits, 1)
    colours: list[Tensor] = []
    for c in range(num_channels):
        mean = means[:, :, c]  # [B, M, H, W]
        if weights is not None:
            # Green takes the coefficient 0, blue 1 and 2.
            for before in range(c):
                mean = mean + weights[:, :, c - 1 + before] * colours[before].unsqueeze(1)
        scale = log_scales[:, :, c].gather(1, component).clamp(min=MIN_LOG_SCALE).exp()
        drawn = mean.gather(1, component) + scale * torch.logit(noise[:, 1 + c : 2 + c])
        colour = _nearest_level(drawn.squeeze(1), levels)
        if given is not None and values is not None:
            colour = torch.where(given[:, c], values[:, c].to(colour.dtype), colour)
            term = logistic_bin_log_prob(
                colour.unsqueeze(1), mean, log_scales[:, :, c], levels or 256
            )
            log_joint = log_joint + term
            again = _draw_component(log_joint, noise[:, 1 + c : 2 + c])
            component = torch.where(given[:, c : c + 1], again, component)
        colours.append(colour)
    return torch.stack(colours, 1)


def _draw_component(logits: Tensor, noise: Tensor) -> Tensor:
    """Components [B, 1, H, W] of logits [B, M, H, W] by uniforms [B, 1, H, W]."""
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
