"""The adversarial kernels in Triton's interpreter against the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from dgm_fast.kernels import _layout
from launchers import DTYPES, assert_accurate, backward, check, check_masks, forward, relative_error

from dgm_fast.ops import SPECS, term_code
from dgm_fast.reference import adversarial as formulas

pytestmark = pytest.mark.interpreter

LOSS, PENALTY, LEAKY, BIASED = "adversarial_loss", "norm_penalty", "leaky_relu", "bias_leaky_relu"
LAST = torch.channels_last


def codes(real: str, fake: str) -> tuple[int, int]:
    return term_code((1, fake)), term_code((-1, real))


@pytest.mark.parametrize("name", formulas.TERMS)
def test_every_term(name: str) -> None:
    fake, real = 2 * torch.randn(19), 2 * torch.randn(7, 3)
    for alpha, pi in ((0.5, 0.2), (-1.0, 0.7), (1.5, 0.5), (2.0, 0.5)):
        check(LOSS, fake, real, *codes(name, name), alpha, pi)
        if not name.startswith(("alpha", "weighted")):
            break


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["softplus", "jeffrey.conjugate", "alpha.conjugate"])
def test_dtypes_of_terms(name: str, dtype: torch.dtype) -> None:
    # Of one sign, so that the sums do not cancel.
    both = term_code((1, name)), term_code((1, name))
    check(LOSS, torch.randn(90).to(dtype), torch.randn(60).to(dtype), *both, 0.5, 0.5)
    if dtype != torch.float64:
        check(LOSS, torch.randn(9), torch.randn(6).to(dtype), *both, 0.5, 0.5)


@pytest.mark.parametrize("name", formulas.TERMS)
@pytest.mark.parametrize("alpha", [0.5, 1.5])
def test_extreme_outputs(name: str, alpha: float) -> None:
    """Finite loss and gradients, which agree in sign with the exact ones."""
    v = torch.tensor([-1e4, -90.0, -41.0, 0.0, 41.0, 90.0, 1e4])
    code = term_code((1, name))
    for value in v.split(1):
        out, grad, _ = forward(LOSS, value, None, code, 0, alpha, 0.3)
        exact, slope, _ = SPECS[LOSS].reference(value.double(), None, code, 0, alpha, 0.3)
        assert out.isfinite() and grad.isfinite().all()
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grad.double(), slope, rtol=1e-5, atol=1e-6)


def test_loss_of_fake_outputs_alone_and_masks() -> None:
    code = term_code((-1, "softplus"))
    check(LOSS, torch.randn(2, 1, 5), None, code, 0, 2.0, 0.5, mask=[True, False])
    check_masks(LOSS, torch.randn(5), torch.randn(8), *codes("square", "hinge_fake"), 2.0, 0.5)


@pytest.mark.parametrize("programs", [1024, 2])
def test_loss_of_a_large_map(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs, each with one block or with several, and one argument shorter than its share."""
    monkeypatch.setattr(_layout, "_PROGRAMS", programs)
    check(LOSS, torch.randn(2, 5, 503), torch.randn(700), *codes("square", "softplus"), 2.0, 0.5)


def test_losses_pass_nan_on() -> None:
    for name in formulas.TERMS:
        out, _, _ = forward(
            LOSS, torch.tensor([0.0, math.nan]), None, term_code((1, name)), 0, 1.5, 0.3
        )
        assert out.isnan(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("center", "one_sided"), [(1.0, False), (1.0, True), (0.0, False), (0.5, False)]
)
@pytest.mark.parametrize("shape", [(1, 1), (5, 19), (3, 2, 5, 4), (2, 9000)])
def test_norm_penalty(
    shape: tuple[int, ...], center: float, one_sided: bool, dtype: torch.dtype
) -> None:
    gradient = (torch.randn(shape) / math.prod(shape[1:]) ** 0.5).to(dtype)
    check(PENALTY, gradient, 10.0, center, one_sided)


def test_norm_penalty_of_many_rows() -> None:
    check(PENALTY, torch.randn(1100, 3), 0.3, 1.0, False)
    check_masks(PENALTY, torch.randn(4, 3), 0.3, 1.0, False)


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("center", [0.0, 1.0])
def test_zero_norms_have_zero_gradient(center: float, one_sided: bool) -> None:
    gradient = torch.zeros(3, 5)
    gradient[1] = torch.randn(5)
    check(PENALTY, gradient, 10.0, center, one_sided)
    gradient[2, 3] = math.nan
    outputs = forward(PENALTY, gradient, 10.0, center, one_sided)
    (direction,) = backward(
        PENALTY, torch.ones(()), outputs, (gradient, 10.0, center, one_sided), [True]
    )
    assert outputs[0].isnan() and outputs[1].isnan().tolist() == [False, False, True]
    assert (direction[0] == 0).all() and direction[1].isfinite().all()
    assert center == 0.0 or direction[2].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 19), (2, 3, 5, 4), (2, 2050), (0, 3), (3, 0)])
def test_interpolate(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    real, fake = torch.randn(2, *shape).to(dtype)
    eps = torch.rand(shape[0], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    (out,) = forward("interpolate", real, fake, eps)
    formula = SPECS["interpolate"].reference
    exact = formula(real.double(), fake.double(), eps.double())
    assert out.dtype == dtype
    if out.numel():
        eager = (
            formula(real.float(), fake.float(), eps.float())
            if dtype == torch.float64
            else formula(real, fake, eps)
        )
        assert_accurate("interpolate", out, exact, eager, dtype, 2)
    mixed = forward("interpolate", real, fake.double(), eps.double())[0]
    assert mixed.dtype == torch.float64


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("shape", [(1,), (5, 19), (2, 3, 5, 4), (3, 1100), (0, 3)])
def test_leaky_relu(shape: tuple[int, ...], slope: float, dtype: torch.dtype) -> None:
    check(LEAKY, torch.randn(shape).to(dtype), slope)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize(
    "shape",
    [(1, 1), (5, 19), (70, 130), (2, 3, 5, 4), (2, 3, 700), (3, 5, 2, 1), (0, 3), (2, 3, 0)],
)
def test_bias_leaky_relu(shape: tuple[int, ...], slope: float, dtype: torch.dtype) -> None:
    check(BIASED, torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype), slope)


def test_bias_gradient_in_parts() -> None:
    check(BIASED, torch.randn(3000, 5), torch.randn(5), 0.2)
    check(BIASED, torch.randn(2, 3, 50, 30), torch.randn(3), 0.2)
    check_masks(BIASED, torch.randn(4, 3, 5), torch.randn(3), 0.2)


def in_memory_format(op: str, x: Tensor, *rest: Any) -> None:
    """Channels-last, dense in an odd order, and with gaps: the values of contiguous arguments."""
    grad = torch.randn(x.shape)
    mask = [True, *(isinstance(t, Tensor) for t in rest if not isinstance(t, float))]
    outputs = forward(op, x, *rest)
    upstream = grad if outputs[0].ndim else torch.tensor(1.7)
    expected = (
        outputs,
        backward(op, upstream, outputs, (x, *rest), mask[: 2 if op == BIASED else 1]),
    )
    gaps = torch.zeros(x.shape[0], 2 * x.shape[1], *x.shape[2:])[:, ::2].copy_(x)
    for t in (
        x.contiguous(memory_format=LAST),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        gaps,
    ):
        found = forward(op, t, *rest)
        grads = backward(op, upstream, found, (t, *rest), mask[: 2 if op == BIASED else 1])
        for got, want in zip((*found, *grads), (*expected[0], *expected[1]), strict=True):
            assert relative_error(got, want.double()) < 1e-6
        if t is not gaps and op == LEAKY:
            assert found[0].stride() == grads[0].stride() == t.stride()


def test_memory_formats() -> None:
    x = torch.randn(2, 3, 5, 4)
    in_memory_format(PENALTY, x, 10.0, 1.0, False)
    in_memory_format(LEAKY, x, 0.2)
    in_memory_format(BIASED, x, torch.randn(3), 0.2)


def test_infinities_and_nan() -> None:
    x = torch.tensor([[-math.inf, math.inf, math.nan]])
    for slope in (0.0, 0.2):
        torch.testing.assert_close(
            forward(LEAKY, x, slope)[0], formulas.leaky_relu(x, slope), equal_nan=True
        )
