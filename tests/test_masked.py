"""Masked linear layers and the fully visible sigmoid belief network."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor

from dgm_fast import functional as F
from dgm_fast import reference
from dgm_fast.nn import MaskedLinear

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


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_masked_weights_have_no_influence(bad: float) -> None:
    degrees = torch.arange(5)
    mask = reference.degree_mask(degrees, degrees, strict=True)
    clean = torch.randn(5, 5)
    spoilt = torch.where(mask, clean, bad).requires_grad_()
    x = torch.randn(3, 5)
    out = F.masked_linear(x, spoilt, None, degrees, degrees, strict=True)
    torch.testing.assert_close(out, x @ (clean * mask).t())
    out.sum().backward()
    assert spoilt.grad is not None
    assert (spoilt.grad[~mask] == 0).all()
    assert (spoilt.grad[mask] != 0).all()


def binary_vectors(size: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=size)))


def test_fvsbn_probabilities_sum_to_one() -> None:
    torch.manual_seed(0)
    log_prob = F.fvsbn_log_prob(binary_vectors(12), torch.randn(12, 12), torch.randn(12))
    assert log_prob.double().exp().sum().item() == pytest.approx(1.0, abs=1e-5)


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
