"""Every case of every op on a CUDA device: the Triton kernels as users reach them."""

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
    check_layouts,
    check_reference,
    check_transforms,
    values_and_gradients,
)

import dgm_fast
from dgm_fast import functional as F
from dgm_fast import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

FAMILIES = (
    cases_likelihood,
    cases_coupling,
    cases_adversarial,
    cases_latent,
    cases_mixture,
    cases_linear_head,
    cases_nade,
    cases_pixel,
    cases_masked,
    cases_spline,
    cases_autoregressive,
    cases_pixel_sampling,
)
CASES = [case.on("cuda") for family in FAMILIES for case in family.CASES]
LARGE = [case.on("cuda") for family in FAMILIES for case in family.LARGE]
FIRST = list({case.op: case for case in reversed(CASES)}.values())
# Samplers have no derivatives.
DIFFERENTIABLE = [case for case in FIRST if case.grads]


def test_calls_reach_triton() -> None:
    assert ops.explain("cuda")[0] == "triton"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES + LARGE, ids=str)
def test_reference(case: OpCase, dtype: torch.dtype) -> None:
    check_reference(case, dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layouts(case: OpCase) -> None:
    check_layouts(case)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_derivatives(case: OpCase) -> None:
    check_derivatives(case)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_transforms(case: OpCase) -> None:
    check_transforms(case)


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_compiles_in_one_graph(case: OpCase) -> None:
    check_compiled(case)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_deterministic(case: OpCase) -> None:
    inputs = case.build(torch.float32)
    out, grads = values_and_gradients(case.function, inputs, case.grads)
    for _ in range(3):
        again, again_grads = values_and_gradients(case.function, inputs, case.grads)
        assert torch.equal(out, again)
        assert all(torch.equal(a, b) for a, b in zip(grads, again_grads, strict=True))


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_captured_in_a_cuda_graph(case: OpCase) -> None:
    inputs = case.build(torch.float32)
    leaves = list(inputs)
    for i in case.grads:
        leaves[i] = inputs[i].detach().requires_grad_()
    grad = torch.ones_like(case.function(*inputs))

    def step() -> tuple[torch.Tensor, ...]:
        out = case.function(*leaves)
        if not case.grads:
            return (out,)
        return out, *torch.autograd.grad(out, [leaves[i] for i in case.grads], grad)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = [t.clone() for t in step()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    for got, value in zip(captured, expected, strict=True):
        assert torch.equal(got, value)


def test_bad_values_are_nan_and_raise_on_request() -> None:
    logits = torch.zeros(3, 40, device="cuda")
    x = torch.zeros(3, 40, device="cuda")
    x[1, 7] = 2.0
    assert F.bernoulli_log_prob(logits, x).isnan().tolist() == [False, True, False]
    classes = torch.zeros(3, 5, 40, device="cuda")
    index = torch.zeros(3, 40, dtype=torch.int64, device="cuda")
    index[2, 3] = 5
    assert F.categorical_log_prob(classes, index).isnan().tolist() == [False, False, True]
    dgm_fast.check_values(True)
    try:
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            F.bernoulli_log_prob(logits, x)
        with pytest.raises(ValueError, match="class indices"):
            F.categorical_log_prob(classes, index)
    finally:
        dgm_fast.check_values(False)
