"""Registration of the inversion of masked autoregressive networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dgm_fast.ops._registry import OpSpec, register, registered
from dgm_fast.ops.coupling import SCALES
from dgm_fast.ops.spline import PARAMETERIZATION_NAMES
from dgm_fast.reference import autoregressive as formulas
from dgm_fast.reference._common import compute_dtype
from dgm_fast.reference.spline import ENDS

# The integer codes of the op's arguments.
ACTIVATIONS = {name: code for code, name in enumerate(formulas.ACTIVATIONS)}
ELEMENT_MAPS = {
    "bernoulli": 0,
    "categorical": 1,
    "affine": 2,
    "gaussian_mixture": 3,
    "logistic_mixture": 4,
    # Of the backward: z [B, D, 2 + F] holds right sides, inverse diagonals and the factors that make the
    # network's inputs of x_d.
    "adjoint": 5,
    "spline": 6,
}
# ``modes`` and ``options`` of the maps that have any:
#     affine: the code in ``SCALES``; clamp
#     mixtures: 1 where weights are uniform
#     spline: the codes in ``SPLINE_ENDS``, 1 with tails, ``PARAMETERIZATIONS``; left, right, bottom, top,
#         least width, height and slope, the factor of widths and heights
# Maps with a log-derivative.
BIJECTIVE = (ELEMENT_MAPS["affine"], ELEMENT_MAPS["spline"])

_ACTIVATION_NAMES = tuple(ACTIVATIONS)


def _transform(
    transform: int, modes: Sequence[int], options: Sequence[float], inverse: bool
) -> formulas.Map:
    """The map of one dimension behind the op's codes."""
    if transform == ELEMENT_MAPS["bernoulli"]:
        return formulas.bernoulli_draw
    if transform == ELEMENT_MAPS["categorical"]:
        return formulas.categorical_draw
    if transform == ELEMENT_MAPS["affine"]:
        scale = tuple(SCALES)[modes[0]]
        return lambda z, params: formulas.affine_map(
            z, params, scale=scale, clamp=options[0], inverse=inverse
        )
    if transform == ELEMENT_MAPS["spline"]:
        return lambda z, params: formulas.spline_map(
            z,
            params,
            ends=ENDS[modes[0]],
            tails=modes[1] == 1,
            parameterization=PARAMETERIZATION_NAMES[modes[2]],
            domain=options[:4],
            min_bin_width=options[4],
            min_bin_height=options[5],
            min_derivative=options[6],
            logit_scale=options[7],
            inverse=inverse,
        )
    if transform == ELEMENT_MAPS["adjoint"]:
        return formulas.adjoint_map
    mixture = "gaussian" if transform == ELEMENT_MAPS["gaussian_mixture"] else "logistic"
    return lambda z, params: formulas.mixture_draw(
        z, params, mixture=mixture, uniform_weights=modes[0] == 1
    )


def _reference(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    gates: Sequence[Tensor],
    order: Tensor | None,
    activation: int,
    activation_parameter: float,
    transform: int,
    modes: Sequence[int],
    options: Sequence[float],
    inverse: bool,
    values: Tensor | None,
    given: Tensor | None,
) -> tuple[Tensor, Tensor]:
    function = formulas.ACTIVATIONS[_ACTIVATION_NAMES[activation]]
    encode = None
    if transform == ELEMENT_MAPS["adjoint"]:

        def encode(d: int, x: Tensor) -> Tensor:
            return x.unsqueeze(1) * z[:, d, 2:].to(x.dtype)

    with torch.no_grad():
        x, log_abs_det = formulas.autoregressive_inverse(
            z,
            weights,
            biases,
            degrees,
            order,
            lambda t: function(t, activation_parameter),
            _transform(transform, modes, options, inverse),
            values,
            given,
            gates=[gate.to(compute_dtype(z, *weights)) for gate in gates],
            encode=encode,
        )
    return x, x.new_empty(0, dtype=compute_dtype(z)) if log_abs_det is None else log_abs_det


def _fake(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    gates: Sequence[Tensor],
    order: Tensor | None,
    activation: int,
    activation_parameter: float,
    transform: int,
    modes: Sequence[int],
    options: Sequence[float],
    inverse: bool,
    values: Tensor | None,
    given: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(z, *weights)
    categorical = transform == ELEMENT_MAPS["categorical"]
    x = z.new_empty(z.shape[:2], dtype=torch.int64 if categorical else dtype)
    rows = z.shape[0] if transform in BIJECTIVE else 0
    return x, z.new_empty(rows, dtype=dtype)


_B, _D, _H = 5, 19, (23, 37)


def _example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    widths = (_D, *_H, 2 * _D)
    weights = [
        0.5 * torch.randn(n, m, device=device, dtype=dtype) / m**0.5 for m, n in pairwise(widths)
    ]
    biases = [0.1 * torch.randn(n, device=device, dtype=dtype) for n in widths[1:]]
    degrees = [1 + torch.arange(n, device=device) * (_D - 1) // n for n in _H]
    order = torch.arange(_D - 1, -1, -1, device=device)
    z = torch.randn(_B, _D, device=device, dtype=dtype)
    values, given = torch.randn_like(z), torch.rand(_B, _D, device=device) < 0.3
    return (
        z,
        weights,
        biases,
        degrees,
        [],
        order,
        ACTIVATIONS["elu"],
        1.0,
        ELEMENT_MAPS["affine"],
        [SCALES["exp"]],
        [2.0],
        False,
        values,
        given,
    )


register(OpSpec("autoregressive_inverse", "autoregressive", _reference, _fake, _example))

autoregressive_inverse = registered("autoregressive_inverse")
