"""NADE: what the mathematics promises, samples, limits, and errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import cases_nade
from helpers.cases_nade import binary_inputs, categorical_inputs, mixture_inputs
from helpers.distributions import chi_square, every_vector
from helpers.op_checks import DTYPES, OpCase, check_reference, values_and_gradients
from torch import Tensor

import dgm_fast
from dgm_fast import functional as F
from dgm_fast import ops, reference
from dgm_fast.perf import memory

INF = math.inf
BINARY = OpCase(
    "nade", "nade_log_prob", F.nade_log_prob, reference.nade_log_prob, lambda _: (), (1, 2, 3, 4)
)

needs_extension = pytest.mark.skipif(
    ops.active_isa() is None, reason="the C++ extension is not built"
)


def mixture_parameters(
    size: int, hidden: int, mixtures: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    return mixture_inputs((1,), size, hidden, mixtures)(dtype)[1:]


def strong(parameters: list[Tensor]) -> list[Tensor]:
    """Parameters under which the dimensions depend on each other."""
    return [4.0 * t for t in parameters]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_binary_probabilities_sum_to_one(dtype: torch.dtype, tolerance: float) -> None:
    _, *parameters = binary_inputs((1,), 12, 7)(dtype)
    log_prob = F.nade_log_prob(every_vector(12, 2), *strong(parameters))
    assert abs(log_prob.double().logsumexp(0).item()) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_categorical_probabilities_sum_to_one(dtype: torch.dtype, tolerance: float) -> None:
    _, *parameters = categorical_inputs((1,), 7, 5, 3)(dtype)
    log_prob = F.nade_categorical_log_prob(every_vector(7, 3), *strong(parameters))
    assert abs(log_prob.double().logsumexp(0).item()) < tolerance


@pytest.mark.parametrize("mixture", ["gaussian", "logistic"])
@pytest.mark.parametrize("size", [1, 2])
def test_densities_integrate_to_one(size: int, mixture: str) -> None:
    parameters = mixture_parameters(size, 5, 3)
    parameters[-1].sub_(1.5)  # log-scales
    scale = torch.linspace(0.5, 1.5, size, dtype=torch.float64)
    # The trapezoidal rule converges faster than any power: the density is smooth and ends in zero.
    reach, count = (12.0, 481) if mixture == "gaussian" else (30.0, 961)
    line = torch.linspace(-reach, reach, count, dtype=torch.float64)
    x = torch.cartesian_prod(*[line] * size).reshape(-1, size)
    density = F.rnade_log_prob(x, *parameters, mixture=mixture, activation_scale=scale).exp()
    width = (line[1] - line[0]).item()
    assert abs(density.sum().item() * width**size - 1) < 1e-6


def conditionals(x: Tensor, kind: str) -> Tensor:
    """The parameters of all conditionals of rows x [B, 9]: [B, 9, K]."""
    if kind == "binary":
        _, *parameters = binary_inputs((1,), 9, 20)(torch.float32)
        return ops.nade_log_prob(x, *parameters)[1].unsqueeze(-1)
    if kind == "categorical":
        _, *parameters = categorical_inputs((1,), 9, 20, 3)(torch.float32)
        return ops.nade_categorical_log_prob(x, *parameters)[1]
    parameters = list(mixture_parameters(9, 20, 2, torch.float32))
    return ops.rnade_log_prob(x, *parameters, None, 0)[1]


@needs_extension
@pytest.mark.parametrize("kind", ["binary", "categorical", "mixture"])
def test_a_conditional_depends_on_the_dimensions_before_it_alone(kind: str) -> None:
    x = torch.randint(0, 2, (1, 9)).to(torch.int64 if kind == "categorical" else torch.float32)
    changed = x.repeat(9, 1)
    changed.diagonal().copy_(1 - x[0])
    before, after = conditionals(x, kind), conditionals(changed, kind)
    for j in range(9):
        assert torch.equal(after[j, : j + 1], before[0, : j + 1])
        assert (after[j, j + 1 :] != before[0, j + 1 :]).any(-1).all()


def test_the_jacobian_of_the_conditionals_is_strictly_triangular() -> None:
    x, *parameters = binary_inputs((1,), 6, 8, soft=True)(torch.float64)
    jacobian = torch.func.jacrev(lambda t: reference.nade.nade_logits(t[None], *parameters)[0])(
        x[0]
    )
    assert torch.equal(jacobian.triu(), torch.zeros(6, 6, dtype=torch.float64))
    assert (jacobian.tril(-1) != 0).sum() == 15


@needs_extension
@pytest.mark.parametrize("level", ops.runnable_isas())
def test_samples_are_those_of_the_reference_bit_for_bit(level: str) -> None:
    active = ops.active_isa()
    assert active is not None
    x, *parameters = binary_inputs((37,), 60, 50)(torch.float32)
    _, *categorical = categorical_inputs((37,), 20, 50, 5)(torch.float32)
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(37, 60, generator=generator)
    given = torch.rand(37, 60, generator=generator) < 0.3
    try:
        ops.use_isa(level)
        assert torch.equal(
            F.nade_sample(*parameters, 37, noise=noise, conditioned_on=(x, given)),
            reference.nade_sample(*parameters, noise, x, given),
        )
        assert torch.equal(
            F.nade_categorical_sample(*categorical, 37, noise=noise[:, :20]),
            reference.nade_categorical_sample(*categorical, noise[:, :20]),
        )
    finally:
        ops.use_isa(active)


def test_a_sample_does_not_depend_on_the_others_of_its_batch() -> None:
    _, *parameters = binary_inputs((1,), 60, 50)(torch.float32)
    noise = torch.rand(37, 60)
    together = F.nade_sample(*parameters, 37, noise=noise)
    alone = [F.nade_sample(*parameters, 1, noise=row[None]) for row in noise]
    assert torch.equal(together, torch.cat(alone))


def test_binary_samples_have_the_probabilities_of_the_density() -> None:
    _, *parameters = binary_inputs((1,), 5, 7)(torch.float64)
    cells = every_vector(5, 2)
    log_prob = F.nade_log_prob(cells, *parameters)
    place = 2 ** torch.arange(4, -1, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = F.nade_sample(*parameters, 40000, generator=generator)
    assert abs(chi_square((drawn.long() * place).sum(-1), log_prob)) < 4
    # Given dimensions before those drawn: the conditional of the density.
    given = torch.tensor([True, True, False, False, False])
    values = torch.tensor([1.0, 0.0, 9.0, 9.0, 9.0], dtype=torch.float64)
    drawn = F.nade_sample(
        *parameters, 20000, generator=generator, conditioned_on=(values, given)
    ).long()
    assert (drawn[:, :2] == torch.tensor([1, 0])).all()
    matching = (cells[:, 0] == 1) & (cells[:, 1] == 0)
    conditional = log_prob[matching] - log_prob[matching].logsumexp(0)
    assert abs(chi_square((drawn * place)[:, 2:].sum(-1), conditional)) < 4


def test_categorical_samples_have_the_probabilities_of_the_density() -> None:
    _, *parameters = categorical_inputs((1,), 3, 7, 3)(torch.float32)
    log_prob = F.nade_categorical_log_prob(every_vector(3, 3), *parameters).double()
    drawn = F.nade_categorical_sample(
        *parameters, 40000, generator=torch.Generator().manual_seed(0)
    )
    assert drawn.dtype == torch.int64
    index = (drawn * torch.tensor([9, 3, 1])).sum(-1)
    assert abs(chi_square(index, log_prob)) < 4


@pytest.mark.parametrize("mixture", ["gaussian", "logistic"])
@pytest.mark.parametrize("uniform", [False, True])
def test_mixture_samples_have_the_distribution_of_the_density(mixture: str, uniform: bool) -> None:
    parameters = list(mixture_parameters(3, 7, 3))
    if uniform:
        parameters[2:4] = [None, None]
    count = 20000
    drawn = F.rnade_sample(
        *parameters,
        count,
        mixture=mixture,
        uniform_weights=uniform,
        generator=torch.Generator().manual_seed(0),
    )
    logits, means, log_scales = reference.nade.rnade_parameters(drawn, *parameters)
    weights = torch.softmax(torch.zeros_like(means) if logits is None else logits, -1)
    standard = (drawn.unsqueeze(-1) - means) / log_scales.exp()
    cdf = torch.special.ndtr if mixture == "gaussian" else torch.sigmoid
    # The CDF of each conditional at its sample is uniform (Kolmogorov-Smirnov).
    uniform_values = (weights * cdf(standard)).sum(-1).sort(0).values
    steps = torch.arange(1, count + 1, dtype=torch.float64).unsqueeze(-1) / count
    assert (uniform_values - steps).abs().max() < 2.0 / math.sqrt(count)


def test_given_entries_never_change() -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.rand(9, 12, generator=generator) < 0.5
    binary = torch.randint(0, 2, (9, 12), generator=generator)
    # What is not given may be anything.
    hidden = torch.where(given, binary, -7)
    _, *parameters = binary_inputs((1,), 12, 6)(torch.float32)
    drawn = F.nade_sample(*parameters, 9, conditioned_on=(hidden, given))
    assert torch.equal(drawn[given], binary[given].float())
    assert ((drawn == 0) | (drawn == 1)).all()
    _, *categorical = categorical_inputs((1,), 12, 6, 3)(torch.float32)
    drawn = F.nade_categorical_sample(*categorical, 9, conditioned_on=(hidden, given))
    assert torch.equal(drawn[given], binary[given])
    assert ((drawn >= 0) & (drawn < 3)).all()
    real = torch.randn(9, 12, generator=generator)
    drawn = F.rnade_sample(
        *mixture_parameters(12, 6, 2, torch.float32), 9, conditioned_on=(real, given)
    )
    assert torch.equal(drawn[given], real[given])
    assert (drawn[~given] != real[~given]).all()


def test_samplers_under_vmap() -> None:
    _, *parameters = binary_inputs((1,), 6, 5)(torch.float32)
    noise = torch.rand(3, 4, 6)
    batched = torch.func.vmap(lambda u: F.nade_sample(*parameters, 4, noise=u))(noise)
    assert torch.equal(
        batched, torch.stack([F.nade_sample(*parameters, 4, noise=u) for u in noise])
    )


# Blocks of 16 dimensions take products of exponentials where |a| + sum |W| allows it: all, none, or some of
# the blocks and units here.
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "moderate": lambda w: 3.0 * w,
    "near-the-limit": lambda w: 12.0 * w,
    "large": lambda w: 60.0 * w,
    "huge": lambda w: 1e4 * w,
    "some-units": lambda w: w * torch.linspace(-2, 4, w.shape[0], dtype=w.dtype).exp2()[:, None],
    "some-dimensions": lambda w: w * torch.where(torch.arange(w.shape[1]) % 40 == 7, 1e3, 0.1),
    "alternating": lambda w: 300.0 * torch.where(torch.arange(w.shape[1]) % 2 == 0, 1.0, -1.0) + w,
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in WEIGHTS
        for dtype in DTYPES
        # In float64 the reference, too, rounds at the size of the largest sum: it is no measure there.
        if dtype != torch.float64 or name not in ("huge", "alternating")
    ],
    ids=str,
)
def test_weights_of_any_size(name: str, dtype: torch.dtype) -> None:
    x, W, *rest = binary_inputs((6,), 100, 24)(torch.float64)
    W = WEIGHTS[name](W)
    inputs = [x.to(dtype), *(t.to(dtype) for t in (W, *rest))]
    check_reference(BINARY, dtype, inputs)
    # A row that is not binary takes another path than its neighbours.
    inputs[0][2, 5] = 0.5
    check_reference(BINARY, dtype, inputs)


@needs_extension
@pytest.mark.parametrize("level", ops.runnable_isas())
def test_weights_of_any_size_at_every_level(level: str) -> None:
    active = ops.active_isa()
    assert active is not None
    x, W, *rest = binary_inputs((6,), 100, 24)(torch.float32)
    try:
        ops.use_isa(level)
        for change in WEIGHTS.values():
            check_reference(BINARY, torch.float32, [x, change(W.double()).float(), *rest])
    finally:
        ops.use_isa(active)


@pytest.mark.parametrize("bias", [1e4, -1e4, INF, -INF])
def test_hidden_units_that_are_always_on_or_off(bias: float) -> None:
    x, W, c, V, b = binary_inputs((4,), 40, 9)(torch.float32)
    c[3] = bias
    constant = V[:, 3] if bias > 0 else torch.zeros(40)
    rest = [i for i in range(9) if i != 3]
    want = F.nade_log_prob(x, W[rest], c[rest], V[:, rest], b + constant)
    out, grads = values_and_gradients(F.nade_log_prob, (x, W, c, V, b), (1, 2, 3, 4))
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
    assert all(g.isfinite().all() for g in grads)
    assert (grads[0][3] == 0).all() and grads[1][3] == 0
    noise = torch.rand(4, 40)
    assert torch.equal(
        F.nade_sample(W, c, V, b, 4, noise=noise),
        F.nade_sample(W[rest], c[rest], V[:, rest], b + constant, 4, noise=noise),
    )


def test_logits_of_any_size() -> None:
    x, W, c, V, b = binary_inputs((4,), 20, 9)(torch.float32)
    b[::2], b[1::2] = 1e4, -1e4
    out, grads = values_and_gradients(F.nade_log_prob, (x, W, c, V, b), (1, 2, 3, 4))
    torch.testing.assert_close(out, reference.nade_log_prob(x, W, c, V, b))
    assert out.isfinite().all() and all(g.isfinite().all() for g in grads)
    classes, W, c, V, b = categorical_inputs((4,), 20, 9, 3)(torch.float32)
    b[:, 0], b[:, 1] = 1e4, -INF
    classes[0] = 2 * (classes[0] % 2)
    classes[1:] = 1
    out, grads = values_and_gradients(F.nade_categorical_log_prob, (classes, W, c, V, b), (4,))
    assert out[0].isfinite() and (out[1:] == -INF).all()
    sampled = F.nade_categorical_sample(W, c, V, b, 50)
    assert (sampled == 0).all()


@pytest.mark.parametrize("mixture", ["gaussian", "logistic"])
def test_absent_components(mixture: str) -> None:
    x, *parameters = mixture_inputs((4,), 6, 5, 3)(torch.float32)
    W, c, V_logits, b_logits, *rest = parameters
    b_logits[:, 1] = -INF
    V_kept = [t[:, [0, 2]] for t in (V_logits, b_logits, *rest)]
    out, grads = values_and_gradients(
        lambda *args: F.rnade_log_prob(*args, mixture=mixture), (x, *parameters), range(9)
    )
    torch.testing.assert_close(out, F.rnade_log_prob(x, W, c, *V_kept, mixture=mixture))
    assert all(g.isfinite().all() for g in grads)
    assert (grads[5][:, 1] == 0).all()
    drawn = F.rnade_sample(*parameters, 100, mixture=mixture)
    assert drawn.isfinite().all()
    # No component at all in one dimension: density zero, and no gradient from it.
    b_logits[2] = -INF
    out, grads = values_and_gradients(
        lambda *args: F.rnade_log_prob(*args, mixture=mixture), (x, *parameters), range(9)
    )
    assert (out == -INF).all()
    assert all(g.isfinite().all() for g in grads)
    assert (grads[5][2] == 0).all() and (grads[5][3] != 0).any()
    # Weights of +inf share the whole.
    b_logits[:] = torch.tensor([INF, -1.0, INF])
    equal = [None, None, *(t[:, [0, 2]] for t in rest)]
    torch.testing.assert_close(
        F.rnade_log_prob(x, *parameters, mixture=mixture),
        F.rnade_log_prob(x, W, c, *equal, mixture=mixture, uniform_weights=True),
    )


@pytest.mark.parametrize("mixture", ["gaussian", "logistic"])
def test_scales_and_distances_of_any_size(mixture: str) -> None:
    x, *parameters = mixture_inputs((64,), 20, 9, 3)(torch.float32)
    case = OpCase(
        "rnade",
        "rnade_log_prob",
        lambda *args: F.rnade_log_prob(*args, mixture=mixture),
        lambda *args: reference.rnade_log_prob(*args, mixture=mixture),
        lambda _: (),
        tuple(range(9)),
    )
    for shift in (-20.0, 20.0):
        changed = [x, *parameters]
        changed[8] = parameters[7] + shift
        check_reference(case, torch.float32, changed)
    far = x.clone()
    far[1, 2] = 1e25
    out, grads = values_and_gradients(case.function, (far, *parameters), range(9))
    assert not out.isnan().any() and not any(g.isnan().any() for g in grads)
    # Scales beneath the range of the dtype.
    narrow = [*parameters[:-1], torch.full_like(parameters[-1], -80.0)]
    out, grads = values_and_gradients(case.function, (x, *narrow), range(9))
    assert not out.isnan().any() and not any(g.isnan().any() for g in grads)


def test_one_component_is_a_plain_density() -> None:
    x, *parameters = mixture_inputs((5,), 4, 6, 1)(torch.float64)
    W, c, _, _, *heads = parameters
    _, means, log_scales = reference.nade.rnade_parameters(x, *parameters)
    want = torch.distributions.Normal(means[..., 0], log_scales[..., 0].exp()).log_prob(x).sum(-1)
    torch.testing.assert_close(F.rnade_log_prob(x, *parameters), want)
    torch.testing.assert_close(
        F.rnade_log_prob(x, W, c, None, None, *heads, uniform_weights=True), want
    )


def test_binary_is_the_two_class_case() -> None:
    x, W, c, V, b = binary_inputs((5,), 7, 6)(torch.float64)
    zero = torch.zeros_like
    two = (
        torch.stack([zero(W), W], 2),
        c,
        torch.stack([zero(V), V], 1),
        torch.stack([zero(b), b], 1),
    )
    torch.testing.assert_close(F.nade_categorical_log_prob(x, *two), F.nade_log_prob(x, W, c, V, b))


def test_empty_batch() -> None:
    noise = torch.zeros(0, 5)
    for function, inputs, grads in (
        (F.nade_log_prob, binary_inputs((0,), 5, 4)(torch.float32), range(1, 5)),
        (
            F.nade_categorical_log_prob,
            categorical_inputs((0,), 5, 4, 3)(torch.float32),
            range(1, 5),
        ),
        (F.rnade_log_prob, mixture_inputs((0,), 5, 4, 2)(torch.float32), range(9)),
    ):
        out, gradients = values_and_gradients(function, inputs, grads)
        assert out.shape == (0,)
        for i, g in zip(grads, gradients, strict=True):
            assert torch.equal(g, torch.zeros_like(inputs[i]))
    _, *parameters = binary_inputs((1,), 5, 4)(torch.float32)
    assert F.nade_sample(*parameters, 0, noise=noise).shape == (0, 5)


@needs_extension
def test_little_is_kept_for_backward_and_nothing_has_the_size_of_all_units() -> None:
    batch, size, hidden = 64, 784, 500
    x, *parameters = binary_inputs((batch,), size, hidden)(torch.float32)
    leaves = [t.requires_grad_() for t in parameters]
    inputs = {t.untyped_storage().data_ptr() for t in (x, *parameters)}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = F.nade_log_prob(x, *leaves)
    assert sum(n for p, n in kept.items() if p not in inputs) <= 4 * 2**20

    def step() -> None:
        torch.autograd.grad(F.nade_log_prob(x, *leaves), leaves, torch.ones_like(out))

    gradients = sum(t.nbytes for t in leaves)
    assert memory.peak_of(step, torch.device("cpu")) < gradients + 0.05 * 4 * batch * size * hidden


def test_dtypes_of_results() -> None:
    x, *parameters = binary_inputs((3,), 5, 4)(torch.float32)
    mixed = [parameters[0].bfloat16(), *parameters[1:]]
    assert F.nade_log_prob(x, *mixed).dtype == torch.float32
    assert F.nade_log_prob(x.double(), *parameters).dtype == torch.float32
    assert F.nade_log_prob(x, *mixed[:3], mixed[3].double()).dtype == torch.float64
    real, *heads = mixture_inputs((3,), 5, 4, 2)(torch.float32)
    assert F.rnade_log_prob(real.double(), *heads).dtype == torch.float64
    assert F.nade_sample(*parameters, 2).dtype == torch.float32
    assert F.nade_sample(*[t.double() for t in parameters], 2).dtype == torch.float64
    assert F.nade_sample(*[t.bfloat16() for t in parameters], 2).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.nade_log_prob(x, *parameters).dtype == torch.float32


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_values_raise(backend: str) -> None:
    x, *parameters = binary_inputs((4,), 5, 4)(torch.float32)
    classes, *categorical = categorical_inputs((4,), 5, 4, 3)(torch.float32)
    given = torch.ones(4, 5, dtype=torch.bool)
    with dgm_fast.backend(backend):
        for bad in (1.5, -0.25, math.nan):
            x[2, 3] = bad
            with pytest.raises(ValueError, match=r"x must hold values in \[0, 1\]"):
                F.nade_log_prob(x, *parameters)
            with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
                F.nade_sample(*parameters, 4, conditioned_on=(x, given))
        with pytest.raises(ValueError, match=r"x must hold values in \[0, 1\]"):
            F.nade_log_prob(torch.full((4, 5), 2, dtype=torch.uint8), *parameters)
        for index in (-1, 3, 2**40):
            classes[1, 0] = index
            with pytest.raises(ValueError, match="x must hold class indices between 0 and 2"):
                F.nade_categorical_log_prob(classes, *categorical)
            with pytest.raises(ValueError, match="class indices between 0 and 2"):
                F.nade_categorical_sample(*categorical, 4, conditioned_on=(classes, given))


def test_bad_values_are_nan_where_a_check_would_synchronise() -> None:
    x, *parameters = binary_inputs((2,), 5, 4)(torch.float32)
    x[1, 3] = 2.0
    marked = torch.func.vmap(lambda row: F.nade_log_prob(row, *parameters))(x)
    assert marked.isnan().tolist() == [False, True]
    classes, *categorical = categorical_inputs((2,), 5, 4, 3)(torch.float32)
    classes[0, 1] = 7
    marked = torch.func.vmap(lambda row: F.nade_categorical_log_prob(row, *categorical))(classes)
    assert marked.isnan().tolist() == [True, False]


D, H, C, M = 5, 4, 3, 2
X = torch.zeros(2, D)
NADE = [torch.zeros(s) for s in ((H, D), (H,), (D, H), (D,))]
CATEGORICAL = [torch.zeros(s) for s in ((H, D, C), (H,), (D, C, H), (D, C))]
RNADE = [torch.zeros(s) for s in ((H, D), (H,), *(((D, M, H), (D, M)) * 3))]


def replaced(tensors: list[Tensor], index: int, value) -> list:
    return [value if i == index else t for i, t in enumerate(tensors)]


def bad(error: type[Exception], match: str, function, *args, **options):
    return pytest.param(
        error, match, function, args, options, id=f"{function.__name__}-{match[:28]}"
    )


@pytest.mark.parametrize(
    ("error", "match", "function", "args", "options"),
    [
        bad(TypeError, "x must be a torch.Tensor", F.nade_log_prob, None, *NADE),
        bad(
            TypeError,
            "V must be floating point",
            F.nade_log_prob,
            X,
            *replaced(NADE, 2, torch.zeros(D, H, dtype=torch.int64)),
        ),
        bad(ValueError, r"x must have shape \[..., 5\]", F.nade_log_prob, X[:, :3], *NADE),
        bad(ValueError, "x must not require|must not require grad", F.nade_log_prob,
            X.clone().requires_grad_(), *NADE),
        bad(ValueError, r"W must have shape \[H, D\]", F.nade_log_prob, X,
            *replaced(NADE, 0, torch.zeros(0, D))),
        bad(ValueError, r"c must have shape \(4,\)", F.nade_log_prob, X,
            *replaced(NADE, 1, torch.zeros(5))),
        bad(ValueError, r"V must have shape \(5, 4\)", F.nade_log_prob, X,
            *replaced(NADE, 2, torch.zeros(H, D))),
        bad(ValueError, r"b must have shape \(5,\)", F.nade_log_prob, X,
            *replaced(NADE, 3, torch.zeros(()))),
        bad(ValueError, "x is on meta", F.nade_log_prob, X.to("meta"), *NADE),
        bad(ValueError, r"W must have shape \[H, D, C\]", F.nade_categorical_log_prob, X,
            *replaced(CATEGORICAL, 0, torch.zeros(H, D))),
        bad(ValueError, r"V must have shape \(5, 3, 4\)", F.nade_categorical_log_prob, X,
            *replaced(CATEGORICAL, 2, torch.zeros(D, H, C))),
        bad(ValueError, "must not require grad", F.nade_categorical_log_prob,
            X.clone().requires_grad_(), *CATEGORICAL),
        bad(ValueError, "mixture must be one of", F.rnade_log_prob, X, *RNADE, mixture="cauchy"),
        bad(ValueError, "uniform_weights=True", F.rnade_log_prob, X, *RNADE, uniform_weights=True),
        bad(ValueError, "uniform_weights=False", F.rnade_log_prob, X,
            *replaced(RNADE, 2, None)),
        bad(TypeError, "V_means must be a torch.Tensor", F.rnade_log_prob, X,
            *replaced(RNADE, 4, None)),
        bad(ValueError, r"V_log_scales must have shape \(5, 2, 4\)", F.rnade_log_prob, X,
            *replaced(RNADE, 6, torch.zeros(D, 3, H))),
        bad(ValueError, r"b_logits must have shape \(5, 2\)", F.rnade_log_prob, X,
            *replaced(RNADE, 3, torch.zeros(D))),
        bad(ValueError, r"activation_scale must have shape \(5,\)", F.rnade_log_prob, X, *RNADE,
            activation_scale=torch.ones(1)),
        bad(TypeError, "num_samples must be an int", F.nade_sample, *NADE, 2.0),
        bad(ValueError, "num_samples must not be negative", F.nade_sample, *NADE, -1),
        bad(ValueError, r"noise must have shape \(2, 5\)", F.nade_sample, *NADE, 2,
            noise=torch.zeros(3, D)),
        bad(ValueError, r"noise must have shape \(2, 5, 2\)", F.rnade_sample, *RNADE, 2,
            noise=torch.zeros(2, D)),
        bad(TypeError, "conditioned_on must be a pair", F.nade_sample, *NADE, 2,
            conditioned_on=X),
        bad(TypeError, "given must be bool", F.nade_sample, *NADE, 2, conditioned_on=(X, X)),
        bad(ValueError, r"values must have shape \(2, 5\) or \(5,\)", F.nade_sample, *NADE, 2,
            conditioned_on=(X[:1], X.bool())),
    ],
)  # fmt: skip
def test_bad_arguments(error, match, function, args, options) -> None:
    with pytest.raises(error, match=match):
        function(*args, **options)


def test_cases_reach_both_paths_of_binary_rows() -> None:
    # The contract's cases hold rows that are binary and rows that are not.
    soft = [c for c in cases_nade.CASES + cases_nade.LARGE if "soft" in c.id]
    assert len(soft) == 2
