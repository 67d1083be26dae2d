"""The benchmark registry: complete, honest inputs, selection, registration by users."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dgm_fast import ops, perf, reference
from dgm_fast.perf.problem import as_tuple, make_problem
from dgm_fast.perf.registry import (
    BUILTIN_MODULES,
    SIZES,
    Case,
    Registry,
    builtin_registry,
    compile_expression,
    distinct_bytes,
)

CASES = builtin_registry().all()
BY_NAME = {case.name: case for case in CASES}
# A few megabytes at most: what a test can afford to build.
LIGHT = [case for case in CASES if case.size in ("small", "odd")]


def test_built_in_cases_are_told_from_those_of_users() -> None:
    assert {case.build.__module__ for case in CASES} <= set(BUILTIN_MODULES)


@pytest.mark.parametrize("op", sorted(ops.SPECS))
def test_every_op_has_every_size(op: str) -> None:
    missing = set(SIZES) - {case.size for case in CASES if case.op == op}
    assert not missing, f"{op} has no benchmark case of size {sorted(missing)}"


@pytest.mark.parametrize("op", sorted(ops.SPECS))
def test_every_op_is_measured_in_reduced_precision(op: str) -> None:
    dtypes = {case.dtype for case in CASES if case.op == op}
    assert {torch.float32, torch.bfloat16} <= dtypes, (
        f"{op} is measured in {sorted(map(str, dtypes))} only: add bfloat16 at one size (dtypes=...)"
    )


@pytest.mark.parametrize("op", sorted(ops.SPECS))
def test_every_differentiable_op_is_measured_backwards(op: str) -> None:
    # Backward and both are measured where a case names gradients; a sampler names none.
    if ops.missing():
        pytest.skip("the extension, which knows the differentiable arguments, is not built")
    expected = bool(ops.differentiable_arguments(op))
    wrong = [case.name for case in CASES if case.op == op and bool(case.grads) != expected]
    assert not wrong, f"{op} is {'' if expected else 'not '}differentiable; grads of {wrong}"


def test_bound_has_cases_for_every_likelihood_and_reduced_precision() -> None:
    bounds = [case for case in CASES if case.op == "iwae_bound"]
    for likelihood in ops.LIKELIHOODS:
        assert any(case.variant == likelihood for case in bounds)
    headline = {
        c.dtype for c in bounds if c.shape == (128, 50, 784, 50) and c.variant == "bernoulli"
    }
    assert headline == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("case", LIGHT, ids=lambda case: case.name)
def test_rivals_compute_the_same(case: Case) -> None:
    inputs = {
        k: v.detach().double() if v.dtype.is_floating_point else v for k, v in case.inputs().items()
    }
    ours, eager = case.ours(**inputs), case.eager(**inputs)
    torch.testing.assert_close(ours, eager, rtol=1e-10, atol=1e-10)
    for name, peer in case.peers.items():
        for value, want in zip(as_tuple(peer(**inputs)), as_tuple(eager), strict=True):
            torch.testing.assert_close(
                value.double(), want, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("case", LIGHT, ids=lambda case: case.name)
def test_gradients_are_asked_for_where_named(case: Case) -> None:
    problem = make_problem(case, torch.device("cpu"))
    assert {n for n, t in problem.inputs.items() if t.requires_grad} == set(case.grads)
    # A broadcast gradient would let kernels read one number instead of many.
    assert all(s != 0 for grad in problem.grad_out for s in grad.stride())
    if case.grads:
        # A loss has one gradient, of one sign.
        several = [grad for grad in problem.grad_out if grad.numel() > 1]
        assert all((grad > 0).any() and (grad < 0).any() for grad in several)
    modes = ("forward", "backward", "both") if case.grads else ("forward",)
    assert all(count > 0 for mode in modes for count in problem.cost.of(mode))


def test_inputs_repeat_for_a_seed_and_differ_between_seeds() -> None:
    case = BY_NAME["elbo/small/float32"]
    first, again, other = case.inputs(seed=3), case.inputs(seed=3), case.inputs(seed=4)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["logits"], other["logits"])


def log_weights(case: Case) -> Tensor:
    inputs = case.inputs()
    values = {k: v.detach().double() if v.dtype.is_floating_point else v for k, v in inputs.items()}
    out: Tensor | tuple[Tensor, Tensor]
    out = values["logits"] if "logits" in values else values["out_mean"]
    if "out_log_var" in values:
        out = (values["out_mean"], values["out_log_var"])
    return reference.iwae_log_weights(
        values["x"],
        out,
        values["z"],
        values["mean"],
        values["log_var"],
        likelihood=case.variant.partition("_")[0],
    )


@pytest.mark.parametrize(
    "name",
    [
        "iwae_bound.bernoulli/medium/float32",
        "iwae_bound.bernoulli/large/bfloat16",
        "iwae_bound.gaussian_unit/large/float32",
        "iwae_bound.gaussian/large/float32",
        "iwae_bound.categorical/medium/float32",
    ],
)
def test_importance_weights_are_like_a_trained_models(name: str) -> None:
    # One dominant weight and denormal others would slow the rivals down and flatter us.
    log_w = log_weights(BY_NAME[name])
    weights = log_w.softmax(1)
    effective = 1 / weights.square().sum(1)
    assert 12 <= effective.median() <= 35
    assert 0.8 <= log_w.std(1).mean() <= 2.0
    assert weights.min() > torch.finfo(torch.float32).tiny


def test_byte_count_is_each_input_once_and_each_output_once() -> None:
    case = BY_NAME["bernoulli_log_prob/medium/float32"]
    problem = make_problem(case, torch.device("cpu"))
    matrix, vector = 128 * 784 * 4, 128 * 4
    assert problem.cost.of("forward")[0] == 2 * matrix + vector
    assert problem.cost.of("backward")[0] == vector + 2 * matrix + matrix
    assert problem.cost.of("both")[0] == 5 * matrix + 2 * vector


def test_backward_reads_only_what_it_needs() -> None:
    case = BY_NAME["reparameterize/small/float32"]
    problem = make_problem(case, torch.device("cpu"))
    samples, row = 8 * 5 * 16 * 4, 8 * 16 * 4
    # grad_out and eps [B, K, L], log_var; writes the gradients of mean and log_var.
    assert problem.cost.of("backward")[0] == 2 * samples + row + 2 * row


def test_broadcast_input_is_counted_once() -> None:
    assert distinct_bytes(torch.zeros(3).expand(100, 3)) == 12
    assert distinct_bytes(torch.zeros(0, 3)) == 0


def build(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> dict:
    return {"x": torch.randn(shape, generator=generator).to(dtype)}


def test_users_register_their_own_op() -> None:
    registry = Registry()
    decorated = perf.case(
        "my_square",
        ours=lambda x: x * x,
        eager=lambda x: x.square(),
        sizes={"small": (4, 3), "large": (64, 32)},
        dtypes={"large": (torch.float32, torch.bfloat16)},
        grads=["x"],
        second_order=["small"],
        heavy=["large"],
        registry=registry,
    )(build)
    assert decorated is build
    assert [case.name for case in registry.all()] == [
        "my_square/small/float32",
        "my_square/large/float32",
        "my_square/large/bfloat16",
    ]
    assert [c.size for c in registry.select("my_square", quick=True)] == ["small"]
    assert registry.all()[0].second_order and not registry.all()[1].second_order
    assert registry.all()[2].inputs()["x"].dtype == torch.bfloat16


def test_registration_refuses_duplicates_and_empty_arguments() -> None:
    registry = Registry()
    arguments = {"ours": torch.square, "eager": torch.square, "registry": registry}
    perf.case("a", sizes={"small": (2,)}, grads=["x"], **arguments)(build)
    with pytest.raises(ValueError, match="already registered"):
        perf.case("a", sizes={"small": (2,)}, grads=["x"], **arguments)(build)
    with pytest.raises(ValueError, match="at least one size"):
        perf.case("b", sizes={}, grads=["x"], **arguments)
    perf.case("c", sizes={"small": (2,)}, grads=["y"], **arguments)(build)
    with pytest.raises(ValueError, match=r"grads names \['y'\], but inputs are \['x'\]"):
        registry.select("c/")[0].inputs()


@pytest.mark.parametrize(
    ("expression", "matching"),
    [
        ("", ["elbo/small", "elbo/large", "kl/small"]),
        ("elbo", ["elbo/small", "elbo/large"]),
        ("elbo and not large", ["elbo/small"]),
        ("not (large or kl)", ["elbo/small"]),
        ("large or kl", ["elbo/large", "kl/small"]),
        ("kl or elbo and large", ["elbo/large", "kl/small"]),
    ],
)
def test_selection(expression: str, matching: list[str]) -> None:
    matches = compile_expression(expression)
    assert [n for n in ("elbo/small", "elbo/large", "kl/small") if matches(n)] == matching


@pytest.mark.parametrize("expression", ["and", "elbo and", "(elbo", "elbo)", "elbo kl", "not"])
def test_malformed_selection(expression: str) -> None:
    with pytest.raises(ValueError, match="selection"):
        compile_expression(expression)


def test_selecting_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no benchmark case matches 'no_such_op'"):
        builtin_registry().select("no_such_op")
