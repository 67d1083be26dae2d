"""Inversion of masked autoregressive networks: equal to a pass a dimension, any map, errors."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from helpers.cases_autoregressive import spaced_degrees
from helpers.op_checks import relative_error
from torch import Tensor

from dgm_fast import functional as F
from dgm_fast import ops
from dgm_fast.functional import (
    AffineMap,
    BernoulliDraw,
    CategoricalDraw,
    MaskedNetwork,
    MixtureDraw,
    SplineMap,
)

MAPS = {
    "bernoulli": BernoulliDraw(),
    "categorical": CategoricalDraw(3),
    "affine": AffineMap(),
    "affine-inverse": AffineMap("softplus", inverse=True),
    "gaussian-mixture": MixtureDraw(3),
    "logistic-mixture": MixtureDraw(2, "logistic", uniform_weights=True),
    "spline": SplineMap(5, tail_bound=2.0),
    "spline-inverse": SplineMap(8, tail_bound=1.5, logit_scale=0.4, inverse=True),
}
# All kinds of ends, parameterizations and domains.
SPLINES = [
    SplineMap(1),
    SplineMap(4, "circular", 2.0, inverse=True),
    SplineMap(4, None, left=-1.0, right=2.0, bottom=-2.0, top=0.5),
    SplineMap(4, None, inverse=True, min_bin_width=1e-2, min_bin_height=2e-2, min_derivative=0.1),
    SplineMap(4, parameterization="zuko", tail_bound=3.0, inverse=True),
    SplineMap(3, parameterization="distrax", tail_bound=3.0),
    SplineMap(3, parameterization="madnis", tail_bound=3.0, inverse=True),
]
BIJECTIONS = [
    AffineMap("tanh"),
    AffineMap("exp", inverse=True),
    SplineMap(4, tail_bound=2.0),
    SplineMap(4, tail_bound=2.0, inverse=True),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make_network(
    size: int,
    hidden: tuple[int, ...],
    outputs: int,
    *,
    features: int = 1,
    activation: str | Callable[[Tensor], Tensor] = "tanh",
    order: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> MaskedNetwork:
    generator = torch.Generator().manual_seed(3)
    widths = (size * features, *hidden, size * outputs)
    # Linear parameters of an exponential grow without bound from dimension to dimension.
    scale = 1.0 if hidden else 0.2
    weights = [
        (scale * torch.randn(n, m, generator=generator, dtype=torch.float64) / m**0.5).to(dtype)
        for m, n in pairwise(widths)
    ]
    biases = [
        0.5 * torch.randn(n, generator=generator, dtype=torch.float64).to(dtype) for n in widths[1:]
    ]
    degrees = tuple(spaced_degrees(n, size) for n in hidden)
    return MaskedNetwork(tuple(weights), tuple(biases), degrees, order, activation)


def outputs_of(network: MaskedNetwork, x: Tensor, features: int = 1) -> Tensor:
    """All parameters [B, D, P] in the user's order of dimensions, by one pass with masked weights."""
    size = x.shape[1]
    order = torch.arange(size) if network.order is None else network.order
    steps = torch.arange(1, size + 1)
    outputs = network.weights[-1].shape[0] // size
    inputs = x[:, order]
    if features > 1:
        inputs = torch.nn.functional.one_hot(inputs.long(), features).flatten(1)
    degrees = [
        steps.repeat_interleave(features),
        *network.degrees,
        (steps - 1).repeat_interleave(outputs),
    ]
    h = inputs.to(network.weights[0].dtype)
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        mask = degrees[i] <= degrees[i + 1].unsqueeze(1)
        h = h @ torch.where(mask, weight, 0.0).t() + bias
        h = torch.tanh(h) if i < len(network.degrees) else h
    return h.unflatten(1, (size, outputs))[:, order.argsort()]


def inverse_by_passes(
    network: MaskedNetwork, transform: Callable, z: Tensor, features: int = 1
) -> Tensor:
    size = z.shape[1]
    order = torch.arange(size) if network.order is None else network.order
    x = torch.zeros(z.shape[:2], dtype=torch.float64)
    for d in order.tolist():
        x[:, d] = transform(z[:, d], outputs_of(network, x, features)[:, d])[0].double()
    return x


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("hidden", [(), (5,), (40,), (23, 17), (9, 30, 12)], ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_equals_a_pass_a_dimension(name: str, hidden: tuple[int, ...], backend: str) -> None:
    transform = MAPS[name]
    features = 3 if name == "categorical" else 1
    size, rows = 11, 21
    network = make_network(
        size, hidden, transform.params_per_dim, features=features, order=torch.randperm(size)
    )
    z = transform.draw_noise((rows, size), dtype=torch.float64)
    with ops.backend(backend):
        x, log_abs_det = F.autoregressive_inverse(network, transform, z)
    want = inverse_by_passes(network, transform, z, features)
    if name in ("bernoulli", "categorical"):
        assert torch.equal(x.double(), want)
        assert log_abs_det is None
    else:
        assert relative_error(x, want) < 1e-11
    if transform.bijective:
        assert log_abs_det is not None
        params = outputs_of(network, x)
        expected = transform(z, params)[1].sum(1)
        torch.testing.assert_close(log_abs_det, expected)
        back, log_back = transform.inverted()(x, params)
        torch.testing.assert_close(back, z)
        torch.testing.assert_close(log_back.sum(1), -log_abs_det)


@pytest.mark.parametrize("transform", SPLINES, ids=str)
def test_every_kind_of_spline(transform: SplineMap) -> None:
    size, rows = 7, 20
    network = make_network(size, (12,), transform.params_per_dim)
    z = transform.draw_noise((rows, size), dtype=torch.float64)
    given = torch.rand(rows, size) < 0.2
    values = transform.inverted().draw_noise((rows, size), dtype=torch.float64)
    condition = (values.where(given, torch.nan), given)
    x, log_abs_det = F.autoregressive_inverse(
        network, transform, z.where(~given, torch.nan), conditioned_on=condition
    )
    with ops.backend("reference"):
        want, want_log = F.autoregressive_inverse(network, transform, z, conditioned_on=condition)
    torch.testing.assert_close(x, want)
    torch.testing.assert_close(log_abs_det, want_log)
    assert torch.equal(x[given], values[given])
    back, log_back = transform.inverted()(x, outputs_of(network, x))
    torch.testing.assert_close(back[~given], z[~given])
    torch.testing.assert_close(log_back.where(~given, 0.0).sum(1), -log_abs_det)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_outside_the_domain_of_a_spline(backend: str) -> None:
    transform = SplineMap(3, None)
    network = make_network(2, (4,), transform.params_per_dim)
    z = torch.tensor([[0.5, 1.5]], dtype=torch.float64)
    first, second = torch.tensor([True, False]), torch.tensor([False, True])
    with ops.backend(backend):
        with pytest.raises(ValueError, match=r"z must hold values in \[0"):
            F.autoregressive_inverse(network, transform, z)
        with pytest.raises(ValueError, match="z must hold"):
            F.autoregressive_inverse(network, transform, z, conditioned_on=(z[0], first))
        with pytest.raises(ValueError, match="given values must hold"):
            F.autoregressive_inverse(network, transform, z, conditioned_on=(z[0], second))
        tails, log_abs_det = F.autoregressive_inverse(
            make_network(2, (4,), 8), SplineMap(3, tail_bound=0.25), z
        )
    assert torch.equal(tails, z)
    assert log_abs_det.item() == 0.0


def test_any_callable_and_any_activation_do() -> None:
    def cubic(z: Tensor, params: Tensor) -> tuple[Tensor, None]:
        return z**3 + params[:, 0], None

    network = make_network(9, (20, 10), 1)
    z = torch.randn(6, 9, dtype=torch.float64)
    x, log_abs_det = F.autoregressive_inverse(network, cubic, z)
    torch.testing.assert_close(x, inverse_by_passes(network, cubic, z))
    assert log_abs_det is None
    plain = make_network(9, (20, 10), 2)
    want, _ = F.autoregressive_inverse(plain, AffineMap(), z)
    x, _ = F.autoregressive_inverse(plain._replace(activation=torch.tanh), AffineMap(), z)
    torch.testing.assert_close(x, want)


def test_a_row_does_not_depend_on_its_batch() -> None:
    network = make_network(20, (50, 70), 2, dtype=torch.float32)
    z = torch.randn(150, 20)
    x, log_abs_det = F.autoregressive_inverse(network, AffineMap(), z)
    for rows in (slice(0, 1), slice(3, 40), slice(70, 150)):
        part, part_det = F.autoregressive_inverse(network, AffineMap(), z[rows])
        assert torch.equal(part, x[rows])
        assert torch.equal(part_det, log_abs_det[rows])


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_given_entries_are_kept(backend: str) -> None:
    network = make_network(12, (30,), 2, order=torch.randperm(12))
    z = torch.randn(7, 12, dtype=torch.float64)
    values = torch.randn(7, 12, dtype=torch.float64)
    given = torch.rand(7, 12) < 0.5
    with ops.backend(backend):
        x, log_abs_det = F.autoregressive_inverse(
            network, AffineMap(), z, conditioned_on=(values.where(given, torch.nan), given)
        )
    assert torch.equal(x[given], values[given])
    params = outputs_of(network, x)
    torch.testing.assert_close(x[~given], AffineMap()(z, params)[0][~given])
    torch.testing.assert_close(log_abs_det, params[..., 1].where(~given, 0.0).sum(1))


def test_masked_weights_have_no_influence() -> None:
    network = make_network(6, (8,), 2)
    z = torch.randn(3, 6, dtype=torch.float64)
    want, _ = F.autoregressive_inverse(network, AffineMap(), z)
    steps = torch.arange(1, 7)
    first = network.weights[0].masked_fill(steps > network.degrees[0].unsqueeze(1), torch.nan)
    last = network.weights[1].masked_fill(
        network.degrees[0] >= steps.repeat_interleave(2).unsqueeze(1), torch.inf
    )
    x, _ = F.autoregressive_inverse(network._replace(weights=(first, last)), AffineMap(), z)
    assert torch.equal(x, want)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("hidden", [(), (3,), (9,), (12, 7)], ids=str)
@pytest.mark.parametrize("transform", BIJECTIONS, ids=str)
def test_implicit_gradients_are_those_of_the_loop(transform, hidden, conditional) -> None:
    size, rows = 6, 5
    network = make_network(size, hidden, transform.params_per_dim, order=torch.randperm(size))
    biases = network.biases
    if conditional:
        biases = tuple(b + 0.1 * torch.randn(rows, len(b), dtype=b.dtype) for b in biases)
    z = torch.randn(rows, size, dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (z, *network.weights, *biases)]
    count = len(network.weights)
    network = network._replace(
        weights=tuple(leaves[1 : count + 1]), biases=tuple(leaves[count + 1 :])
    )
    condition = (torch.randn_like(z), torch.rand(rows, size) < 0.3)
    upstream = (torch.randn_like(z), torch.randn(rows, dtype=torch.float64))
    for conditioned_on in (None, condition):
        gradients = []
        for backend in ("auto", "reference"):
            with ops.backend(backend):
                outputs = F.autoregressive_inverse(
                    network, transform, leaves[0], conditioned_on=conditioned_on
                )
                gradients.append(
                    torch.autograd.grad(
                        outputs, leaves, upstream, allow_unused=True, materialize_grads=True
                    )
                )
        for found, want in zip(*gradients, strict=True):
            torch.testing.assert_close(found, want)


@pytest.mark.parametrize("transform", BIJECTIONS, ids=str)
def test_derivatives_of_both_orders(transform: AffineMap | SplineMap) -> None:
    network = make_network(4, (6, 5), transform.params_per_dim)
    z = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    weights = [w.requires_grad_() for w in network.weights]

    def call(z: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor | None]:
        return F.autoregressive_inverse(network._replace(weights=weights), transform, z)

    assert torch.autograd.gradcheck(call, (z, *weights))
    assert torch.autograd.gradgradcheck(call, (z, *weights), fast_mode=True)
    for target in (z, weights[0]):
        target.requires_grad_(False)
    outputs = call(z, *weights)
    assert torch.autograd.grad(outputs[0].sum(), weights[1])[0].shape == weights[1].shape


def test_gradients_in_reduced_precision_have_the_parameters_dtype() -> None:
    network = make_network(5, (8,), 2, dtype=torch.bfloat16)
    weights = tuple(w.requires_grad_() for w in network.weights)
    z = torch.randn(3, 5, dtype=torch.bfloat16, requires_grad=True)
    x, log_abs_det = F.autoregressive_inverse(network._replace(weights=weights), AffineMap(), z)
    assert x.dtype == torch.float32
    (x.sum() + log_abs_det.sum()).backward()
    assert all(t.grad is not None and t.grad.dtype == torch.bfloat16 for t in (z, *weights))


def test_no_graph_without_gradients() -> None:
    network = make_network(5, (8,), 2)
    network = network._replace(weights=tuple(w.requires_grad_() for w in network.weights))
    z = torch.randn(3, 5, dtype=torch.float64)
    assert F.autoregressive_inverse(network, AffineMap(), z)[0].requires_grad
    with torch.no_grad():
        assert not F.autoregressive_inverse(network, AffineMap(), z)[0].requires_grad
    weights = (network.weights[0], network.weights[1][:5])
    biases = (network.biases[0], network.biases[1][:5])
    single = network._replace(weights=weights, biases=biases)
    assert not F.autoregressive_inverse(single, BernoulliDraw(), torch.rand(3, 5))[0].requires_grad


def test_mixture_components_are_drawn_by_weight() -> None:
    # Without inputs the parameters are the biases.
    bias = torch.tensor([0.2, -0.5, 1.0, 3.0, 1.0, -2.0, -1.0, -4.0, 0.5]).log_softmax(0)
    network = MaskedNetwork((torch.zeros(9, 1),), (bias,), ())
    z = torch.stack([torch.tensor([[0.1], [0.5], [0.999]]), torch.zeros(3, 1)], -1)
    x, _ = F.autoregressive_inverse(network, MixtureDraw(3), z)
    cdf = torch.softmax(bias[:3], 0).cumsum(0)
    component = torch.searchsorted(cdf, z[:, 0, 0].contiguous())
    torch.testing.assert_close(x[:, 0], bias[3:6][component])


def test_extreme_logits() -> None:
    network = MaskedNetwork((torch.zeros(2, 2),), (torch.tensor([1e4, -1e4]),), ())
    z = torch.tensor([[0.0, 0.0], [1 - 1e-7, 1 - 1e-7]])
    for backend in ("auto", "reference"):
        with ops.backend(backend):
            x, _ = F.autoregressive_inverse(network, BernoulliDraw(), z)
        assert x.tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_empty_batch() -> None:
    network = make_network(3, (4,), 2)
    x, log_abs_det = F.autoregressive_inverse(network, AffineMap(), torch.empty(0, 3).double())
    assert x.shape == (0, 3)
    assert log_abs_det is not None
    assert log_abs_det.shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda n: (n, AffineMap(), torch.zeros(2, 4)), ValueError, "4 dimensions"),
        (lambda n: (n, BernoulliDraw(), torch.zeros(2, 3)), ValueError, "1 parameters"),
        (lambda n: (n, 3, torch.zeros(2, 3)), TypeError, "callable"),
        (lambda n: (n, AffineMap(), torch.zeros(2, 3, 2)), ValueError, "z must have shape"),
        (lambda n: (n, AffineMap(), torch.zeros(2, 3).long()), TypeError, "floating"),
        (
            lambda n: (n._replace(activation="cosine"), AffineMap(), torch.zeros(2, 3)),
            ValueError,
            "activation",
        ),
        (
            lambda n: (n._replace(degrees=()), AffineMap(), torch.zeros(2, 3)),
            ValueError,
            "degrees",
        ),
        (
            lambda n: (
                n._replace(biases=(n.biases[0][:-1], n.biases[1])),
                AffineMap(),
                torch.zeros(2, 3),
            ),
            ValueError,
            r"biases\[0\]",
        ),
        (
            lambda n: (n._replace(order=torch.arange(2)), AffineMap(), torch.zeros(2, 3)),
            ValueError,
            "order",
        ),
    ],
)
def test_errors(change: Callable, error: type[Exception], message: str) -> None:
    network = make_network(3, (4,), 2, dtype=torch.float32)
    with pytest.raises(error, match=message):
        F.autoregressive_inverse(*change(network))


def test_bad_given_values_raise() -> None:
    network = make_network(3, (4,), 1)
    given = torch.tensor([True, False, False])
    for backend in ("auto", "reference"):
        with ops.backend(backend), pytest.raises(ValueError, match=r"\[0, 1\]"):
            F.autoregressive_inverse(
                network,
                BernoulliDraw(),
                torch.rand(2, 3),
                conditioned_on=(torch.tensor([2.0, 0.0, 0.0]), given),
            )


@pytest.mark.parametrize(
    "build",
    [
        lambda: AffineMap("cube"),
        lambda: AffineMap(clamp=0.0),
        lambda: MixtureDraw(0),
        lambda: MixtureDraw(2, "uniform"),
        lambda: CategoricalDraw(0),
        lambda: SplineMap(0),
        lambda: SplineMap(4, "cubic"),
        lambda: SplineMap(4, min_bin_width=0.3),
        lambda: SplineMap(4, min_derivative=0.0),
        lambda: SplineMap(4, parameterization="cubic"),
        lambda: SplineMap(4, tail_bound=0.0),
    ],
)
def test_bad_maps(build: Callable) -> None:
    with pytest.raises(ValueError, match="must be"):
        build()
