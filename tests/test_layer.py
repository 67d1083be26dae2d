"""Layers that are bilinear to any order: PyTorch's numbers, and no gradient that nobody asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as plain
from helpers.critics import make, samples
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dgm_fast import functional as F
from dgm_fast import ops

if ops.missing():
    pytest.skip("the C++ extension is not built", allow_module_level=True)

# x, weight and options: stride, padding, dilation and groups of several kinds.
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "linear": ((5, 4), (3, 4), {}),
    "one_output": ((5, 4), (1, 4), {}),
    "conv": ((2, 3, 6, 5), (4, 3, 3, 3), {}),
    "strided": ((2, 2, 8, 8), (3, 2, 4, 4), {"stride": 2, "padding": 1}),
    "uneven": ((2, 2, 7, 6), (3, 2, 3, 2), {"stride": (2, 1), "padding": (1, 0)}),
    "grouped": ((2, 4, 5, 5), (6, 2, 3, 3), {"groups": 2, "dilation": (1, 2), "padding": 2}),
}


def arguments(
    name: str, dtype: torch.dtype = torch.float64, bias: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    shape, weight, _ = SHAPES[name]
    generator = torch.Generator().manual_seed(3)
    made = [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for s in (shape, weight, weight[:1])
    ]
    return made[0], made[1], made[2] if bias else None


def layer(name: str, *tensors: Tensor | None) -> Tensor:
    options = SHAPES[name][2]
    return F.linear(*tensors) if len(SHAPES[name][0]) == 2 else F.conv2d(*tensors, **options)


def torch_layer(name: str, *tensors: Tensor | None) -> Tensor:
    options = SHAPES[name][2]
    is_linear = len(SHAPES[name][0]) == 2
    return plain.linear(*tensors) if is_linear else plain.conv2d(*tensors, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_all_orders_of_derivatives(name: str, bias: bool) -> None:
    tensors = [t for t in arguments(name, bias=bias) if t is not None]

    def call(*tensors: Tensor) -> Tensor:
        return layer(name, *tensors)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_numbers_are_pytorchs(name: str, dtype: torch.dtype) -> None:
    tensors = arguments(name, dtype)
    limits = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}
    results = []
    for function in (layer, torch_layer):
        out = function(name, *tensors)
        grads = torch.autograd.grad(out.sin().sum(), tensors)
        results.append((out, *grads))
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=limits[dtype], atol=limits[dtype])


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "broadcast"])
@pytest.mark.parametrize("name", ["linear", "strided"])
def test_layouts(name: str, layout: str) -> None:
    x, weight, bias = (t.detach() for t in arguments(name) if t is not None)
    if layout == "transposed":
        x, weight = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (x, weight))
    elif layout == "broadcast":
        x = x[:1].expand_as(x)
    elif x.ndim == 4:
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    tensors = [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    # A gradient of stride 0 as well.
    for reduce in (Tensor.sum, lambda t: t.square().sum()):
        grads = [
            torch.autograd.grad(reduce(f(name, *tensors)), tensors) for f in (layer, torch_layer)
        ]
        for got, want in zip(*grads, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_batch_in_parts(layout: torch.memory_format, channels: int) -> None:
    """Megabytes are convolved in parts; first derivatives in one pass over them, second ones by the ops."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(37, channels, 64, 64, generator=generator).contiguous(memory_format=layout)
    weight = 0.1 * torch.randn(16, channels, 3, 3, generator=generator)
    bias = torch.rand(16, generator=generator)
    tensors = [t.requires_grad_() for t in (x, weight, bias)]
    results = []
    for function in (F.conv2d, plain.conv2d):
        out = function(*tensors, 2, 1)
        first = torch.autograd.grad(out.square().mean(), tensors, retain_graph=True)
        (inner,) = torch.autograd.grad(out.square().mean(), x, create_graph=True)
        second = torch.autograd.grad(inner.square().sum(), tensors)
        results.append((out, *first, *second))
    assert results[0][0].stride() == results[1][0].stride()
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.mark.parametrize("name", ["linear", "grouped"])
def test_opcheck(name: str) -> None:
    x, weight, bias = arguments(name, torch.float32)
    options = {"stride": 1, "padding": 0, "dilation": 1, **SHAPES[name][2]}
    numbers = [options[key] for key in ("stride", "padding", "dilation")]
    pairs = [n for pair in numbers for n in ((pair, pair) if isinstance(pair, int) else pair)]
    geometry = [] if x.ndim == 2 else [*pairs, options.get("groups", 1)]
    signal = torch_layer(name, x, weight).detach().requires_grad_()
    named = torch.ops.dgm_fast
    torch.library.opcheck(named.layer.default, (x, weight, bias, geometry))
    torch.library.opcheck(
        named.layer_input_gradient.default, (signal, weight, x.detach(), geometry)
    )
    torch.library.opcheck(
        named.layer_weight_gradient.default, (signal, x, weight.detach(), geometry)
    )


class Counted(TorchDispatchMode):
    """How often each op of the library runs that costs a product."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.name()
        if name.startswith("dgm_fast::layer") or "mm" in name or "convolution" in name:
            self.calls[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_a_penalty_costs_four_products_a_layer(name: str) -> None:
    """Forward, signal, tangent and weight gradient; the last tangent needs no product with the weight."""
    critic = make(name)
    layers = [m for m in critic.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    inputs = samples(name)
    with Counted() as counted:
        value = F.gradient_penalty(
            critic, inputs["real"], inputs["fake"], eps=inputs["eps"], method="exact"
        )
        torch.autograd.grad(
            value, list(critic.parameters()), allow_unused=True, materialize_grads=True
        )
    count = len(layers)
    assert counted.calls == {
        "dgm_fast::layer": 2 * count - 1,
        "dgm_fast::layer_input_gradient": count,
        "dgm_fast::layer_weight_gradient": count,
    }


def test_where_it_is_the_plain_function() -> None:
    x, weight, bias = arguments("linear", torch.float32)

    def node(out: Tensor) -> str:
        return type(out.grad_fn).__name__

    assert "Addmm" not in node(F.linear(x, weight, bias))
    assert "Addmm" in node(plain.linear(x, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear(x, weight, bias).dtype == torch.bfloat16
    with torch.no_grad():
        assert F.linear(x, weight, bias).grad_fn is None
    with ops.backend("reference"):
        assert "Addmm" in node(F.linear(x, weight, bias))
    batched = x.unsqueeze(0)
    torch.testing.assert_close(F.linear(batched, weight, bias), plain.linear(batched, weight, bias))
    got = torch.func.grad(lambda x: F.linear(x, weight, bias).sin().sum())(x)
    (want,) = torch.autograd.grad(plain.linear(x, weight, bias).sin().sum(), x)
    torch.testing.assert_close(got, want)
    image, kernel, shift = arguments("conv", torch.float32)
    same = F.conv2d(image, kernel, shift, padding="same")
    torch.testing.assert_close(same, plain.conv2d(image, kernel, shift, padding="same"))
    with pytest.raises(RuntimeError):
        F.conv2d(image, kernel[:, :2], shift)
    with pytest.raises(RuntimeError):
        F.linear(x, weight[:, :2], bias)


def test_compiled_layers_are_plain() -> None:
    """Every parameter's gradient of a compiled penalty, in which a custom backward would be a constant."""
    x, weight, bias = arguments("linear")

    def penalty(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        second = weight[:, :3]
        return (
            torch.func.grad(
                lambda x: F.linear(F.linear(x, weight, bias).tanh(), second).tanh().sum()
            )(x)
            .square()
            .sum()
        )

    tensors = (x, weight, bias)
    want = torch.autograd.grad(penalty(*tensors), tensors)
    compiled = torch.compile(penalty, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(torch.autograd.grad(compiled(*tensors), tensors), want, strict=True):
        torch.testing.assert_close(got, wanted)
