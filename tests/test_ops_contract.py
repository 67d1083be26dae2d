"""What DESIGN asks of every op, over every case of every family."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    cases_adversarial,
    cases_autoregressive,
    cases_coupling,
    cases_latent,
    cases_likelihood,
    cases_linear_head,
    cases_masked,
    cases_mixture,
    cases_nade,
    cases_pixel,
    cases_pixel_sampling,
    cases_spline,
)
from helpers.op_checks import (
    DTYPES,
    OpCase,
    check_compiled,
    check_derivatives,
    check_deterministic,
    check_layouts,
    check_reference,
    check_registration,
    check_transforms,
)

from dgm_fast import ops

FAMILIES = (
    cases_likelihood,
    cases_coupling,
    cases_latent,
    cases_mixture,
    cases_linear_head,
    cases_nade,
    cases_pixel,
    cases_masked,
    cases_adversarial,
    cases_spline,
    cases_autoregressive,
    cases_pixel_sampling,
)
CASES = [case for family in FAMILIES for case in family.CASES]
LARGE = [case for family in FAMILIES for case in family.LARGE]
# One case an op for what is slow to compile.
FIRST = list({case.op: case for case in reversed(CASES)}.values())
# Samplers have no derivatives.
DIFFERENTIABLE = [case for case in CASES if case.grads]
WITH_BACKWARD = sorted(ops.SPECS)
if ops.active_isa() is not None:
    WITH_BACKWARD = [name for name in WITH_BACKWARD if ops.differentiable_arguments(name)]

needs_extension = pytest.mark.skipif(
    ops.active_isa() is None, reason="the C++ extension is not built"
)
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def test_every_op_has_cases() -> None:
    assert {case.op for case in CASES} == set(ops.SPECS)
    assert {case.op for case in LARGE} == set(ops.SPECS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_case
def test_reference(case: OpCase, dtype: torch.dtype) -> None:
    check_reference(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_reference_large(case: OpCase, dtype: torch.dtype) -> None:
    check_reference(case, dtype)


# The ops with kernels on the matrix units; the others' are those of "avx512".
ON_MATRIX_UNITS = {
    "diagonal_lstm",
    "linear_bernoulli_log_prob",
    "linear_categorical_log_prob",
    "masked_conv2d",
    "row_lstm",
    "shifted_conv2d",
}


@needs_extension
@pytest.mark.parametrize(
    ("case", "level"),
    [
        pytest.param(case, level, id=f"{case}-{level}")
        for case in CASES + LARGE
        for level in ops.runnable_isas()
        if level != "amx" or case.op in ON_MATRIX_UNITS
    ],
)
def test_every_isa_level(case: OpCase, level: str) -> None:
    active = ops.active_isa()
    assert active is not None
    try:
        ops.use_isa(level)
        check_reference(case, torch.float32)
        check_reference(case, torch.bfloat16)
    finally:
        ops.use_isa(active)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_derivatives(case: OpCase) -> None:
    check_derivatives(case)


@each_case
def test_layouts(case: OpCase) -> None:
    check_layouts(case)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_transforms(case: OpCase) -> None:
    check_transforms(case)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_deterministic(case: OpCase) -> None:
    check_deterministic(case)


@each_case
def test_compiles_in_one_graph(case: OpCase) -> None:
    check_compiled(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in FIRST if c.op != "reparameterize"], ids=str)
def test_compiles_with_inductor(case: OpCase) -> None:
    check_compiled(case, backend="inductor")


@needs_extension
@pytest.mark.parametrize("name", sorted(ops.SPECS))
def test_registration(name: str) -> None:
    args = ops.SPECS[name].example(torch.device("cpu"), torch.float32)
    check_registration(name, args, ops.differentiable_arguments(name))


@needs_extension
@pytest.mark.parametrize("name", WITH_BACKWARD)
def test_raw_backward_is_differentiable(name: str) -> None:
    # A backward op without autograd of its own would give None here, with only a warning.
    args = list(ops.SPECS[name].example(torch.device("cpu"), torch.float64))
    differentiable = ops.differentiable_arguments(name)
    first = differentiable[0]
    args[first] = args[first].detach().requires_grad_()
    outputs = getattr(torch.ops.dgm_fast, name).default(*args)
    out = outputs[0] if isinstance(outputs, tuple) else outputs
    upstream = torch.ones_like(out).requires_grad_()
    (gradient,) = torch.autograd.grad(out, args[first], upstream, create_graph=True)
    second = torch.autograd.grad(gradient.sum(), upstream)[0]
    assert second is not None
    assert second.shape == upstream.shape
