"""The LSTMs over images in Triton's interpreter against the reference."""

from __future__ import annotations

import pytest
import torch
from helpers.cases_pixel import lstm_inputs
from torch import Tensor

pytest.importorskip("triton")

from dgm_fast.kernels import pixel_lstm
from launchers import DTYPES, backward, check, check_masks, forward

from dgm_fast import functional, ops

pytestmark = pytest.mark.interpreter

ROW, DIAGONAL = "row_lstm", "diagonal_lstm"
Image = tuple[int, int, int, int]


@pytest.fixture(params=["one launch", "a launch a step"])
def launches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways through the steps, in small tiles."""
    monkeypatch.setattr(pixel_lstm, "_POSITIONS", 16)
    monkeypatch.setattr(pixel_lstm, "_UNITS", 16)
    if request.param == "a launch a step":
        monkeypatch.setattr(pixel_lstm, "_RESIDENT", 0)


def arguments(image: Image, taps: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    return lstm_inputs(image, taps)(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "taps"), [(ROW, 3), (DIAGONAL, 2)])
def test_dtypes(op: str, taps: int, dtype: torch.dtype) -> None:
    check(op, *arguments((2, 8, 3, 4), taps, dtype))


@pytest.mark.parametrize(
    ("op", "image", "taps"),
    [
        (ROW, (1, 8, 3, 3), 5),
        (ROW, (2, 4, 3, 2), 1),
        (ROW, (1, 4, 1, 1), 3),
        (ROW, (0, 8, 2, 2), 3),
        (DIAGONAL, (1, 8, 5, 2), 2),
        (DIAGONAL, (2, 8, 1, 4), 2),
        (DIAGONAL, (1, 4, 1, 1), 2),
        (DIAGONAL, (0, 8, 2, 2), 2),
        # Several tiles of positions and units, and of what is summed.
        (ROW, (1, 72, 2, 19), 3),
        (DIAGONAL, (1, 72, 3, 2), 2),
        (DIAGONAL, (1, 4, 17, 18), 2),
    ],
)
def test_shapes(op: str, image: Image, taps: int, launches: None) -> None:
    check(op, *arguments(image, taps))


@pytest.mark.parametrize(("op", "taps"), [(ROW, 3), (DIAGONAL, 2)])
def test_masks_and_layouts(op: str, taps: int) -> None:
    gates, weight = arguments((2, 8, 3, 4), taps)
    check_masks(op, gates, weight)
    last = gates.to(memory_format=torch.channels_last)
    columns = weight.transpose(0, 1).contiguous().transpose(0, 1)
    outputs, same = forward(op, gates, weight), forward(op, last, columns)
    for value, want in zip(same, outputs, strict=True):
        assert torch.equal(value, want)
    assert outputs[0].is_contiguous(memory_format=torch.channels_last)
    # A gradient of a sum has strides of zero.
    grad = torch.ones(()).expand(outputs[0].shape)
    ours = backward(op, grad, outputs, (last, columns), [True, True])
    plain = backward(op, grad.contiguous(), outputs, (gates, weight), [True, True])
    for value, want in zip(ours, plain, strict=True):
        assert torch.equal(value, want)


@pytest.mark.parametrize(("op", "taps"), [(ROW, 3), (DIAGONAL, 2)])
def test_extreme_gates(op: str, taps: int) -> None:
    """Closed and open gates, overflowing exponentials: finite, and the reference's."""
    gates, weight = arguments((1, 8, 3, 4), taps)
    for factor in (1e4, 1e30, 1e-30):
        check(op, gates * factor, weight)
    infinite = gates.clone()
    infinite[:, ::3] = torch.inf
    infinite[:, 1::3] = -torch.inf
    out = forward(op, infinite, weight)[0]
    torch.testing.assert_close(out, ops.SPECS[op].reference(infinite, weight)[0])


def test_small_gradients_of_half_precision() -> None:
    # Gradients of gates near float16's smallest number, whose sums over pixels are not.
    gates, weight = arguments((2, 8, 6, 8), 3, torch.float16)
    generator = torch.Generator().manual_seed(1)
    grad = 1e-5 * torch.randn((2, 2, 6, 8), generator=generator)
    outputs = forward(ROW, gates, weight)
    small = backward(ROW, grad.half(), outputs, (gates, weight), [False, True])[1]
    large = backward(ROW, (grad.half() * 2**12), outputs, (gates, weight), [False, True])[1]
    # The result itself is denormal: a spacing of 2^-24.
    spacing = 2.0**-24 * 2**12
    assert large.float().abs().max() > 20 * spacing
    torch.testing.assert_close(small.float() * 2**12, large.float(), rtol=2e-3, atol=spacing)


@pytest.mark.skipif(ops.active_isa() is None, reason="the C++ extension is not built")
@pytest.mark.parametrize(("op", "taps"), [(ROW, 3), (DIAGONAL, 2)])
def test_gradients_through_the_public_function(op: str, taps: int) -> None:
    leaves = [t.requires_grad_() for t in arguments((2, 8, 3, 4), taps, torch.float64)]
    results = []
    for backend in ("triton", "reference"):
        with ops.backend(backend):
            out = getattr(functional, op)(*leaves)
            results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
