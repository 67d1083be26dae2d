"""Rational-quadratic splines: agreement with other libraries, limits, layouts, mathematics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.op_checks import poisoned_memory, relative_error
from torch import Tensor

from dgm_fast import functional as F
from dgm_fast import ops


def parameters(
    *shape: int,
    bins: int = 8,
    slopes: int | None = None,
    spread: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, widths, heights, derivatives; x reaches beyond [-3, 3]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    slopes = bins - 1 if slopes is None else slopes
    return (
        1.5 * normal(*shape),
        spread * normal(*shape, bins),
        spread * normal(*shape, bins),
        spread * normal(*shape, slopes),
    )


def results(function: Any, inputs: tuple[Tensor, ...], **options: Any) -> list[Tensor]:
    """y, log_det and the gradients of both to every input."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    y, log_det = function(*leaves, **options)
    weight = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape)
    grads = torch.autograd.grad([y, log_det], leaves, [weight, weight.flip(0)])
    return [y.detach(), log_det.detach(), *grads]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [8, 32])
def test_agrees_with_nflows(bins: int, inverse: bool) -> None:
    nflows = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    inputs = parameters(64, 5, bins=bins)
    ours = results(F.rational_quadratic_spline, inputs, tail_bound=3.0, inverse=inverse)
    theirs = results(
        nflows.unconstrained_rational_quadratic_spline,
        inputs,
        tails="linear",
        tail_bound=3.0,
        inverse=inverse,
    )
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for a, b in zip(ours[2:], theirs[2:], strict=True):
        assert relative_error(a, b) < 1e-9
    # Without tails, and with K + 1 derivatives under linear tails.
    x, widths, heights, derivatives = parameters(64, 5, bins=bins, slopes=bins + 1)
    unit = torch.sigmoid(x)
    ours = results(
        F.rational_quadratic_spline,
        (unit, widths, heights, derivatives),
        tails=None,
        inverse=inverse,
    )
    theirs = results(
        nflows.rational_quadratic_spline, (unit, widths, heights, derivatives), inverse=inverse
    )
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    y, log_det = F.rational_quadratic_spline(x, widths, heights, derivatives, inverse=inverse)
    want = nflows.unconstrained_rational_quadratic_spline(
        x, widths, heights, derivatives, tails="linear", inverse=inverse
    )
    torch.testing.assert_close((y, log_det), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("inverse", [False, True])
def test_agrees_with_normflows(inverse: bool) -> None:
    splines = pytest.importorskip("normflows.utils.splines")
    x, widths, heights, derivatives = parameters(64, 3, slopes=9)
    bound = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    for tails, slopes in (("circular", 8), (["linear", "circular", "linear"], 9)):
        options = {"tails": tails, "tail_bound": bound, "inverse": inverse}
        # Outside the bounds normflows gives 0 where tails are a list, instead of x.
        x = x if tails == "circular" else x.clamp(-bound, bound)
        arguments = (x, widths, heights, derivatives[..., :slopes])
        ours = results(F.rational_quadratic_spline, arguments, **options)
        theirs = results(splines.unconstrained_rational_quadratic_spline, arguments, **options)
        for a, b in zip(ours[:2], theirs[:2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        for a, b in zip(ours[2:], theirs[2:], strict=True):
            assert relative_error(a, b) < 1e-9


def test_agrees_with_zuko() -> None:
    transforms = pytest.importorskip("zuko.transforms")
    x, widths, heights, derivatives = parameters(64, 3)
    theirs = transforms.MonotonicRQSTransform(widths, heights, derivatives, bound=5.0)
    options = {"tail_bound": 5.0, "parameterization": "zuko"}
    y, log_det = F.rational_quadratic_spline(x, widths, heights, derivatives, **options)
    want = theirs.call_and_ladj(x)
    torch.testing.assert_close((y, log_det), want, rtol=1e-10, atol=1e-10)
    back = F.rational_quadratic_spline(x, widths, heights, derivatives, inverse=True, **options)
    torch.testing.assert_close(back, theirs.inv.call_and_ladj(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize("bins", [8, 32])
def test_float32_is_closer_than_rounded_knots(bins: int, spread: float, inverse: bool) -> None:
    # The plain formula subtracts knots that were rounded after their sum, as nflows does.
    double = parameters(400, 32, bins=bins, spread=spread)
    single = tuple(t.float() for t in double)
    options = {"tail_bound": 3.0, "inverse": inverse}
    with ops.backend("reference"):
        truth = F.rational_quadratic_spline(*(t.double() for t in single), **options)
        plain = F.rational_quadratic_spline(*single, **options)
    ours = F.rational_quadratic_spline(*single, **options)
    for value, rival, want in zip(ours, plain, truth, strict=True):
        error, rival_error = (value - want).abs(), (rival - want).abs()
        assert error.mean() <= 1.05 * rival_error.mean()
        assert error.max() <= 2 * rival_error.max()


def test_round_trip_and_opposite_log_determinants() -> None:
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-3)):
        x, *rest = parameters(512, 7, dtype=dtype)
        y, log_det = F.rational_quadratic_spline(x, *rest, tail_bound=3.0)
        back, log_det_back = F.rational_quadratic_spline(y, *rest, tail_bound=3.0, inverse=True)
        torch.testing.assert_close(back, x, rtol=0, atol=tolerance)
        torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=20 * tolerance)


@pytest.mark.parametrize("inverse", [False, True])
def test_log_determinant_is_that_of_the_jacobian(inverse: bool) -> None:
    x, *rest = parameters(1, 12)
    _, log_det = F.rational_quadratic_spline(
        x, *rest, tail_bound=2.0, inverse=inverse, sum_log_det=True
    )
    jacobian = torch.autograd.functional.jacobian(
        lambda t: F.rational_quadratic_spline(t, *rest, tail_bound=2.0, inverse=inverse)[0], x
    ).reshape(12, 12)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[0])


def test_density_integrates_to_one() -> None:
    # The density of x where y = spline(x) is standard normal.
    grid = torch.linspace(-9, 9, 400_001, dtype=torch.float64)
    _, *rest = parameters(1)
    y, log_det = F.rational_quadratic_spline(grid, *rest, tail_bound=3.0)
    density = torch.exp(-0.5 * y.square() + log_det) / math.sqrt(2 * math.pi)
    assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=1e-7)


def knots(raw: Tensor, bound: float, minimum: float = 1e-3) -> Tensor:
    shares = minimum + (1 - minimum * raw.shape[-1]) * raw.softmax(-1)
    inner = -bound + 2 * bound * shares.cumsum(-1)[..., :-1]
    ends = torch.full((*raw.shape[:-1], 1), bound, dtype=raw.dtype)
    return torch.cat([-ends, inner, ends], -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_knots_map_to_knots_with_their_slopes(dtype: torch.dtype) -> None:
    _, widths, heights, derivatives = parameters(6)
    x, y = knots(widths, 3.0), knots(heights, 3.0)  # [6, K + 1]
    slopes = 1e-3 + torch.nn.functional.softplus(derivatives)
    slopes = torch.nn.functional.pad(slopes, (1, 1), value=1.0)
    shared = [t.unsqueeze(1).to(dtype) for t in (widths, heights, derivatives)]
    tolerance = 1e-9 if dtype == torch.float64 else 2e-3
    for inverse, source, image in ((False, x, y), (True, y, x)):
        out, log_det = F.rational_quadratic_spline(
            source.to(dtype), *shared, tail_bound=3.0, inverse=inverse
        )
        sign = -1 if inverse else 1
        torch.testing.assert_close(out.double(), image, rtol=0, atol=tolerance)
        torch.testing.assert_close(log_det.double(), sign * slopes.log(), rtol=0, atol=tolerance)
        # No rounding lifts a bound over itself, where the way back has other rules.
        ends = out[:, [0, -1]].abs()
        assert (ends <= 3.0).all() and (ends >= 3.0 * (1 - 2 * torch.finfo(dtype).eps)).all()


def test_outside_is_the_identity() -> None:
    x = torch.tensor(
        [-math.inf, -1e30, -3.0001, 3.0001, 1e30, math.inf, math.nan], requires_grad=True
    )
    rest = [t.requires_grad_() for t in parameters(7, dtype=torch.float32)[1:]]
    for inverse in (False, True):
        y, log_det = F.rational_quadratic_spline(x, *rest, tail_bound=3.0, inverse=inverse)
        torch.testing.assert_close(y, x, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(log_det, torch.zeros(7))
        grads = torch.autograd.grad(
            [y, log_det], [x, *rest], [torch.full((7,), 2.0), torch.ones(7)]
        )
        assert torch.equal(grads[0], torch.full((7,), 2.0))
        assert all(not g.any() for g in grads[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_everything_stays_finite(dtype: torch.dtype, inverse: bool, scale: float) -> None:
    x, *rest = parameters(512, 4, dtype=torch.float32)
    inputs = [x.to(dtype), *((scale * t).to(dtype) for t in rest)]
    with poisoned_memory():
        for inputs_ in (inputs, [x.mul(2).to(dtype), *inputs[1:]]):
            leaves = [t.detach().requires_grad_() for t in inputs_]
            y, log_det = F.rational_quadratic_spline(*leaves, tail_bound=3.0, inverse=inverse)
            assert y.dtype == dtype and log_det.dtype == torch.float32
            assert y.isfinite().all() and log_det.isfinite().all()
            grads = torch.autograd.grad([y.float().sum(), log_det.sum()], leaves)
            if dtype != torch.float16:  # slopes of 1e6 leave its range
                assert all(g.isfinite().all() for g in grads)


def test_huge_parameters_choose_the_largest_bin() -> None:
    x = torch.tensor([0.1])
    widths = torch.tensor([[3e7, 5e7, 4e7, -1e38]])
    heights, derivatives = torch.zeros(1, 4), torch.zeros(1, 3)
    ours = F.rational_quadratic_spline(x, widths, heights, derivatives)
    with ops.backend("reference"):
        want = F.rational_quadratic_spline(x, widths, heights, derivatives)
    torch.testing.assert_close(ours, want)


def test_an_absent_bin_has_the_least_width() -> None:
    inputs = list(parameters(40, bins=5))
    inputs[1][:, 2] = -math.inf
    y, log_det = F.rational_quadratic_spline(*inputs, tail_bound=3.0)
    with ops.backend("reference"):
        want = F.rational_quadratic_spline(*inputs, tail_bound=3.0)
    torch.testing.assert_close((y, log_det), want)


def test_points_outside_a_domain_without_tails() -> None:
    _, widths, heights, derivatives = parameters(3, slopes=9)
    x = torch.tensor([0.2, 1.5, 0.7], dtype=torch.float64)
    for backend in ("auto", "reference"):
        with ops.backend(backend), pytest.raises(ValueError, match=r"\[0.*, 1"):
            F.rational_quadratic_spline(x, widths, heights, derivatives, tails=None)
    y, _ = F.rational_quadratic_spline(
        x, widths, heights, derivatives, tails=None, right=2.0, bottom=-1.0, top=4.0
    )
    assert ((y >= -1) & (y <= 4)).all()
    bad = torch.func.vmap(
        lambda t: F.rational_quadratic_spline(t, widths[0], heights[0], derivatives[0], tails=None)[
            0
        ]
    )(x)
    assert bad.isnan().tolist() == [False, True, False]


def test_image_parameters_are_read_where_they_lie() -> None:
    # [B, C, K, H, W] seen as [B, C, H, W, K]: entries next to each other belong to different pixels.
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 5, 7, generator=generator)
    packed = torch.randn(2, 3, 23, 5, 7, generator=generator).requires_grad_()
    view = packed.permute(0, 1, 3, 4, 2)
    split = (view[..., :8], view[..., 8:16], view[..., 16:])
    copies = [t.detach().contiguous().requires_grad_() for t in split]
    with poisoned_memory():
        y, log_det = F.rational_quadratic_spline(x, *split, tail_bound=3.0)
        want, want_log_det = F.rational_quadratic_spline(x, *copies, tail_bound=3.0)
    assert torch.equal(y, want) and torch.equal(log_det, want_log_det)
    (grad,) = torch.autograd.grad([y.sum(), log_det.sum()], packed)
    grads = torch.autograd.grad([want.sum(), want_log_det.sum()], copies)
    assert torch.equal(grad, torch.cat(grads, -1).permute(0, 1, 4, 2, 3))


def test_shared_parameters_give_summed_gradients() -> None:
    x, widths, heights, derivatives = parameters(33, 5)
    shared = [t[0].clone().requires_grad_() for t in (widths, heights, derivatives)]
    expanded = [t.detach().expand(33, *t.shape).clone().requires_grad_() for t in shared]
    grads = [
        torch.autograd.grad(F.rational_quadratic_spline(x, *p, sum_log_det=True)[1].sum(), p)
        for p in (shared, expanded)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b.sum(0))


@pytest.mark.skipif(ops.active_isa() is None, reason="the C++ extension is not built")
def test_only_the_arguments_are_kept_for_backward() -> None:
    leaves = [t.requires_grad_() for t in parameters(64, 5, dtype=torch.float32)]
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = F.rational_quadratic_spline(*leaves)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in leaves}
    del out


def test_gradient_of_one_output_alone() -> None:
    inputs = parameters(9, 4)
    for pick in (0, 1):
        grads = []
        for backend in ("auto", "reference"):
            leaves = [t.clone().requires_grad_() for t in inputs]
            with ops.backend(backend):
                out = F.rational_quadratic_spline(*leaves, tail_bound=3.0)[pick]
                grads.append(torch.autograd.grad(out.sum(), leaves))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)


def test_empty_and_scalar() -> None:
    for shape in ((0, 3), (3, 0), ()):
        inputs = [t.requires_grad_() for t in parameters(*shape)]
        y, log_det = F.rational_quadratic_spline(*inputs)
        assert y.shape == log_det.shape == shape
        grads = torch.autograd.grad(y.sum() + log_det.sum(), inputs)
        assert [g.shape for g in grads] == [t.shape for t in inputs]
    _, summed = F.rational_quadratic_spline(*parameters(3, 0), sum_log_det=True)
    assert torch.equal(summed, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": torch.zeros(4, 0)}, "widths must have shape"),
        ({"heights": torch.zeros(4, 7)}, "heights must have 8 bins"),
        ({"widths": torch.zeros(3, 8)}, "widths has shape .* must broadcast to x's"),
        ({"derivatives": torch.zeros(4, 6)}, r"derivatives must have shape \[..., 7\]"),
        ({"tails": "round"}, "tails must be one of"),
        ({"tails": ["linear"] * 3, "derivatives": torch.zeros(4, 9)}, "tails must name one of"),
        ({"tail_bound": 0.0}, "tail_bound must be positive"),
        ({"tail_bound": torch.ones(3)}, "tail_bound has shape"),
        ({"tail_bound": torch.ones(4, requires_grad=True)}, "tail_bound must not require grad"),
        ({"tails": None, "left": 1.0, "derivatives": torch.zeros(4, 9)}, "left < right"),
        ({"min_bin_width": 0.2}, "min_bin_width must be between 0 and 1 / 8"),
        ({"min_derivative": 0.0}, "min_derivative must be between"),
        ({"parameterization": "other"}, "parameterization must be one of"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "x": torch.zeros(4),
        "widths": torch.zeros(4, 8),
        "heights": torch.zeros(4, 8),
        "derivatives": torch.zeros(4, 7),
    }
    with pytest.raises(ValueError, match=message):
        F.rational_quadratic_spline(**(arguments | change))
    with pytest.raises(TypeError, match="x must be floating point"):
        F.rational_quadratic_spline(**(arguments | {"x": torch.zeros(4, dtype=torch.int64)}))
