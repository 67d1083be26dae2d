"""Masked linear layers and the fully visible sigmoid belief network."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from helpers.cases_masked import degrees
from helpers.op_checks import assert_within_rule, relative_error
from torch import Tensor

from dgm_fast import functional as F
from dgm_fast import ops, reference
from dgm_fast.nn import MaskedLinear

needs_extension = pytest.mark.skipif(
    ops.active_isa() is None, reason="the C++ extension is not built"
)

STAIRCASES = {
    "made input": ([1, 2, 3, 4, 5], [1, 1, 2, 3, 4, 4]),
    "made output": ([1, 1, 2, 3, 4, 4], [1, 2, 3, 4, 5]),
    "negative": ([-3, 0, 0, 7], [-4, -3, 5, 9]),
    "nothing connected": ([5, 6, 7], [1, 2]),
    "all connected": ([0, 0, 0], [1, 2, 2]),
    "one": ([0], [0]),
}


def dense(weight: Tensor, in_degrees: Tensor, out_degrees: Tensor, strict: bool) -> Tensor:
    """The weight entry by entry under the definition of the mask."""
    masked = torch.zeros_like(weight)
    for o, i in itertools.product(*map(range, weight.shape)):
        hears = in_degrees[i] < out_degrees[o] if strict else in_degrees[i] <= out_degrees[o]
        if hears:
            masked[o, i] = weight[o, i]
    return masked


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", STAIRCASES)
def test_staircase_is_the_dense_mask(name: str, strict: bool) -> None:
    in_degrees, out_degrees = map(torch.tensor, STAIRCASES[name])
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, len(in_degrees), generator=generator)
    weight = torch.randn(len(out_degrees), len(in_degrees), generator=generator)
    bias = torch.randn(len(out_degrees), generator=generator)
    want = x @ dense(weight, in_degrees, out_degrees, strict).t() + bias
    out = F.masked_linear(x, weight, bias, in_degrees, out_degrees, strict=strict)
    torch.testing.assert_close(out, want)
    mask = reference.degree_mask(in_degrees, out_degrees, strict=strict)
    torch.testing.assert_close(F.masked_linear(x, weight, bias, mask=mask), want)


def test_module_is_a_masked_nn_linear() -> None:
    in_degrees, out_degrees = torch.tensor([2, 0, 1, 0]), torch.tensor([1, 0, 2])
    torch.manual_seed(3)
    plain = torch.nn.Linear(4, 3)
    torch.manual_seed(3)
    ours = MaskedLinear(4, 3, in_degrees, out_degrees)
    x = torch.randn(2, 5, 4)
    mask = reference.degree_mask(in_degrees, out_degrees)
    want = torch.nn.functional.linear(x, plain.weight * mask, plain.bias)
    torch.testing.assert_close(ours(x), want)
    state = ours.state_dict()
    assert torch.equal(state["weight"], plain.weight.detach())
    assert torch.equal(state["bias"], plain.bias.detach())
    assert ours.sorted_in_degrees.tolist() == [0, 0, 1, 2]
    assert torch.equal(ours.weight[0], plain.weight.detach()[1, ours.in_order])


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_carries_the_degrees(bias: bool) -> None:
    generator = torch.Generator().manual_seed(5)

    def layer() -> MaskedLinear:
        degrees = (torch.randint(0, 6, (size,), generator=generator) for size in (7, 9))
        return MaskedLinear(7, 9, *degrees, strict=True, bias=bias)

    first, second = layer(), layer()
    x = torch.randn(4, 7, generator=generator)
    assert not torch.allclose(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    assert torch.equal(first.in_degrees, second.in_degrees)
    assert torch.equal(copy.deepcopy(first)(x), first(x))
    assert set(first.state_dict()) == {"weight", "in_degrees", "out_degrees"} | (
        {"bias"} if bias else set()
    )


def layer_inputs(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x, weight, bias and degrees of random sizes; every other seed has degrees out of order."""
    generator = torch.Generator().manual_seed(seed)
    batch, inputs, outputs = torch.randint(1, 180, (3,), generator=generator).tolist()
    # Small products are formed as a whole, larger ones block by block.
    batch *= (1, 1, 12, 12)[seed % 4]
    kind = "shuffled" if seed % 2 else "sorted"
    of_inputs, of_outputs = degrees(kind, inputs, outputs, generator)
    shapes = ((batch, inputs), (outputs, inputs), (outputs,))
    tensors = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    # A few degrees, none of them, or a degree each.
    step = (1, 25, 1000)[seed % 3]
    return *tensors, of_inputs // step, of_outputs // step


def compare_with_dense(
    inputs: tuple[Tensor, ...], strict: bool, spoil: float | None = None
) -> None:
    """Value and gradients against the dense layer in float64; masked weights hold ``spoil``."""
    x, weight, bias, of_inputs, of_outputs = inputs
    mask = reference.degree_mask(of_inputs, of_outputs, strict=strict)
    held = weight if spoil is None else torch.where(mask, weight, spoil)
    ours = [t.clone().requires_grad_() for t in (x, held, bias)]
    out = F.masked_linear(*ours, of_inputs, of_outputs, strict=strict)
    grad = torch.linspace(-1.0, 1.0, out.numel()).reshape(out.shape).to(out.dtype)
    grads = torch.autograd.grad(out, ours, grad)

    def plain(dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in (x, weight, bias)]
        result = torch.nn.functional.linear(leaves[0], leaves[1] * mask, leaves[2])
        return [result.detach(), *torch.autograd.grad(result, leaves, grad.to(dtype))]

    for value, want, eager in zip((out, *grads), plain(torch.float64), plain(x.dtype), strict=True):
        assert_within_rule("masked_linear", value, want, relative_error(eager, want), factor=2)
    assert (grads[1][~mask] == 0).all()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_random_degrees(seed: int, strict: bool) -> None:
    compare_with_dense(layer_inputs(seed), strict)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 1e38])
def test_masked_weights_have_no_influence(bad: float, seed: int, dtype: torch.dtype) -> None:
    compare_with_dense(layer_inputs(seed, dtype), strict=True, spoil=bad)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_gradients_of_masked_weights_are_zero_for_any_data(bad: float) -> None:
    x, weight, bias, of_inputs, of_outputs = layer_inputs(4)
    mask = reference.degree_mask(of_inputs, of_outputs)
    weight = weight.requires_grad_()
    out = F.masked_linear(torch.full_like(x, bad), weight, bias, of_inputs, of_outputs)
    (grad,) = torch.autograd.grad(out.sum(), weight)
    assert (grad[~mask] == 0).all()
    assert not grad[mask].isfinite().any()


@needs_extension
def test_masked_weight_is_never_formed() -> None:
    x, degrees = torch.randn(4, 512), torch.arange(512)
    weight = torch.randn(512, 512, requires_grad=True)

    def largest(call) -> int:
        with torch.profiler.profile(profile_memory=True, record_shapes=True) as recorded:
            call()
        return max(event.cpu_memory_usage for event in recorded.events())

    with torch.no_grad():
        formed = largest(lambda: reference.masked_linear(x, weight, None, degrees, degrees))
        ours = largest(lambda: F.masked_linear(x, weight, None, degrees, degrees))
    assert formed >= weight.nbytes
    assert ours < weight.nbytes / 4


def test_autocast_casts_like_a_linear_layer() -> None:
    x, weight, bias, of_inputs, of_outputs = layer_inputs(2)
    mask = reference.degree_mask(of_inputs, of_outputs)
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = F.masked_linear(x, weight, bias, of_inputs, of_outputs)
        want = torch.nn.functional.linear(x, weight * mask, bias)
    assert out.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(out, want, rtol=2e-2, atol=2e-2 * want.abs().max().item())
    (grad,) = torch.autograd.grad(out.float().square().sum(), weight)
    assert grad.dtype == torch.float32
    assert (grad[~mask] == 0).all()


def test_module_compiles_in_one_graph() -> None:
    torch._dynamo.reset()
    layers = torch.nn.Sequential(
        MaskedLinear(5, 7, [3, 1, 2, 5, 4], [1, 4, 2, 3, 2, 1, 4]),
        torch.nn.ReLU(),
        MaskedLinear(7, 5, [1, 4, 2, 3, 2, 1, 4], [3, 1, 2, 5, 4], strict=True),
    )
    x = torch.randn(6, 5)
    compiled = torch.compile(layers, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layers(x))
    jacobian = torch.autograd.functional.jacobian(lambda t: layers(t).sum(0), x)  # [5, 6, 5]
    order = torch.tensor([3, 1, 2, 5, 4])
    assert (jacobian.abs().sum(1)[order[:, None] <= order] == 0).all()


def binary_vectors(size: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=size)))


def test_fvsbn_probabilities_sum_to_one() -> None:
    torch.manual_seed(0)
    log_prob = F.fvsbn_log_prob(binary_vectors(12), torch.randn(12, 12), torch.randn(12))
    assert log_prob.double().exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_fvsbn_is_a_layer_and_its_likelihood() -> None:
    torch.manual_seed(1)
    x = torch.rand(40, 100) < 0.3
    weight = torch.randn(100, 100)
    # What is not strictly lower has no influence.
    weight[torch.ones(100, 100, dtype=torch.bool).triu()] = math.nan
    weight.requires_grad_()
    bias = torch.randn(100)
    order = torch.arange(100)
    logits = F.masked_linear(x.float(), weight, bias, order, order, strict=True)
    want = F.bernoulli_log_prob(logits, x)
    out = F.fvsbn_log_prob(x, weight, bias)
    torch.testing.assert_close(out, want)
    ours, two = (torch.autograd.grad(t.sum(), weight)[0] for t in (out, want))
    torch.testing.assert_close(ours, two)
    assert (ours.triu() == 0).all()


def test_fvsbn_has_gradients_of_data() -> None:
    # x is scored, and feeds the logits of what follows.
    x = torch.tensor([[0.25, 0.5]], requires_grad=True)
    weight, bias = torch.tensor([[7.0, 7.0], [2.0, 7.0]]), torch.tensor([0.3, -0.4])
    (grad,) = torch.autograd.grad(F.fvsbn_log_prob(x, weight, bias).sum(), x)
    second = -0.4 + 2.0 * 0.25
    residual = 0.5 - 1 / (1 + math.exp(-second))
    torch.testing.assert_close(grad, torch.tensor([[0.3 + 2.0 * residual, second]]))


def test_arguments_are_checked() -> None:
    x, weight, degrees = torch.zeros(2, 3), torch.zeros(4, 3), (torch.arange(3), torch.arange(4))
    with pytest.raises(ValueError, match=r"in_degrees and out_degrees together.*got none"):
        F.masked_linear(x, weight)
    with pytest.raises(ValueError, match=r"got in_degrees$"):
        F.masked_linear(x, weight, None, degrees[0])
    with pytest.raises(ValueError, match="got in_degrees, out_degrees, mask"):
        F.masked_linear(x, weight, None, *degrees, mask=torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="out_degrees must have shape"):
        F.masked_linear(x, weight, None, degrees[0], degrees[0])
    with pytest.raises(TypeError, match="in_degrees must be integer"):
        F.masked_linear(x, weight, None, degrees[0].float(), degrees[1])
    with pytest.raises(TypeError, match="mask must be bool"):
        F.masked_linear(x, weight, mask=torch.ones(4, 3))
    with pytest.raises(ValueError, match="mask must have weight's shape"):
        F.masked_linear(x, weight, mask=torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="strict"):
        F.masked_linear(x, weight, mask=torch.ones(4, 3, dtype=torch.bool), strict=True)
    with pytest.raises(ValueError, match="x must have shape"):
        F.masked_linear(torch.zeros(2, 4), weight, None, *degrees)
    with pytest.raises(ValueError, match="weight must be square"):
        F.fvsbn_log_prob(x, weight, torch.zeros(4))
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        F.fvsbn_log_prob(torch.full((2, 3), 2.0), torch.zeros(3, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="out_degrees must have shape"):
        MaskedLinear(3, 4, [0, 1, 2], [0, 1, 2])
    with pytest.raises(TypeError, match="in_degrees must be integers"):
        MaskedLinear(3, 4, [0.0, 1.0, 2.0], [0, 1, 2, 3])
    with pytest.raises(ValueError, match="at least 1"):
        MaskedLinear(0, 4, [], [0, 1, 2, 3])
