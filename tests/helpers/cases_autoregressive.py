"""Cases of the inversion of masked autoregressive networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from helpers.cases_likelihood import _generator, _randn
from helpers.op_checks import OpCase
from torch import Tensor

from dgm_fast import functional, reference
from dgm_fast.functional import (
    AffineMap,
    BernoulliDraw,
    CategoricalDraw,
    ElementMap,
    MixtureDraw,
    SplineMap,
)

Build = Callable[[torch.dtype], tuple[Tensor, ...]]


def spaced_degrees(units: int, size: int, lowest: int = 1) -> Tensor:
    """Ascending, from ``lowest`` to size - 1."""
    return lowest + torch.arange(units) * max(1, size - lowest) // units


def inputs(
    rows: int,
    size: int,
    hidden: Sequence[int],
    transform: ElementMap,
    *,
    given: bool = False,
    row_bias: bool = False,
    lowest: int = 1,
) -> Build:
    """(z, order, weights..., biases..., degrees..., [values, given])"""

    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        features = transform.num_classes if isinstance(transform, CategoricalDraw) else 1
        widths = (size * features, *hidden, size * transform.params_per_dim)
        weights = [_randn((n, m), dtype, m**-0.5, generator) for m, n in pairwise(widths)]
        lead = (rows,) if row_bias else ()
        biases = [_randn((*lead, n), dtype, 0.3, generator) for n in widths[1:]]
        degrees = [spaced_degrees(n, size, lowest) for n in hidden]
        # Noise of reduced precision would round to 1.
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        z = transform.draw_noise((rows, size), dtype=torch.float64, generator=generator).to(wide)
        order = torch.randperm(size, generator=generator)
        params = torch.zeros(rows * size, transform.params_per_dim)
        values = transform(z.reshape(rows * size, *z.shape[2:]), params)[0]
        kept = torch.rand((rows, size), generator=generator) < 0.4
        condition = (values.reshape(rows, size), kept) if given else ()
        return (z, order, *weights, *biases, *degrees, *condition)

    return build


def _case(
    id: str,
    rows: int,
    size: int,
    hidden: Sequence[int],
    transform: ElementMap,
    *,
    activation: str = "relu",
    parameter: float = 0.0,
    given: bool = False,
    row_bias: bool = False,
    lowest: int = 1,
) -> OpCase:
    layers = len(hidden) + 1

    def split(args: Sequence[Tensor]) -> tuple[list, list, list, list]:
        rest = list(args[2:])
        return (
            rest[:layers],
            rest[layers : 2 * layers],
            rest[2 * layers : 3 * layers - 1],
            rest[3 * layers - 1 :],
        )

    def joined(x: Tensor, log_abs_det: Tensor | None) -> Tensor:
        return x if log_abs_det is None else torch.cat([x, log_abs_det.unsqueeze(1)], 1)

    def ours(z: Tensor, order: Tensor, *args: Tensor) -> Tensor:
        weights, biases, degrees, condition = split((z, order, *args))
        network = functional.MaskedNetwork(
            tuple(weights), tuple(biases), tuple(degrees), order, activation, parameter
        )
        return joined(
            *functional.autoregressive_inverse(
                network, transform, z, conditioned_on=tuple(condition) if given else None
            )
        )

    def plain(z: Tensor, order: Tensor, *args: Tensor) -> Tensor:
        weights, biases, degrees, condition = split((z, order, *args))
        function = reference.ACTIVATIONS[activation]
        return joined(
            *reference.autoregressive_inverse(
                z,
                weights,
                biases,
                degrees,
                order,
                lambda t: function(t, parameter),
                transform,
                *condition,
            )
        )

    build = inputs(rows, size, hidden, transform, given=given, row_bias=row_bias, lowest=lowest)
    return OpCase(f"inverse-{id}", "autoregressive_inverse", ours, plain, build, ())


# Sizes: below, at and across vector lanes, groups of units and blocks of dimensions; odd; one.
CASES = [
    _case("bernoulli", 5, 19, (13,), BernoulliDraw()),
    _case("bernoulli-given", 17, 7, (9, 11), BernoulliDraw(), given=True, activation="tanh"),
    _case("categorical", 6, 7, (20,), CategoricalDraw(3)),
    _case(
        "categorical-given",
        5,
        4,
        (9,),
        CategoricalDraw(4),
        given=True,
        activation="elu",
        parameter=0.7,
    ),
    _case("affine", 5, 37, (23, 41), AffineMap()),
    _case("affine-given", 3, 17, (40,), AffineMap(), given=True, activation="silu"),
    _case("affine-back", 5, 7, (9, 8, 7), AffineMap(inverse=True), activation="sigmoid"),
    _case("affine-sigmoid2", 3, 5, (9,), AffineMap("sigmoid2"), activation="softplus"),
    _case("affine-softplus", 3, 5, (9,), AffineMap("softplus", inverse=True), activation="gelu"),
    _case(
        "affine-tanh", 3, 5, (9,), AffineMap("tanh", 1.5), activation="leaky_relu", parameter=0.1
    ),
    _case("affine-atan", 3, 5, (9,), AffineMap("atan"), activation="identity"),
    _case("affine-softsign", 3, 5, (9,), AffineMap("softsign", inverse=True)),
    _case("spline", 5, 6, (9, 8), SplineMap(8, tail_bound=1.5, inverse=True), given=True),
    _case("spline-circular", 3, 5, (9,), SplineMap(3, "circular"), activation="tanh"),
    _case("spline-zuko", 3, 5, (9,), SplineMap(4, parameterization="zuko", tail_bound=3.0)),
    _case("context", 5, 6, (9, 8), AffineMap(), row_bias=True, lowest=0),
    _case("few-units", 4, 33, (3, 2), AffineMap()),
    _case("no-hidden", 4, 6, (), AffineMap()),
    _case("gaussian-mixture", 5, 4, (9,), MixtureDraw(3)),
    _case(
        "logistic-mixture", 5, 4, (9,), MixtureDraw(2, "logistic", uniform_weights=True), given=True
    ),
    _case("one", 1, 1, (1,), AffineMap()),
]

# Several tiles of rows, of every width.
LARGE = [
    _case("large-bernoulli", 150, 40, (70,), BernoulliDraw()),
    _case("large-categorical", 70, 9, (50,), CategoricalDraw(5), given=True),
    _case("large-affine", 150, 20, (70, 90), AffineMap(), activation="tanh", given=True),
    _case("large-context", 70, 20, (50,), AffineMap(), row_bias=True, lowest=0),
    _case("large-spline", 70, 20, (30,), SplineMap(8, tail_bound=2.0, inverse=True)),
    _case("large-mixture", 70, 8, (30,), MixtureDraw(4)),
]
