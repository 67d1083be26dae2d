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


def discretized_logistic_mixture(params: Tensor, x: Tensor) -> Tensor:
    """params [B, 10 M or 3 M, H, W] in channel-major packing, x [B, C, H, W] -> [B]."""
    batch, channels, height, width = x.shape
    params = params.to(_compute(params))
    mixtures = params.shape[1] // (10 if channels == 3 else 3)
    logits, rest = params[:, :mixtures], params[:, mixtures:]
    rest = rest.view(batch, channels, -1, mixtures, height, width)
    means, log_scales = rest[:, :, 0], rest[:, :, 1].clamp(min=-7.0)  # [B, C, M, H, W]
    x = x.unsqueeze(2)
    if channels == 3:
        weight = torch.tanh(rest[:, :, 2])
        red, green = x[:, 0], x[:, 1]
        means = torch.stack(
            [
                means[:, 0],
                means[:, 1] + weight[:, 0] * red,
                means[:, 2] + weight[:, 1] * red + weight[:, 2] * green,
            ],
            1,
        )
    centre = x - means
    inverse = torch.exp(-log_scales)
    plus, minus = inverse * (centre + 1 / 255), inverse * (centre - 1 / 255)
    middle = inverse * centre
    difference = torch.sigmoid(plus) - torch.sigmoid(minus)
    density = middle - log_scales - 2.0 * F.softplus(middle) - math.log(127.5)
    interior = torch.where(difference > 1e-5, difference.clamp(min=1e-12).log(), density)
    log_prob = torch.where(
        x < -0.999, F.logsigmoid(plus), torch.where(x > 0.999, F.logsigmoid(-minus), interior)
    )
    joint = log_prob.sum(1) + torch.log_softmax(logits, 1)
    return torch.logsumexp(joint, 1).sum((1, 2))


def gaussian_mixture(z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
    """z [N, L], means and log_vars [K, L], logits [K] -> [N]; the square expanded into products."""
    inverse = torch.exp(-log_vars)  # [K, L]
    quadratic = z.square() @ inverse.T - 2.0 * (z @ (means * inverse).T)  # [N, K]
    constant = (means.square() * inverse + log_vars).sum(1) + z.shape[1] * LOG_2PI
    return torch.logsumexp(torch.log_softmax(logits, 0) - 0.5 * (quadratic + constant), 1)


def gaussian_mixture_broadcast(
    z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor
) -> Tensor:
    """The same with every difference [N, K, L] formed, as homework solutions do it."""
    scaled = (z.unsqueeze(1) - means).square() * torch.exp(-log_vars)
    log_prob = -0.5 * (scaled + log_vars + LOG_2PI).sum(-1)
    return torch.logsumexp(log_prob + torch.log_softmax(logits, 0), 1)


def linear_bernoulli(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """h [B, K, H], weight [D, H], bias [D], x [B, D] -> [B, K]."""
    logits = F.linear(h, weight, bias)
    return bernoulli_log_prob(logits, x.unsqueeze(1).expand(logits.shape))


def linear_categorical_pixels(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """h [B, H, Y, X], weight [C, H], bias [C], x [B, Y, X] -> [B]."""
    logits = F.conv2d(h, weight[:, :, None, None], bias)
    return -F.cross_entropy(logits.to(_compute(logits)), x, reduction="none").sum((1, 2))


def linear_categorical(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """h [N, H], weight [C D, H], bias [C D], x [N, D] -> [N]; the classes of an entry D rows apart."""
    return categorical_log_prob(F.linear(h, weight, bias).unflatten(-1, (-1, x.shape[-1])), x)


def _compute(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32
