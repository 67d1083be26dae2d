"""The one-pass inversion in Triton's interpreter against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.cases_autoregressive import inputs
from torch import Tensor

pytest.importorskip("triton")

from dgm_fast.kernels import autoregressive
from launchers import forward, relative_error

from dgm_fast import ops
from dgm_fast.functional import (
    AffineMap,
    BernoulliDraw,
    CategoricalDraw,
    ElementMap,
    MaskedNetwork,
    MixtureDraw,
    SplineMap,
    autoregressive_inverse,
)

pytestmark = pytest.mark.interpreter

OP = "autoregressive_inverse"


def arguments(
    rows: int,
    size: int,
    hidden: tuple[int, ...],
    transform: ElementMap,
    dtype: torch.dtype = torch.float64,
    *,
    activation: str = "tanh",
    parameter: float = 0.0,
    given: bool = False,
    **options: Any,
) -> list[Any]:
    """The op's."""
    build = inputs(rows, size, hidden, transform, given=given, **options)
    z, order, *rest = build(dtype)
    layers = len(hidden) + 1
    weights, biases, degrees = rest[:layers], rest[layers : 2 * layers], rest[2 * layers :]
    condition = degrees[layers - 1 :] if given else [None, None]
    return [
        z,
        weights,
        biases,
        degrees[: layers - 1],
        [],
        order,
        ops.ACTIVATIONS[activation],
        parameter,
        *transform.kernel(),
        *condition,
    ]


def check(args: list[Any], tolerance: float = 1e-12) -> tuple[Tensor, Tensor]:
    x, log_det = forward(OP, *args)
    want, want_log_det = ops.SPECS[OP].reference(*args)
    assert x.dtype == want.dtype and x.shape == want.shape
    assert log_det.dtype == want_log_det.dtype and log_det.shape == want_log_det.shape
    if x.dtype == torch.int64 or set(want.unique().tolist()) <= {0.0, 1.0}:
        assert torch.equal(x, want)
    else:
        assert relative_error(x, want.double()) < tolerance
    if log_det.numel():
        assert relative_error(log_det, want_log_det.double()) < tolerance
    return x, log_det


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of steps and tiles of every loop, of a small problem."""
    monkeypatch.setattr(autoregressive, "_STEPS", 4)
    monkeypatch.setattr(autoregressive, "_TILE", 16)
    monkeypatch.setattr(autoregressive, "_PRODUCTS", 16)
    monkeypatch.setattr(autoregressive, "_PARAMS", 2)


MAPS = {
    "bernoulli": BernoulliDraw(),
    "categorical": CategoricalDraw(3),
    "affine": AffineMap(),
    "gaussian-mixture": MixtureDraw(3),
    "logistic-mixture": MixtureDraw(2, "logistic", uniform_weights=True),
    "spline": SplineMap(5, tail_bound=1.5, logit_scale=0.7, inverse=True),
}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_maps(name: str, given: bool) -> None:
    check(arguments(3, 5, (7, 6), MAPS[name], given=given))


@pytest.mark.parametrize(
    "name", ["bernoulli", "categorical", "affine", "gaussian-mixture", "spline"]
)
def test_split(name: str, split: None) -> None:
    check(arguments(17, 9, (23, 20), MAPS[name]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    check(arguments(3, 7, (9,), AffineMap("tanh"), dtype), 1e-5)
    check(arguments(3, 7, (9,), SplineMap(4, tail_bound=2.0), dtype), 1e-5)


@pytest.mark.parametrize("activation", list(ops.ACTIVATIONS))
def test_activations(activation: str) -> None:
    check(arguments(3, 4, (9,), AffineMap(), activation=activation, parameter=0.3))


@pytest.mark.parametrize("scale", list(ops.SCALES))
def test_scales(scale: str) -> None:
    check(arguments(3, 4, (5,), AffineMap(scale, 1.5, inverse=True)))


@pytest.mark.parametrize(
    "transform",
    [
        SplineMap(1),
        SplineMap(3, "circular", 2.0, inverse=True),
        SplineMap(3, None, left=-1.0, right=2.0, bottom=-2.0, top=0.5),
        SplineMap(3, parameterization="zuko", tail_bound=3.0, inverse=True),
        SplineMap(3, parameterization="distrax", tail_bound=3.0),
        SplineMap(3, parameterization="madnis", tail_bound=3.0, inverse=True),
    ],
    ids=str,
)
def test_splines(transform: SplineMap) -> None:
    check(arguments(3, 4, (5,), transform))


@pytest.mark.parametrize(
    ("rows", "size", "hidden"),
    [(1, 1, (1,)), (3, 5, ()), (0, 3, (2,)), (4, 7, (3, 2)), (2, 3, (9, 8, 7))],
)
def test_shapes(rows: int, size: int, hidden: tuple[int, ...], split: None) -> None:
    check(arguments(rows, size, hidden, AffineMap()))


def test_biases_of_rows_and_no_order() -> None:
    args = arguments(3, 6, (9, 8), AffineMap(), given=True, row_bias=True, lowest=0)
    args[5] = None
    x, _ = check(args)
    values, given = args[-2:]
    assert torch.equal(x[given], values[given])


def test_adjoint_with_gates(split: None) -> None:
    rows, size, features = 3, 6, 2
    z, weights, biases, degrees, *_ = arguments(rows, size, (9, 8), BernoulliDraw())
    z = torch.randn(rows, size, 2 + features, dtype=torch.float64)
    weights = [torch.randn(9, size * features, dtype=torch.float64), *weights[1:]]
    gates = [torch.rand(rows, n, dtype=torch.float64) for n in (9, 8)]
    given = torch.rand(rows, size) < 0.3
    check(
        [
            z,
            weights,
            biases,
            degrees,
            gates,
            None,
            ops.ACTIVATIONS["identity"],
            0.0,
            ops.ELEMENT_MAPS["adjoint"],
            [],
            [],
            False,
            torch.zeros(rows, size, dtype=torch.float64),
            given,
        ]
    )


def test_masked_weights_have_no_influence(split: None) -> None:
    args = arguments(3, 9, (11, 10), AffineMap())
    want, _ = forward(OP, *args)
    steps = torch.arange(1, 10)
    seen = [steps, *args[3]]
    heard = [*args[3], (steps - 1).repeat_interleave(2)]
    args[1] = [
        torch.where(a <= b.unsqueeze(1), w, torch.nan)
        for w, a, b in zip(args[1], seen, heard, strict=True)
    ]
    assert torch.equal(forward(OP, *args)[0], want)


def test_bad_given_values() -> None:
    args = arguments(3, 4, (5,), BernoulliDraw())
    args[5] = None
    args[-2:] = torch.full((3, 4), 2.0), torch.tensor([[False, True, False, False]] * 3)
    x, _ = forward(OP, *args)
    assert x.isnan()[:, :2].tolist() == [[False, True]] * 3
    # The last class, and none beyond it, for noise of 1.
    args = arguments(3, 4, (5,), CategoricalDraw(5))
    args[0] = torch.ones(3, 4)
    assert forward(OP, *args)[0].eq(4).all()


@pytest.mark.skipif(ops.active_isa() is None, reason="the C++ extension is not built")
@pytest.mark.parametrize("transform", [AffineMap("tanh"), SplineMap(3, tail_bound=2.0)], ids=str)
def test_gradients_through_the_public_function(transform: ElementMap) -> None:
    z, order, *rest = inputs(3, 4, (6, 5), transform)(torch.float64)
    network = MaskedNetwork(tuple(rest[:3]), tuple(rest[3:6]), tuple(rest[6:]), order, "tanh")
    leaves = [t.requires_grad_() for t in (z, *network.weights, *network.biases)]
    results = []
    for backend in ("triton", "reference"):
        with ops.backend(backend):
            x, log_det = autoregressive_inverse(network, transform, z)
            gradients = torch.autograd.grad(x.square().sum() + log_det.sum(), leaves)
            results.append((x, log_det, *gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
