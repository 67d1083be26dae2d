"""Reference inversion of masked autoregressive networks: the dimensions of x one after the other.

x_d = map(z_d; parameters(x before d)). After each new dimension only the hidden units whose degree became
ready are evaluated, so that the whole costs the operations of about one pass through the network. Any map
and activation will do, and the result is differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast.reference._common import compute_dtype, draw_class
from dgm_fast.reference.coupling import log_scale_of
from dgm_fast.reference.spline import ENDS, rational_quadratic_spline

# (z_d [B] or [B, n], parameters [B, P]) -> (x_d [B], log|dx_d/dz_d| [B] or None)
Map = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]

# The last argument is the slope of leaky_relu and alpha of elu.
ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda t, _: t,
    "relu": lambda t, _: torch.relu(t),
    "leaky_relu": lambda t, slope: F.leaky_relu(t, slope),
    "elu": lambda t, alpha: F.elu(t, alpha),
    "tanh": lambda t, _: torch.tanh(t),
    "sigmoid": lambda t, _: torch.sigmoid(t),
    "silu": lambda t, _: F.silu(t),
    "softplus": lambda t, _: F.softplus(t),
    "gelu": lambda t, _: F.gelu(t),
}


def autoregressive_inverse(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    order: Tensor | None,
    activation: Callable[[Tensor], Tensor],
    transform: Map,
    values: Tensor | None = None,
    given: Tensor | None = None,
    *,
    gates: Sequence[Tensor] = (),
    encode: Callable[[int, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """x [B, D] and sum_d log|dx_d/dz_d| [B] (None where the map has none).

    z [B, D] or [B, D, n]; weights [H1, D F], [H2, H1], ..., [D P, HL], units in the order of their degrees
    [Hl], inputs and outputs in that of the steps; biases [Hl] or [B, Hl]; ``order`` [D]: the dimension at
    each step. With F > 1 inputs a dimension they are its class as a one-hot vector, or what ``encode`` (d,
    x_d [B]) -> [B, F] makes of it. ``values`` where ``given``, which add nothing to the second result.
    ``gates`` [B, Hl] are factors in place of the activation.
    """
    batch, size = z.shape[:2]
    dtype = compute_dtype(z, *weights)
    z = z.to(dtype)
    layers = [(w.to(dtype), b.to(dtype)) for w, b in zip(weights, biases, strict=True)]
    features = weights[0].shape[1] // size
    steps = list(range(size)) if order is None else order.tolist()
    boundaries = torch.arange(size, device=z.device)
    ready = [[0, *torch.searchsorted(d, boundaries, right=True).tolist()] for d in degrees]
    # What is known of the inputs and of every hidden layer so far, [B, number of units].
    known = [z.new_empty(batch, 0) for _ in layers]
    drawn: list[Tensor | None] = [None] * size
    total: Tensor | None = None
    for step, d in enumerate(steps):
        for i, (weight, bias) in enumerate(layers[:-1]):
            units = slice(ready[i][step], ready[i][step + 1])
            if units.start < units.stop:
                new = _outputs(known[i], weight, bias, units)
                new = new * gates[i][:, units] if gates else activation(new)
                known[i + 1] = torch.cat([known[i + 1], new], 1)
        weight, bias = layers[-1]
        outputs = weight.shape[0] // size
        params = _outputs(known[-1], weight, bias, slice(step * outputs, (step + 1) * outputs))
        x, log_abs_det = transform(z[:, d], params)
        if values is not None and given is not None:
            x = torch.where(given[:, d], values[:, d].to(x.dtype), x)
            if log_abs_det is not None:
                log_abs_det = torch.where(given[:, d], 0.0, log_abs_det)
        drawn[d] = x
        if log_abs_det is not None:
            total = log_abs_det if total is None else total + log_abs_det
        if encode is not None:
            inputs = encode(d, x)
        else:
            inputs = x.unsqueeze(1) if features == 1 else F.one_hot(x.long(), features)
        known[0] = torch.cat([known[0], inputs.to(dtype)], 1)
    return torch.stack([x for x in drawn if x is not None], 1), total


def _outputs(inputs: Tensor, weight: Tensor, bias: Tensor, units: slice) -> Tensor:
    """Pre-activations of some units, from the inputs known so far: the first ones of the layer."""
    return inputs @ weight[units, : inputs.shape[1]].t() + bias[..., units]


def bernoulli_draw(z: Tensor, params: Tensor) -> tuple[Tensor, None]:
    """[z < sigmoid(logit)], z uniform."""
    return (z < torch.sigmoid(params[:, 0])).to(params.dtype), None


def categorical_draw(z: Tensor, params: Tensor) -> tuple[Tensor, None]:
    """The first class whose cumulative probability passes the uniform z."""
    return draw_class(params, z), None


def mixture_draw(
    z: Tensor, params: Tensor, *, mixture: str, uniform_weights: bool
) -> tuple[Tensor, None]:
    """mean + scale times standard noise of a component drawn by its weight.

    z [B, 2]: a uniform, and a standard normal (or a uniform, for logistics); params [B, 3 M] or [B, 2 M]:
    logits (unless weights are uniform), means, log-scales.
    """
    *logits, means, log_scales = params.chunk(2 if uniform_weights else 3, 1)
    if uniform_weights:
        num_mixtures = means.shape[1]
        component = (z[:, 0] * num_mixtures).long().clamp(max=num_mixtures - 1)
    else:
        component = draw_class(logits[0], z[:, 0])
    mean = means.gather(1, component.unsqueeze(1)).squeeze(1)
    log_scale = log_scales.gather(1, component.unsqueeze(1)).squeeze(1)
    standard = z[:, 1] if mixture == "gaussian" else torch.logit(z[:, 1])
    return mean + torch.exp(log_scale) * standard, None


def affine_map(
    z: Tensor, params: Tensor, *, scale: str, clamp: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    """z * scale + shift, or (z - shift) / scale; params [..., 2]: shift, scale's parameter."""
    shift, u = params.unbind(-1)
    log_scale = log_scale_of(u, scale, clamp)
    if inverse:
        return (z - shift) * torch.exp(-log_scale), -log_scale
    return z * torch.exp(log_scale) + shift, log_scale


def spline_map(
    z: Tensor, params: Tensor, *, ends: str, logit_scale: float, **options: Any
) -> tuple[Tensor, Tensor]:
    """A rational-quadratic spline; params [..., P]: K widths, K heights (both times a factor), slopes."""
    bins = (params.shape[-1] + 1 - ENDS.index(ends)) // 3
    widths, heights, slopes = params.tensor_split((bins, 2 * bins), -1)
    return rational_quadratic_spline(
        z, logit_scale * widths, logit_scale * heights, slopes, ends=ends, **options
    )


def adjoint_map(z: Tensor, params: Tensor) -> tuple[Tensor, None]:
    """(z_0 - parameter) z_1: an unknown of a triangular system; z holds right side and inverse diagonal."""
    return (z[:, 0] - params[:, 0]) * z[:, 1], None
