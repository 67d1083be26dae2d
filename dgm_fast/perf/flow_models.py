"""Neural spline flows as others write them: by the plain formula, and in nflows with equal weights."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast.nn import SplineElement
from dgm_fast.perf import plain


@dataclass(frozen=True)
class _PlainSpline(SplineElement):
    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        bins = self.num_bins
        z, log_slope = plain.rational_quadratic_spline(
            x, *params.split([bins, bins, bins - 1], -1), bound=self.tail_bound, inverse=inverse
        )
        return z, log_slope.sum(1)


def make_plain(model: Any) -> None:
    """Replace an NSF's splines by the branch-free formula with its bins unrolled, which compiles well."""
    for transform in model.transform.transforms:
        if hasattr(transform, "element"):
            transform.element = _PlainSpline(
                transform.element.num_bins, transform.element.tail_bound
            )


class NFlows(nn.Module):
    """An NSF of couplings, rebuilt from nflows' own transforms with the same weights.

    Raises:
        ImportError: if nflows is not installed.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        transforms = importlib.import_module("nflows.transforms")
        resnet = importlib.import_module("nflows.nn.nets.resnet")
        parts: list[nn.Module] = []
        # Without the standardisation, which a benchmark's data do not need.
        for transform in list(model.transform.transforms)[1:]:
            if hasattr(transform, "element"):
                parts.append(_coupling(transforms, resnet, transform))
            else:
                parts += _linear(transforms, transform)
        self.transforms = nn.ModuleList(parts)

    def loss(self, x: Tensor) -> Tensor:
        total = 0.0
        for transform in self.transforms:
            x, log_abs_det = transform(x)
            total = total + log_abs_det
        return (0.5 * (x.square() + math.log(2 * math.pi)).sum(1) - total).mean()

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(len(z))
        for transform in reversed(list(self.transforms)):
            z, log_abs_det = transform.inverse(z)  # type: ignore[operator]
            total = total + log_abs_det
        return z, total


@torch.no_grad()
def _coupling(transforms: Any, resnet: Any, ours: Any) -> nn.Module:
    network = ours.network
    hidden = network.initial_layer.out_features
    mask = torch.zeros(ours.num_dims)
    mask[ours.transform_features] = 1
    theirs = transforms.PiecewiseRationalQuadraticCouplingTransform(
        mask,
        lambda n, p: resnet.ResidualNet(
            n, p, hidden_features=hidden, num_blocks=len(network.blocks)
        ),
        num_bins=ours.element.num_bins,
        tails="linear",
        tail_bound=ours.element.tail_bound,
    ).to(network.final_layer.weight)
    theirs.transform_net.load_state_dict(network.state_dict())
    # nflows divides parameters of widths and heights by the root of the hidden size.
    factor = torch.ones(ours.element.params_per_dim)
    factor[: 2 * ours.element.num_bins] = math.sqrt(hidden)
    last = theirs.transform_net.final_layer
    factor = factor.repeat(len(ours.transform_features)).to(last.weight)
    last.weight.mul_(factor.unsqueeze(1))
    last.bias.mul_(factor)
    return theirs


@torch.no_grad()
def _linear(transforms: Any, ours: Any) -> list[nn.Module]:
    size = ours.num_dims
    theirs = transforms.LULinear(size, identity_init=True).to(ours.lower)
    theirs.lower_entries.copy_(ours.lower[theirs.lower_indices[0], theirs.lower_indices[1]])
    theirs.upper_entries.copy_(ours.upper[theirs.upper_indices[0], theirs.upper_indices[1]])
    diagonal = ours.log_diag.exp() - theirs.eps
    theirs.unconstrained_upper_diag.copy_(torch.log(torch.expm1(diagonal)))
    theirs.bias[ours.permutation] = ours.bias
    return [theirs, transforms.Permutation(ours.permutation.clone())]
