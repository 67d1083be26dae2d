"""Masked convolutions and the gated activation: what depends on what, limits, layouts and errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers.cases_pixel import conv_inputs, gated_inputs
from helpers.op_checks import OpCase, check_reference, upstream, values_and_gradients
from torch import Tensor, nn

from dgm_fast import functional as F
from dgm_fast import ops, reference
from dgm_fast.nn import GatedActivation, MaskedConv1d, MaskedConv2d

INF = math.inf
needs_extension = pytest.mark.skipif(
    ops.active_isa() is None, reason="the C++ extension is not built"
)


def group(channel: int, channels: int, data_channels: int, order: str) -> int:
    if order == "interleaved":
        return channel % data_channels
    return channel * data_channels // channels


def is_live(
    tap: tuple[int, int],
    kernel: tuple[int, int],
    groups: tuple[int, int],
    mask_type: str,
) -> bool:
    """Whether a tap is live between an output and an input channel of the given data channels."""
    centre = (kernel[0] // 2, kernel[1] // 2)
    if tap == centre:
        return groups[1] < groups[0] or (mask_type == "B" and groups[1] == groups[0])
    return tap < centre


# in, out, kernel, image, mask type, data channels, order, dilation
PERTURBED = [
    (3, 6, (3, 3), (5, 6), "A", 1, "interleaved", 1),
    (3, 6, (3, 3), (5, 6), "B", 1, "interleaved", 1),
    (6, 9, (3, 5), (4, 7), "A", 3, "interleaved", 1),
    (6, 9, (5, 3), (4, 7), "B", 3, "interleaved", 1),
    (6, 9, (3, 3), (4, 5), "A", 3, "contiguous", 1),
    (6, 9, (3, 3), (4, 5), "B", 3, "contiguous", 1),
    (7, 8, (3, 3), (4, 5), "A", 3, "interleaved", 1),
    (7, 8, (3, 3), (4, 5), "B", 3, "contiguous", 1),
    (2, 3, (3, 3), (7, 8), "A", 1, "interleaved", 2),
    (34, 35, (3, 3), (5, 17), "B", 3, "interleaved", 1),
    (1, 17, (7, 7), (9, 9), "A", 1, "interleaved", 1),
    (2, 2, (7, 7), (3, 2), "B", 2, "interleaved", 1),
    (2, 4, (1, 1), (3, 3), "A", 2, "contiguous", 1),
    (3, 2, (3, 3), (1, 1), "B", 1, "interleaved", 1),
]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("c_in", "c_out", "kernel", "image", "mask_type", "data_channels", "order", "dilation"),
    PERTURBED,
    ids=str,
)
def test_an_input_reaches_exactly_the_outputs_it_may(
    c_in: int,
    c_out: int,
    kernel: tuple[int, int],
    image: tuple[int, int],
    mask_type: str,
    data_channels: int,
    order: str,
    dilation: int,
    channels_last: bool,
) -> None:
    x, weight, bias = conv_inputs((1, c_in, *image), c_out, kernel)(torch.float32)
    # No weight is small enough to hide a change.
    weight = weight.sign() * (weight.abs() + 0.1)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)

    def run(x: Tensor) -> Tensor:
        return F.masked_conv2d(
            x,
            weight,
            bias,
            mask_type=mask_type,
            data_channels=data_channels,
            channel_order=order,
            dilation=dilation,
        )

    before = run(x)
    height, width = image
    pixels = [(0, 0), (height - 1, width - 1), (height // 2, width // 2)]
    for (i, j), c in itertools.product(pixels, range(min(c_in, 7))):
        changed = x.clone(memory_format=torch.preserve_format)
        changed[0, c, i, j] += 1.0
        after = run(changed)
        may = torch.zeros(c_out, height, width, dtype=torch.bool)
        for u, v, o in itertools.product(range(kernel[0]), range(kernel[1]), range(c_out)):
            row = i - dilation * (u - kernel[0] // 2)
            column = j - dilation * (v - kernel[1] // 2)
            if not (0 <= row < height and 0 <= column < width):
                continue
            groups = group(o, c_out, data_channels, order), group(c, c_in, data_channels, order)
            if is_live((u, v), kernel, groups, mask_type):
                may[o, row, column] = True
        assert torch.equal(after[0] != before[0], may)


@pytest.mark.parametrize(("mask_type", "first"), [("A", 1), ("B", 0)])
@pytest.mark.parametrize("dilation", [1, 3])
def test_a_causal_convolution_sees_what_comes_before(
    mask_type: str, first: int, dilation: int
) -> None:
    x, weight, bias = conv_inputs((1, 2, 20), 3, (5,))(torch.float32)
    weight = weight.sign() * (weight.abs() + 0.1)
    options = {"mask_type": mask_type, "dilation": dilation}
    before = F.masked_conv1d(x, weight, bias, **options)
    for i in (0, 7, 19):
        changed = x.clone()
        changed[0, 1, i] += 1.0
        after = F.masked_conv1d(changed, weight, bias, **options)
        reached = {i + dilation * u for u in range(first, 3)} & set(range(20))
        for o in range(3):
            assert set((after != before)[0, o].nonzero().flatten().tolist()) == reached


def test_a_stack_of_layers_has_a_strictly_triangular_jacobian() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(
        MaskedConv2d(3, 12, 3, mask_type="A", data_channels=3),
        nn.Tanh(),
        MaskedConv2d(12, 12, 3, mask_type="B", data_channels=3),
        nn.Tanh(),
        MaskedConv2d(12, 3, 3, mask_type="B", data_channels=3),
    ).double()
    x = torch.randn(1, 3, 3, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(layers, x)[0, :, :, :, 0]
    # Raster order of pixels, red, green, blue within each.
    jacobian = jacobian.permute(1, 2, 0, 4, 5, 3).reshape(36, 36)
    assert torch.equal(jacobian.triu(), torch.zeros(36, 36, dtype=torch.float64))
    assert (jacobian.diagonal(-1) != 0).sum() > 20


@pytest.mark.parametrize("dead", [math.nan, INF, 1e30])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(3, 4, 3), (34, 40, 5)], ids=["small", "large"])
def test_dead_weights_may_hold_anything(
    dead: float, channels_last: bool, size: tuple[int, int, int]
) -> None:
    c_in, c_out, kernel = size
    inputs = conv_inputs((2, c_in, 17, 18), c_out, (kernel, kernel), channels_last=channels_last)
    x, weight, bias = inputs(torch.float32)
    live = reference.conv_mask(weight, mask_type="A", data_channels=3)

    def run(*args: Tensor) -> Tensor:
        return F.masked_conv2d(*args, mask_type="A", data_channels=3)

    want, want_grads = values_and_gradients(
        run, (x, torch.where(live, weight, 0.0), bias), (0, 1, 2)
    )
    out, grads = values_and_gradients(run, (x, torch.where(live, weight, dead), bias), (0, 1, 2))
    assert torch.equal(out, want)
    assert all(torch.equal(g, w) for g, w in zip(grads, want_grads, strict=True))
    assert (grads[1][~live] == 0).all()
    assert (grads[1][live] != 0).all()


@needs_extension
def test_what_is_not_seen_may_be_nan() -> None:
    # The last row of an image reaches no other row, whatever it holds.
    x, weight, bias = conv_inputs((2, 33, 9, 15), 35, (5, 5))(torch.float32)
    x[1, :, -1] = math.nan
    out = F.masked_conv2d(x, weight, bias, mask_type="B")
    assert out[0].isfinite().all() and out[1, :, :-1].isfinite().all()
    assert out[1, :, -1].isnan().all()


@pytest.mark.parametrize("size", [(3, 4), (33, 40)], ids=["small", "large"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_expanded_gradients(size: tuple[int, int], channels_last: bool) -> None:
    inputs = conv_inputs((3, size[0], 11, 15), size[1], (3, 3), channels_last=channels_last)
    leaves = [t.requires_grad_() for t in inputs(torch.float32)]
    out = F.masked_conv2d(*leaves, mask_type="B")
    for grad in (
        torch.full((), 0.7).expand(out.shape),
        torch.rand(3, 1, 11, 1).expand(out.shape),
        torch.rand(size[1], 1, 1).expand(out.shape),
    ):
        got = torch.autograd.grad(out, leaves, grad, retain_graph=True)
        want = torch.autograd.grad(out, leaves, grad.contiguous(), retain_graph=True)
        for g, w in zip(got, want, strict=True):
            assert torch.equal(g, w)


@pytest.mark.parametrize("size", [(3, 4), (33, 40)], ids=["small", "large"])
def test_memory_formats_are_kept(size: tuple[int, int]) -> None:
    x, weight, bias = conv_inputs((2, size[0], 9, 10), size[1], (3, 3))(torch.float32)
    for layout in (torch.contiguous_format, torch.channels_last):
        leaves = [
            t.clone(memory_format=layout).requires_grad_()
            for t in (x, weight)
        ]  # fmt: skip
        out = F.masked_conv2d(*leaves, bias, mask_type="B")
        assert out.is_contiguous(memory_format=layout)
        grad_x, _ = torch.autograd.grad(out, leaves, torch.ones(out.shape))
        assert grad_x.is_contiguous(memory_format=layout)
    gated_in = x.repeat(1, 2, 1, 1).to(memory_format=torch.channels_last).requires_grad_()
    gated = F.gated_activation(gated_in)
    assert gated.is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(gated.sum(), gated_in)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_compiled_channels_last() -> None:
    x, weight, bias = conv_inputs((2, 33, 9, 10), 40, (3, 3), channels_last=True)(torch.float32)

    def run(*args: Tensor) -> Tensor:
        return F.gated_activation(F.masked_conv2d(*args, mask_type="B"))

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    out, grads = values_and_gradients(compiled, (x, weight, bias), (0, 1, 2))
    want, want_grads = values_and_gradients(run, (x, weight, bias), (0, 1, 2))
    torch.testing.assert_close(out, want)
    assert out.stride() == want.stride() and grads[0].stride() == want_grads[0].stride()
    for g, w in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(g, w)


def test_only_the_gradients_asked_for() -> None:
    inputs = conv_inputs((2, 33, 9, 10), 40, (3, 3))(torch.float32)
    _, every = values_and_gradients(
        lambda *args: F.masked_conv2d(*args, mask_type="B"), inputs, (0, 1, 2)
    )
    for wanted in ((0,), (1,), (2,), (0, 2), (1, 2)):
        _, some = values_and_gradients(
            lambda *args: F.masked_conv2d(*args, mask_type="B"), inputs, wanted
        )
        assert all(torch.equal(g, every[i]) for i, g in zip(wanted, some, strict=True))


def test_no_live_tap_leaves_the_bias() -> None:
    x, weight, bias = conv_inputs((2, 3, 4, 5), 6, (1, 1))(torch.float32)
    run = lambda *args: F.masked_conv2d(*args, mask_type="A")  # noqa: E731
    out, grads = values_and_gradients(run, (x, weight, bias), (0, 1, 2))
    assert torch.equal(out, bias[:, None, None].expand(2, 6, 4, 5))
    assert not grads[0].any() and not grads[1].any()
    torch.testing.assert_close(grads[2], upstream(out).float().sum((0, 2, 3)))
    assert not F.masked_conv2d(x, weight, mask_type="A").any()


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_empty_images(shape: tuple[int, ...]) -> None:
    inputs = conv_inputs(shape, 4, (3, 3))(torch.float32)
    run = lambda *args: F.masked_conv2d(*args, mask_type="B")  # noqa: E731
    out, grads = values_and_gradients(run, inputs, (0, 1, 2))
    assert out.shape == (shape[0], 4, *shape[2:])
    for t, g in zip(inputs, grads, strict=True):
        assert torch.equal(g, torch.zeros_like(t))
    x = torch.zeros(*shape[:1], 6, *shape[2:])
    run = lambda x, bias: F.gated_activation(x, bias=bias)  # noqa: E731
    out, grads = values_and_gradients(run, (x, torch.zeros(6)), (0, 1))
    assert out.shape == (shape[0], 3, *shape[2:])
    assert torch.equal(grads[1], torch.zeros(6))


def test_autocast_casts_as_conv2d_does() -> None:
    x, weight, bias = conv_inputs((2, 33, 9, 10), 40, (3, 3))(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = F.masked_conv2d(x, weight, bias, mask_type="B")
    assert out.dtype == torch.bfloat16
    want = F.masked_conv2d(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), mask_type="B")
    assert torch.equal(out, want)
    assert F.masked_conv2d(x, weight.double(), mask_type="B").dtype == torch.float64


@needs_extension
@pytest.mark.parametrize("level", ops.runnable_isas())
def test_gates_of_any_size(level: str) -> None:
    active = ops.active_isa()
    assert active is not None
    values = torch.tensor([0.0, -0.0, 1e-30, 1e-6, 0.3, 1.0, 9.0, 30.0, 88.0, 200.0, 1e30, INF])
    values = torch.cat([values, -values]).double()
    x = torch.cartesian_prod(values, values)
    try:
        ops.use_isa(level)
        for dtype in (torch.float32, torch.float64):
            out, (grad,) = values_and_gradients(F.gated_activation, (x.to(dtype),), (0,))
            want = (torch.tanh(x[:, :1]) * torch.sigmoid(x[:, 1:])).to(dtype)
            torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-35)
            a, b = x.unbind(1)
            slope = torch.sigmoid(b) / torch.cosh(a) ** 2  # 1 - tanh(a)^2 would cancel
            slopes = [slope, torch.tanh(a) * torch.sigmoid(b) * torch.sigmoid(-b)]
            grad_out = upstream(out).to(out).double()
            torch.testing.assert_close(
                grad, (grad_out * torch.stack(slopes, 1)).to(dtype), rtol=1e-6, atol=1e-35
            )
        # Small values keep their relative precision.
        small = torch.stack([torch.logspace(-8, -1, 50), torch.zeros(50)], 1)
        want = torch.tanh(small[:, :1].double()) / 2
        torch.testing.assert_close(F.gated_activation(small).double(), want, rtol=3e-7, atol=0.0)
    finally:
        ops.use_isa(active)
    assert F.gated_activation(torch.tensor([[math.nan, 0.0], [0.0, math.nan]])).isnan().all()


def test_the_addends_of_the_gate_are_those_of_the_formula() -> None:
    x, bias, condition = gated_inputs((3, 8, 5, 4), bias=True, condition=(3, 8))(torch.float64)
    want = F.gated_activation(x + bias[:, None, None] + condition[:, :, None, None])
    got = F.gated_activation(x, bias=bias, condition=condition)
    torch.testing.assert_close(got, want)
    module = GatedActivation()
    torch.testing.assert_close(module(x, bias=bias, condition=condition), want)


@needs_extension
def test_the_gate_keeps_its_input_alone() -> None:
    x = torch.randn(4, 8, 5, 6, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        F.gated_activation(x)
    assert [t.data_ptr() for t in kept] == [x.data_ptr()]


@needs_extension
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_condition_at_every_position_shares_the_gradient_of_the_gate(
    memory_format: torch.memory_format,
) -> None:
    x, condition = (torch.randn(2, 8, 5, 6).to(memory_format=memory_format) for _ in range(2))
    x, condition = x.requires_grad_(), condition.requires_grad_()
    out = F.gated_activation(x, condition=condition)
    weight = torch.randn_like(out)
    of_x, of_condition = torch.autograd.grad(out, (x, condition), weight, retain_graph=True)
    assert of_x.data_ptr() == of_condition.data_ptr()
    want = torch.autograd.grad(F.gated_activation(x + condition), x, weight)[0]
    torch.testing.assert_close(of_condition, want)
    # Leaves keep gradients of their own.
    out.backward(weight)
    assert x.grad is not None
    assert condition.grad is not None
    assert x.grad.data_ptr() != condition.grad.data_ptr()
    torch.testing.assert_close(condition.grad, want)


def test_modules_are_the_functions() -> None:
    torch.manual_seed(0)
    layer = MaskedConv2d(
        6, 9, (3, 5), mask_type="A", data_channels=3, channel_order="contiguous", dilation=2
    )
    x = torch.randn(2, 6, 7, 8)
    want = reference.masked_conv2d(
        x,
        layer.weight,
        layer.bias,
        mask_type="A",
        data_channels=3,
        channel_order="contiguous",
        dilation=2,
    )
    torch.testing.assert_close(layer(x), want)
    assert "mask_type='A', data_channels=3, channel_order='contiguous'" in repr(layer)
    # The parameters of a plain convolution fit.
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 9, (3, 5), dilation=2)
    assert all(
        torch.equal(p, q) for p, q in zip(plain.parameters(), layer.parameters(), strict=True)
    )
    layer.load_state_dict(plain.state_dict())
    causal = MaskedConv1d(2, 3, 5, mask_type="B", dilation=2, bias=False)
    sequence = torch.randn(2, 2, 11)
    want = reference.masked_conv1d(sequence, causal.weight, mask_type="B", dilation=2)
    torch.testing.assert_close(causal(sequence), want)
    assert "mask_type='B'" in repr(causal)
    for wrong in (2, (3, 4), 0):
        with pytest.raises(ValueError, match="kernel_size must be odd"):
            MaskedConv2d(1, 1, wrong, mask_type="A")
    with pytest.raises(ValueError, match="mask_type must be one of"):
        MaskedConv1d(1, 1, 3, mask_type="C")


X = torch.zeros(2, 4, 5, 6)
W = torch.zeros(8, 4, 3, 3)


def bad(error: type[Exception], match: str, function, *args, **options):
    return pytest.param(
        error, match, function, args, options, id=f"{function.__name__}-{match[:28]}"
    )


@pytest.mark.parametrize(
    ("error", "match", "function", "args", "options"),
    [
        bad(TypeError, "x must be a torch.Tensor", F.masked_conv2d, None, W, mask_type="A"),
        bad(TypeError, "x must be floating point", F.masked_conv2d, X.long(), W, mask_type="A"),
        bad(ValueError, "weight must have 4 dimensions", F.masked_conv2d, X, W[0], mask_type="A"),
        bad(ValueError, "weight must have 3 dimensions", F.masked_conv1d, X, W, mask_type="A"),
        bad(ValueError, r"x must have 4 dimensions \(or 3", F.masked_conv2d, X[0, 0], W,
            mask_type="A"),
        bad(ValueError, "odd kernel sizes", F.masked_conv2d, X, W[..., :2], mask_type="A"),
        bad(ValueError, "x must have weight's 4 input channels", F.masked_conv2d, X[:, :3], W,
            mask_type="A"),
        bad(ValueError, r"bias must have shape \(8,\)", F.masked_conv2d, X, W, torch.zeros(4),
            mask_type="A"),
        bad(ValueError, "weight is on meta", F.masked_conv2d, X, W.to("meta"), mask_type="A"),
        bad(ValueError, "mask_type must be one of", F.masked_conv2d, X, W, mask_type="a"),
        bad(ValueError, "channel_order must be one of", F.masked_conv2d, X, W, mask_type="A",
            channel_order="rgb"),
        bad(TypeError, "data_channels must be an int", F.masked_conv2d, X, W, mask_type="A",
            data_channels=3.0),
        bad(ValueError, "data_channels must be at least 1", F.masked_conv2d, X, W, mask_type="A",
            data_channels=0),
        bad(ValueError, "data_channels must be at most the channels", F.masked_conv2d, X, W,
            mask_type="A", data_channels=5),
        bad(ValueError, "dilation must be at least 1", F.masked_conv2d, X, W, mask_type="A",
            dilation=0),
        bad(TypeError, "dilation must be an int", F.masked_conv2d, X, W, mask_type="A",
            dilation=True),
        bad(TypeError, "x must be a torch.Tensor", F.shifted_conv2d, None, W, first=(0, 0)),
        bad(ValueError, "weight must have shape", F.shifted_conv2d, X, W[0], first=(0, 0)),
        bad(ValueError, r"x must have shape \[B, 4, H, W\]", F.shifted_conv2d, X[:, :3], W,
            first=(0, 0)),
        bad(ValueError, r"bias must have shape \(8,\)", F.shifted_conv2d, X, W, torch.zeros(4),
            first=(0, 0)),
        bad(TypeError, "first must be two ints", F.shifted_conv2d, X, W, first=(0, 0.5)),
        bad(TypeError, "x must be a torch.Tensor", F.gated_activation, [1.0]),
        bad(ValueError, "x must have an even size in dimension 2", F.gated_activation, X, dim=2),
        bad(ValueError, "dim must be a dimension of x", F.gated_activation, X, dim=4),
        bad(TypeError, "dim must be an int", F.gated_activation, X, dim=1.0),
        bad(ValueError, r"bias must have shape \(4,\)", F.gated_activation, X,
            bias=torch.zeros(2)),
        bad(ValueError, "condition must have the 4 dimensions of x or its first 2",
            F.gated_activation, X, condition=torch.zeros(4)),
        bad(ValueError, "condition must match x's shape", F.gated_activation, X,
            condition=torch.zeros(2, 1)),
        bad(ValueError, "condition must match x's shape", F.gated_activation, X,
            condition=torch.zeros(2, 4, 6, 5)),
    ],
)  # fmt: skip
def test_bad_arguments(error, match, function, args, options) -> None:
    with pytest.raises(error, match=match):
        function(*args, **options)


@pytest.fixture
def at_level() -> Iterator[Callable[[str], None]]:
    active = ops.active_isa()
    assert active is not None
    yield ops.use_isa
    ops.use_isa(active)


needs_amx = pytest.mark.skipif(
    "amx" not in ops.runnable_isas(), reason="this processor has no matrix units"
)


def conv_results(*args: Tensor) -> list[Tensor]:
    out, gradients = values_and_gradients(
        lambda *args: F.masked_conv2d(*args, mask_type="B"), args, (0, 1, 2)
    )
    return [out, *gradients]


@needs_amx
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3e38, 1e25])
@pytest.mark.parametrize("where", ["x", "weight"])
def test_matrix_units_leave_what_does_not_split_to_vectors(at_level, value, where) -> None:
    x, weight, bias = conv_inputs((2, 64, 28, 28), 64, (3, 3))(torch.float32)
    (x if where == "x" else weight).view(-1)[1000] = value
    at_level("amx")
    got = conv_results(x, weight, bias)
    at_level("avx512")
    for g, want in zip(got, conv_results(x, weight, bias), strict=True):
        finite = want.isfinite()
        assert torch.equal(g.isfinite(), finite)
        assert torch.equal(
            g.nan_to_num(0.0, 1.0, -1.0)[~finite], want.nan_to_num(0.0, 1.0, -1.0)[~finite]
        )
        g, want = g[finite].double(), want[finite].double()
        assert (g - want).norm() <= 1e-6 * want.norm()


@needs_amx
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-18, 1e18, 1e30])
@pytest.mark.parametrize("argument", [0, 1])
def test_matrix_units_at_every_scale(at_level, scale, argument) -> None:
    args = list(conv_inputs((2, 64, 28, 28), 64, (3, 3), bias=False)(torch.float32))
    want = F.masked_conv2d(*(a.double() for a in args), mask_type="B")
    args[argument] = args[argument] * scale
    at_level("amx")
    got = F.masked_conv2d(*args, mask_type="B").double() / scale
    # Below 2^-126 floats have fewer bits themselves.
    limit = 3e-7 if scale > 1e-37 else 3e-3
    assert (got - want).norm() <= limit * want.norm()


@needs_amx
def test_matrix_units_are_no_less_accurate_than_vectors(at_level) -> None:
    args = conv_inputs((3, 96, 28, 28), 128, (5, 5))(torch.float32)
    want = conv_results(*(a.double() for a in args))
    errors = {}
    for level in ("avx512", "amx"):
        at_level(level)
        errors[level] = [
            ((g.double() - w).norm() / w.norm()).item()
            for g, w in zip(conv_results(*args), want, strict=True)
        ]
    for vectors, tiles in zip(errors["avx512"], errors["amx"], strict=True):
        assert tiles <= 1.1 * vectors


@needs_extension
@pytest.mark.parametrize("level", ops.runnable_isas())
@pytest.mark.parametrize("threads", [1, 3])
def test_long_sums_at_every_level(level: str, threads: int) -> None:
    # Gradients of weight and bias add 20,000 pixels, all of one sign.
    active, before = ops.active_isa(), torch.get_num_threads()
    assert active is not None
    x, weight, bias = conv_inputs((11, 17, 43, 43), 33, (3, 3))(torch.float32)
    case = OpCase(
        "long",
        "masked_conv2d",
        lambda *args: F.masked_conv2d(*args, mask_type="B"),
        lambda *args: reference.masked_conv2d(*args, mask_type="B"),
        lambda _: (),
        (0, 1, 2),
    )
    try:
        ops.use_isa(level)
        torch.set_num_threads(threads)
        check_reference(case, torch.float32, (x.abs(), weight, bias))
    finally:
        ops.use_isa(active)
        torch.set_num_threads(before)
