"""Linear heads: what they store, how they choose, limits, autocast, bad arguments."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as torch_functional
from helpers import cases_linear_head
from helpers.op_checks import DTYPES, OpCase, check_reference, relative_error
from torch import Tensor

import dgm_fast
from dgm_fast import functional as F
from dgm_fast import ops
from dgm_fast.functional import linear_head
from dgm_fast.perf.memory import peak_of

INF = math.inf


@pytest.fixture(params=["auto", "reference"], autouse=True)
def backend(request: pytest.FixtureRequest):
    with dgm_fast.backend(request.param):
        yield request.param


def layer(*shape: int, inputs: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(*shape, inputs, generator=generator)
    weight = torch.randn(rows, inputs, generator=generator) * 2 / inputs**0.5
    bias = torch.randn(rows, generator=generator)
    return tuple(t.requires_grad_() for t in (h, weight, bias))  # type: ignore[return-value]


def bits(*shape: int) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4).float()


def classes(*shape: int, count: int) -> Tensor:
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(1))


def saved_beside(leaves: tuple[Tensor, ...], call) -> int:
    """Bytes kept for backward that are not the leaves'."""
    own = {t.untyped_storage().data_ptr() for t in leaves}
    sizes: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = call()
    assert out.requires_grad
    return sum(size for address, size in sizes.items() if address not in own)


needs_kernels = pytest.mark.skipif(
    ops.active_isa() is None, reason="the plain formula stores its intermediates"
)


@needs_kernels
def test_nothing_but_inputs_is_kept(backend: str) -> None:
    if backend == "reference":
        pytest.skip("the plain formula stores its intermediates")
    h, weight, bias = leaves = layer(60, 50, inputs=30, rows=500)
    x = bits(60, 1, 500)
    own = (*leaves, x)
    assert saved_beside(own, lambda: F.linear_bernoulli_log_prob(h, weight, bias, x)) == 0
    index = classes(60, 1, 50, count=10)
    own = (*leaves, index)
    call = lambda: F.linear_categorical_log_prob(h, weight, bias, index, num_classes=10)  # noqa: E731
    assert saved_beside(own, call) == 0


@needs_kernels
def test_peak_memory_is_a_tenth_of_the_plain_formula(backend: str) -> None:
    if backend == "reference":
        pytest.skip("it is the plain formula")
    h, weight, bias = leaves = layer(128, 50, inputs=200, rows=784)
    x = bits(128, 1, 784)
    gradients_bytes = sum(t.nbytes for t in leaves)

    def step(backend: str) -> None:
        with dgm_fast.backend(backend):
            out = F.linear_bernoulli_log_prob(h, weight, bias, x, recompute=True)
            torch.autograd.grad(out.mean(), leaves)

    device = torch.device("cpu")
    fused, plain = (peak_of(lambda b=b: step(b), device) for b in ("auto", "reference"))
    # Logits, and at least their gradient.
    assert plain >= 2 * 128 * 50 * 784 * 4
    assert fused - gradients_bytes < 0.1 * (plain - gradients_bytes)


def test_choice_by_size() -> None:
    h, weight, bias = layer(8, inputs=4, rows=16)
    choose = lambda rows, **changes: linear_head._keeps_logits(  # noqa: E731
        *(changes.get(k, v) for k, v in (("recompute", None), ("h", h))), weight, bias, rows
    )
    smallest, largest = (64 << 10) // (4 * 16), (1 << 20) // (4 * 16)
    assert choose(largest)
    assert not choose(largest + 1)
    assert choose(smallest)
    assert not choose(smallest - 1)
    assert choose(largest + 1, recompute=False)
    assert not choose(largest, recompute=True)
    assert not choose(largest, h=h.bfloat16())
    with torch.no_grad():
        assert not choose(largest)
    assert not linear_head._keeps_logits(None, h.detach(), weight.detach(), None, largest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases_linear_head.KEPT, ids=str)
def test_kept_logits_keep_the_error_rule(case: OpCase, dtype: torch.dtype) -> None:
    check_reference(case, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 3, 8, 41])
@pytest.mark.parametrize(("inputs", "width"), [(1, 1), (7, 47), (192, 48), (193, 49), (400, 97)])
def test_products_of_every_size(inputs: int, width: int, rows: int, dtype: torch.dtype) -> None:
    """Tiles, panels and blocks of the product kernel, full and partial, at every level."""
    h, weight, bias = (
        t.detach().to(dtype).requires_grad_() for t in layer(rows, inputs=inputs, rows=width)
    )
    x = bits(rows, width)
    want = F.bernoulli_log_prob(torch_functional.linear(h, weight, bias), x)
    want_grads = torch.autograd.grad(want.square().sum(), (h, weight, bias))
    active = ops.active_isa()
    try:
        for level in ops.runnable_isas():
            if active is not None:
                ops.use_isa(level)
            out = F.linear_bernoulli_log_prob(h, weight, bias, x, recompute=True)
            grads = torch.autograd.grad(out.square().sum(), (h, weight, bias))
            limit = 2e-6 if dtype == torch.float32 else 1e-14
            for got, expected in zip((out, *grads), (want, *want_grads), strict=True):
                assert relative_error(got, expected) <= limit
    finally:
        if active is not None:
            ops.use_isa(active)


@pytest.mark.skipif("amx" not in ops.runnable_isas(), reason="this processor has no matrix units")
@pytest.mark.parametrize("value", [INF, -INF, math.nan, 3e38])
@pytest.mark.parametrize("where", ["h", "weight"])
def test_matrix_units_leave_what_does_not_split_to_vectors(where: str, value: float) -> None:
    active = ops.active_isa()
    assert active is not None
    h, weight, bias = (t.detach() for t in layer(100, inputs=96, rows=200))
    (h if where == "h" else weight)[40, 7] = value
    results = {}
    for level in ("avx512", "amx"):
        leaves = [t.clone().requires_grad_() for t in (h, weight, bias)]
        try:
            ops.use_isa(level)
            out = F.linear_bernoulli_log_prob(*leaves, bits(100, 200), recompute=True)
            out.sum().backward()
        finally:
            ops.use_isa(active)
        results[level] = [out.detach(), *(t.grad for t in leaves)]
    for got, want in zip(results["amx"], results["avx512"], strict=True):
        finite = want.isfinite()
        assert torch.equal(got.isfinite(), finite)
        assert relative_error(got[finite], want[finite].double()) < 1e-6


@pytest.mark.parametrize("packing", ["variable", "class", "pixel", "bernoulli"])
def test_kept_and_recomputed_logits_agree(packing: str) -> None:
    if packing == "pixel":
        h, weight, bias = layer(3, 4, 5, inputs=6, rows=7)
        h = h.detach().movedim(-1, 1).contiguous().requires_grad_()
        x = classes(3, 4, 5, count=7)
    else:
        h, weight, bias = layer(3, 4, inputs=6, rows=21)
        x = bits(3, 1, 21) if packing == "bernoulli" else classes(3, 1, 3, count=7)
    h, weight, bias = (t.detach().double().requires_grad_() for t in (h, weight, bias))
    results = []
    for recompute in (True, False, None):
        if packing == "bernoulli":
            out = F.linear_bernoulli_log_prob(h, weight, bias, x, recompute=recompute)
        else:
            out = F.linear_categorical_log_prob(
                h,
                weight,
                bias,
                x,
                num_classes=7,
                recompute=recompute,
                packing="variable" if packing == "pixel" else packing,
            )
        results.append((out, *torch.autograd.grad(out.square().sum(), (h, weight, bias))))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("recompute", [True, False])
def test_extreme_logits(recompute: bool) -> None:
    h = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    out = F.linear_bernoulli_log_prob(h, weight, None, x, recompute=recompute)
    assert out.tolist() == [0.0, -2e4]
    grads = torch.autograd.grad(out.sum(), (h, weight))
    torch.testing.assert_close(grads[0], torch.tensor([[0.0], [2.0]]))
    torch.testing.assert_close(grads[1], torch.tensor([[-1e4], [1e4]]))
    index = torch.tensor([[0], [0]])
    out = F.linear_categorical_log_prob(h, weight, None, index, num_classes=2, recompute=recompute)
    assert out.tolist() == [0.0, -2e4]
    (grad,) = torch.autograd.grad(out.sum(), h)
    torch.testing.assert_close(grad, torch.tensor([[0.0], [2.0]]))


@pytest.mark.parametrize("recompute", [True, False, None])
def test_impossible_class(recompute: bool | None) -> None:
    h = torch.zeros(2, 1, requires_grad=True)
    weight = torch.zeros(3, 1, requires_grad=True)
    bias = torch.tensor([0.0, 0.0, -INF], requires_grad=True)
    index = torch.tensor([[0], [1]])
    out = F.linear_categorical_log_prob(h, weight, bias, index, num_classes=3, recompute=recompute)
    torch.testing.assert_close(out, torch.full((2,), math.log(0.5)))
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (h, weight, bias)))


def test_empty() -> None:
    for recompute in (True, False):
        h, weight, bias = layer(0, 5, inputs=3, rows=6)
        out = F.linear_bernoulli_log_prob(h, weight, bias, bits(0, 5, 6), recompute=recompute)
        assert out.shape == (0, 5)
        grads = torch.autograd.grad(out.sum(), (h, weight, bias))
        assert torch.equal(grads[1], torch.zeros(6, 3))
        index = classes(0, 5, 2, count=3)
        out = F.linear_categorical_log_prob(
            h, weight, bias, index, num_classes=3, recompute=recompute
        )
        assert out.shape == (0, 5)
        grads = torch.autograd.grad(out.sum(), (h, weight, bias))
        assert torch.equal(grads[2], torch.zeros(6))


def test_casts_like_a_linear_layer_under_autocast() -> None:
    h, weight, bias = layer(5, inputs=40, rows=60)
    x = bits(5, 60)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = F.linear_bernoulli_log_prob(h, weight, bias, x)
    assert out.dtype == torch.float32
    rounded = (t.bfloat16().float() for t in (h, weight, bias))
    want = F.bernoulli_log_prob(torch_functional.linear(*rounded), x)
    torch.testing.assert_close(out, want)
    grads = torch.autograd.grad(out.sum(), (h, weight, bias))
    assert all(g.dtype == torch.float32 for g in grads)


def test_convolution_weights_are_taken() -> None:
    convolution = torch.nn.Conv2d(6, 7, 1)
    h = torch.randn(2, 6, 3, 4)
    x = classes(2, 3, 4, count=7)
    want = F.categorical_log_prob(convolution(h), x)
    got = F.linear_categorical_log_prob(h, convolution.weight, convolution.bias, x, num_classes=7)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("recompute", [True, False])
def test_bad_values_raise(recompute: bool) -> None:
    h, weight, bias = layer(4, inputs=3, rows=6)
    for bad in (1.5, -0.5, math.nan):
        x = bits(4, 6)
        x[2, 5] = bad
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            F.linear_bernoulli_log_prob(h, weight, bias, x, recompute=recompute)
    for value in (-1, 3):
        index = classes(4, 2, count=3)
        index[3, 1] = value
        with pytest.raises(ValueError, match="class indices between 0 and 2"):
            F.linear_categorical_log_prob(
                h, weight, bias, index, num_classes=3, recompute=recompute
            )


# B == K on purpose: alignment must not depend on luck.
H, W, X = torch.zeros(4, 4, 3), torch.zeros(6, 3), torch.zeros(4, 4, 6)
INDEX = torch.zeros(4, 4, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("error", "match", "args"),
    [
        (ValueError, "h must have weight's 3 inputs", (H[..., :2], W, None, X)),
        (ValueError, "weight must have two dimensions", (H, W[0], None, X)),
        (ValueError, "bias must have shape", (H, W, torch.zeros(5), X)),
        (ValueError, "x has shape", (H, W, None, X[0])),
        (ValueError, "x has event shape", (H, W, None, X[..., :5])),
        (ValueError, "broadcast", (H, W, None, X[:3])),
        (TypeError, "h must be floating", (H.int(), W, None, X)),
        (TypeError, "x must be a torch.Tensor", (H, W, None, 1.0)),
        (ValueError, "weight is on meta", (H, W.to("meta"), None, X)),
        (ValueError, "x is on meta", (H, W, None, X.to("meta"))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_of_the_bernoulli_head(error, match: str, args) -> None:
    with pytest.raises(error, match=match):
        F.linear_bernoulli_log_prob(*args)


@pytest.mark.parametrize(
    ("error", "match", "args", "options"),
    [
        (ValueError, "multiple of num_classes", (H, W, None, INDEX), {"num_classes": 4}),
        (ValueError, "at least 1", (H, W, None, INDEX), {"num_classes": 0}),
        (TypeError, "num_classes must be an int", (H, W, None, INDEX), {"num_classes": 3.0}),
        (ValueError, "packing", (H, W, None, INDEX), {"num_classes": 3, "packing": "pixel"}),
        (ValueError, "x has event shape", (H, W, None, INDEX[..., :1]), {"num_classes": 3}),
        (
            ValueError,
            "require grad",
            (H, W, None, INDEX.float().requires_grad_()),
            {"num_classes": 3},
        ),
        (
            ValueError,
            "6 rows for pixels|num_classes = 5 rows for pixels",
            (torch.zeros(2, 3, 4, 4), W, None, torch.zeros(2, 4, 4)),
            {"num_classes": 5},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_of_the_categorical_head(error, match: str, args, options) -> None:
    with pytest.raises(error, match=match):
        F.linear_categorical_log_prob(*args, **options)


def test_compiles_with_symbolic_sizes() -> None:
    h, weight, bias = layer(9, inputs=4, rows=12)

    def loss(h: Tensor, x: Tensor) -> Tensor:
        classes = F.linear_categorical_log_prob(h, weight, bias, x, num_classes=4)
        return (
            classes + F.linear_bernoulli_log_prob(h, weight[:3], bias[:3], x.clamp(max=1))
        ).sum()

    compiled = torch.compile(loss, backend="aot_eager", dynamic=True, fullgraph=True)
    for rows in (9, 7):
        x = torch.randint(4, (rows, 3), generator=torch.Generator().manual_seed(rows))
        torch.testing.assert_close(compiled(h[:rows], x), loss(h[:rows], x))
