"""Flows by their plain formulas, and a density with known entropy."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgm_fast.models import Flow
from dgm_fast.nn import (
    AffineElement,
    Compose,
    FeatureCoupling,
    Inverse,
    LULinear,
    MaskedAutoregressive,
    SplineElement,
    Standardize,
)
from dgm_fast.perf import plain


def plain_log_prob(model: Flow, x: Tensor, context: Tensor | None = None) -> Tensor:
    """log p(x) of a RealNVP, NSF, MAF or IAF without any op of this library but the networks."""
    total = torch.zeros(len(x), dtype=x.dtype)
    for transform in model.transform.transforms:
        x, log_abs_det = _plain(transform, x, context)
        total = total + log_abs_det
    return total - 0.5 * (x.square() + math.log(2 * math.pi)).sum(1)


def _plain(transform: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    if isinstance(transform, Compose):
        raise TypeError("compositions are taken apart by the caller")
    if isinstance(transform, Standardize):
        return (x - transform.location) / transform.scale, -transform.scale.log().sum()
    if isinstance(transform, LULinear):
        size = len(x[0])
        unit = transform.lower.tril(-1) + torch.eye(size, dtype=x.dtype)
        diagonal = transform.sign * transform.log_diag.exp()
        rows = torch.eye(size, dtype=x.dtype)[transform.permutation]
        weight = rows @ unit @ (transform.upper.triu(1) + torch.diag(diagonal))
        return x @ weight.t() + transform.bias, torch.linalg.slogdet(weight).logabsdet
    known = {} if context is None else {"context": context}
    if isinstance(transform, FeatureCoupling):
        kept, mapped = transform.identity_features, transform.transform_features
        params = transform.network(x[:, kept], **known)
        count = transform.element.params_per_dim
        if transform.element.params_first:
            params = params.view(len(x), count, -1).transpose(1, 2)
        z, log_slope = _element(transform.element, x[:, mapped], params.reshape(len(x), -1, count))
        out = x.clone()
        out[:, mapped] = z
        return out, log_slope.sum(1)
    if isinstance(transform, MaskedAutoregressive):
        z, log_slope = _element(transform.element, x, transform.network(x, **known))
        return z, log_slope.sum(1)
    assert isinstance(transform, Inverse)
    # A pass a dimension.
    inner = transform.transform
    z = torch.zeros_like(x)
    for _ in range(x.shape[1]):
        params = inner.network(z, **known)
        z, log_slope = _element(inner.element, x, params, inverse=True)
    return z, log_slope.sum(1)


def _element(
    element: object, x: Tensor, params: Tensor, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    if isinstance(element, SplineElement):
        bins = element.num_bins
        return plain.rational_quadratic_spline(
            x,
            *params.split([bins, bins, bins - 1], -1),
            bound=element.tail_bound,
            inverse=inverse,
        )
    assert isinstance(element, AffineElement)
    shift, u = params.unbind(-1)
    scale = {
        "tanh": lambda: torch.exp(element.clamp * torch.tanh(u / element.clamp)),
        "softplus": lambda: F.softplus(u) + 1e-3,
    }[element.scale]()
    if inverse:
        return (x - shift) / scale, -scale.log()
    return x * scale + shift, scale.log()
