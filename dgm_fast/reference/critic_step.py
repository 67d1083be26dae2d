"""A critic's loss, gradient penalty and parameter gradients by their closed form, in plain PyTorch.

The same algorithm as csrc/critic_step.cpp, where it is derived. Serves the devices that have no kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast.reference.adversarial import Term, loss_term, norm_penalty

# Where the penalty is taken; alone: at the real samples, without a loss.
NONE, MIXED, AT_REAL, AT_FAKE, ALONE = range(5)


@dataclass
class _Layer:
    conv: bool
    weight: Tensor
    bias: Tensor | None
    slope: float
    options: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]

    def apply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self.conv:
            return F.linear(x.flatten(1), self.weight, bias)
        stride, padding, dilation, groups = self.options
        return F.conv2d(x, self.weight, bias, stride, padding, dilation, groups)

    def backward(self, signal: Tensor, x: Tensor, which: int) -> Tensor:
        """The signal in front of the layer (0), or the gradient of its weight (1)."""
        if not self.conv:
            if which:
                return signal.t() @ x.flatten(1)
            return (signal @ self.weight).view(x.shape)
        stride, padding, dilation, groups = self.options
        mask = [which == 0, which == 1, False]
        result: Tensor = torch.ops.aten.convolution_backward(
            signal, x, self.weight, None, stride, padding, dilation, False, (0, 0), groups, mask
        )[which]
        return result

    def activate(self, a: Tensor) -> Tensor:
        return a if self.slope == 1.0 else F.leaky_relu(a, self.slope)

    def mask(self, h: Tensor, t: Tensor) -> Tensor:
        return t if self.slope == 1.0 else torch.where(h > 0, t, self.slope * t)


def _layers(
    parameters: Sequence[Tensor], geometry: Sequence[int], slopes: Sequence[float]
) -> list[_Layer]:
    rest = list(parameters)
    layers = []
    for i, slope in enumerate(slopes):
        conv, has_bias, *g = geometry[9 * i : 9 * i + 9]
        weight = rest.pop(0)
        bias = rest.pop(0) if has_bias else None
        options = ((g[0], g[1]), (g[2], g[3]), (g[4], g[5]), g[6])
        layers.append(_Layer(bool(conv), weight, bias, slope, options))
    return layers


def _term(v: Tensor, term: Term) -> tuple[Tensor, Tensor]:
    """Mean of a term, and its derivative."""
    with torch.enable_grad():
        v = v.detach().requires_grad_()
        value = term[0] * loss_term(term[1], v).mean()
        (slope,) = torch.autograd.grad(value, v)
    return value.detach(), slope


def _row_scaled(t: Tensor, scale: Tensor) -> Tensor:
    return t * scale.reshape(-1, *(1,) * (t.ndim - 1))


@torch.no_grad()
def critic_step(
    real: Tensor,
    fake: Tensor,
    eps: Tensor | None,
    parameters: Sequence[Tensor],
    geometry: Sequence[int],
    slopes: Sequence[float],
    real_term: Term,
    fake_term: Term,
    penalty: int,
    weight: float,
    center: float,
    one_sided: bool,
    with_gradients: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the gradients of ``parameters`` (none without ``with_gradients``)."""
    layers = _layers(parameters, geometry, slopes)
    n = real.shape[0]
    stacked = [real] if penalty == ALONE else [real, fake]
    if penalty == MIXED:
        assert eps is not None
        stacked.append(torch.lerp(fake, real, eps.reshape(-1, *(1,) * (real.ndim - 1)).to(real)))
    h = [torch.cat(stacked)]
    for layer in layers:
        h.append(layer.activate(layer.apply(h[-1], layer.bias)))
    out = h[-1]
    loss = out.new_zeros(())
    seeds = []
    scale = unit_scale = None
    if penalty != ALONE:
        value_real, seed_real = _term(out[:n], real_term)
        value_fake, seed_fake = _term(out[n : 2 * n], fake_term)
        loss = value_real + value_fake
        seeds = [seed_real, seed_fake]
    if penalty in (MIXED, ALONE):
        seeds.append(torch.ones_like(out[:n]))
    place = slice(2 * n, 3 * n) if penalty == MIXED else slice(0, n)
    if penalty in (AT_REAL, AT_FAKE):
        at = 0 if penalty == AT_REAL else 1
        place = slice(at * n, (at + 1) * n)
        # Mantissas and powers of two: signals of a common seed would be rounded alike in all samples,
        # errors that stay where the signals of real and fake samples cancel.
        mantissa, exponent = torch.frexp(seeds[at])
        zero = mantissa == 0
        power = torch.where(zero, 0.0, torch.ldexp(torch.ones_like(mantissa), exponent))
        seeds[at] = torch.where(zero, 1.0, mantissa)
        scale, unit_scale = power.reshape(n), seeds[at].reciprocal().reshape(n)
    signals = [layers[-1].mask(out, torch.cat(seeds))]
    for i in range(len(layers) - 1, 0, -1):
        signals.append(layers[i - 1].mask(h[i], layers[i].backward(signals[-1], h[i], 0)))
    signals.reverse()
    if penalty != NONE:
        gradient = layers[0].backward(signals[0][place], h[0][place], 0)
        with torch.enable_grad():
            gradient.requires_grad_()
            of_outputs = gradient if unit_scale is None else _row_scaled(gradient, unit_scale)
            value, _ = norm_penalty(of_outputs, weight, center, one_sided)
            (direction,) = torch.autograd.grad(value, gradient)
        loss = loss + value.detach()
    if not with_gradients:
        return loss, []
    bias_rows = slice(0, 0 if penalty == ALONE else 2 * n)
    row_scale = torch.ones(len(h[0]), dtype=real.dtype, device=real.device)
    if penalty != NONE:
        t = direction
        if scale is not None:
            t = t + _row_scaled(h[0][place], scale)
            row_scale[place] = scale
        h[0][place] = t
        for i, layer in enumerate(layers[:-1]):
            t = layer.apply(t)
            if scale is not None and layer.bias is not None:
                t = t + _row_scaled(
                    layer.bias.reshape(1, -1, *(1,) * (t.ndim - 2)).expand_as(t), scale
                )
            t = layer.mask(h[i + 1][place], t)
            h[i + 1][place] = t
    gradients = []
    for i, layer in enumerate(layers):
        gradients.append(layer.backward(signals[i], h[i], 1))
        if layer.bias is not None:
            rows = _row_scaled(signals[i][bias_rows], row_scale[bias_rows])
            gradients.append(rows.flatten(2).sum((0, 2)) if rows.ndim > 2 else rows.sum(0))
    return loss, gradients
