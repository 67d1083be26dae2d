"""Affine couplings, actnorm and invertible linear layers: mathematics, conventions, limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.op_checks import poisoned_memory
from torch import Tensor

from dgm_fast import functional as F
from dgm_fast import ops


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("scale", tuple(ops.SCALES))
def test_inverse_and_jacobian(scale: str) -> None:
    x, u, shift = normal(3, 5), normal(3, 5, seed=1), normal(3, 5, seed=2)
    y, log_det = F.affine_coupling(x, u, shift, scale=scale)
    back, log_det_back = F.affine_coupling(y, u, shift, scale=scale, inverse=True)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)
    for row in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda t, r=row: F.affine_coupling(t, u[r], shift[r], scale=scale)[0], x[row]
        )
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[row])


@pytest.mark.parametrize(
    ("scale", "factor"),
    [
        ("exp", lambda u: u.exp()),
        ("sigmoid2", lambda u: torch.sigmoid(u + 2) + 1e-3),
        ("softplus", lambda u: torch.nn.functional.softplus(u) + 1e-3),
        ("tanh", lambda u: torch.exp(1.5 * torch.tanh(u / 1.5))),
        ("atan", lambda u: torch.exp(1.5 * (2 / math.pi) * torch.atan(u))),
        ("softsign", lambda u: torch.exp(u / (1 + (u / 1.5).abs()))),
    ],
)
def test_scale_maps(scale: str, factor: Any) -> None:
    u = normal(4, 6, seed=1) * 3
    y, log_det = F.affine_coupling(
        torch.ones_like(u), u, torch.zeros_like(u), scale=scale, clamp=1.5
    )
    torch.testing.assert_close(y, factor(u))
    torch.testing.assert_close(log_det, factor(u).log().sum(-1))


def test_agrees_with_nflows() -> None:
    coupling = pytest.importorskip("nflows.transforms.coupling")

    class Network(torch.nn.Module):
        def forward(self, t: Tensor, context: Tensor | None = None) -> Tensor:
            return torch.cat([torch.tanh(t), 2 * t], 1)

    x = normal(7, 6)
    theirs = coupling.AffineCouplingTransform(
        torch.tensor([0, 0, 0, 1, 1, 1]), lambda inputs, outputs: Network()
    ).double()
    y, log_det = theirs(x)
    shift, u = Network()(x[:, :3]).chunk(2, 1)
    ours, ours_log_det = F.affine_coupling(x[:, 3:], u, shift, scale="sigmoid2")
    torch.testing.assert_close(ours, y[:, 3:])
    torch.testing.assert_close(ours_log_det, log_det)


@pytest.mark.parametrize("inverse", [False, True])
def test_limits_of_log_scales(inverse: bool) -> None:
    u = torch.tensor([[1e4, -1e4, 100.0, -100.0, 0.0]])
    x, shift = torch.full_like(u, 0.5), torch.zeros_like(u)
    for scale in ("sigmoid2", "softplus", "tanh", "atan", "softsign"):
        leaves = [t.clone().requires_grad_() for t in (x, u, shift)]
        y, log_det = F.affine_coupling(*leaves, scale=scale, inverse=inverse)
        assert y.isfinite().all() and log_det.isfinite().all(), scale
        grads = torch.autograd.grad([y.sum(), log_det.sum()], leaves)
        assert all(g.isfinite().all() for g in grads), scale
    y, log_det = F.affine_coupling(x, u, shift, inverse=inverse)
    sign = -1 if inverse else 1
    assert y.tolist()[0][:2] == ([0.0, math.inf] if inverse else [math.inf, 0.0])
    torch.testing.assert_close(log_det, sign * u.sum(-1))


def test_checkerboard_mask_leaves_the_rest() -> None:
    board = (torch.arange(4)[:, None] + torch.arange(5)) % 2 == 0  # [H, W]
    x, u, shift = (normal(2, 3, 4, 5, seed=s) for s in range(3))
    y, log_det = F.affine_coupling(x, u, shift, mask=board, event_ndim=3)
    assert torch.equal(y[..., ~board], x[..., ~board])
    torch.testing.assert_close(y[..., board], (x * u.exp() + shift)[..., board])
    torch.testing.assert_close(log_det, (u * board).flatten(1).sum(1))
    back, _ = F.affine_coupling(y, u, shift, mask=board, event_ndim=3, inverse=True)
    torch.testing.assert_close(back, x)


@pytest.mark.parametrize("inverse", [False, True])
def test_additive_coupling(inverse: bool) -> None:
    x, shift = normal(3, 4), normal(3, 4, seed=1)
    mask = torch.tensor([True, False, True, False])
    y, log_det = F.affine_coupling(x, None, shift, inverse=inverse)
    assert torch.equal(y, x - shift if inverse else x + shift)
    assert torch.equal(log_det, torch.zeros(3, dtype=torch.float64))
    y, _ = F.affine_coupling(x, None, shift, mask=mask, inverse=inverse)
    assert torch.equal(y[:, ~mask], x[:, ~mask])


def test_halves_are_not_copied() -> None:
    if ops.active_isa() is None:
        pytest.skip("the C++ extension is not built")
    hidden = normal(8, 4, 32, 32, dtype=torch.float32).requires_grad_()
    x = normal(8, 2, 32, 32, seed=1, dtype=torch.float32)
    kept: list[int] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.append(t.untyped_storage().data_ptr()), t)[1], lambda t: t
    )
    with hooks:
        y, log_det = F.affine_coupling(x, hidden[:, 0::2], hidden[:, 1::2], event_ndim=3)
    assert set(kept) == {t.untyped_storage().data_ptr() for t in (hidden, x)}
    log_scale, shift = hidden[:, 0::2].detach().double(), hidden[:, 1::2].detach().double()
    torch.testing.assert_close(y.double(), x * log_scale.exp() + shift, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det.double(), log_scale.sum((1, 2, 3)), rtol=1e-5, atol=1e-4)


def test_empty_events_and_batches() -> None:
    for shape in ((0, 3), (3, 0)):
        leaves = [torch.zeros(shape).requires_grad_() for _ in range(3)]
        y, log_det = F.affine_coupling(*leaves)
        assert y.shape == shape and torch.equal(log_det, torch.zeros(shape[0]))
        grads = torch.autograd.grad(y.sum() + log_det.sum(), leaves)
        assert [g.shape for g in grads] == [shape] * 3


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5, 2)])
def test_actnorm_log_determinant(shape: tuple[int, ...]) -> None:
    x, log_scale, bias = normal(*shape), normal(3, seed=1), normal(3, seed=2)
    y, log_det = F.actnorm(x, log_scale, bias)
    back, log_det_back = F.actnorm(y, log_scale, bias, inverse=True)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)
    size = x[0].numel()
    jacobian = torch.autograd.functional.jacobian(
        lambda t: F.actnorm(t[None], log_scale, bias)[0][0], x[0]
    ).reshape(size, size)
    want = torch.linalg.slogdet(jacobian)[1].expand(shape[0])
    torch.testing.assert_close(log_det, want)


def lu_factors(channels: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {
        "lower": 0.3 * normal(channels, channels, seed=1, dtype=dtype),
        "upper": 0.3 * normal(channels, channels, seed=2, dtype=dtype),
        "log_diag": 0.2 * normal(channels, seed=3, dtype=dtype),
        "permutation": torch.randperm(channels, generator=torch.Generator().manual_seed(4)),
    }


@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 2, 4)])
@pytest.mark.parametrize("signed", [False, True])
def test_invertible_linear(shape: tuple[int, ...], signed: bool) -> None:
    factors = lu_factors(5)
    if signed:
        factors["sign"] = torch.tensor([1.0, -1, 1, -1, -1], dtype=torch.float64)
    x = normal(*shape)
    y, log_det = F.invertible_linear(x, **factors)
    back, log_det_back = F.invertible_linear(y, **factors, inverse=True)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)
    size = x[0].numel()
    jacobian = torch.autograd.functional.jacobian(
        lambda t: F.invertible_linear(t[None], **factors)[0][0], x[0]
    ).reshape(size, size)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1].expand(shape[0]))
    if len(shape) == 4:
        weight = F.invertible_linear(torch.eye(5, dtype=torch.float64), **factors)[0].t()
        torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight[..., None, None]))
    names = ("lower", "upper", "log_diag")
    leaves = [factors[name].clone().requires_grad_() for name in names]
    fixed = {k: v for k, v in factors.items() if k not in names}
    for inverse in (False, True):
        torch.autograd.gradcheck(
            lambda t, *f, i=inverse: F.invertible_linear(
                t, **dict(zip(names, f, strict=True)), **fixed, inverse=i
            ),
            [x.requires_grad_(), *leaves],
            fast_mode=True,
        )


def test_reduced_precision() -> None:
    x, u, shift = (normal(64, 9, seed=s, dtype=torch.bfloat16) for s in range(3))
    with poisoned_memory():
        y, log_det = F.affine_coupling(x, u, shift)
    assert y.dtype == torch.bfloat16 and log_det.dtype == torch.float32
    torch.testing.assert_close(log_det, u.float().sum(-1), rtol=1e-6, atol=1e-6)
    mixed, _ = F.affine_coupling(x.float(), u, shift)
    assert mixed.dtype == torch.float32
    y, log_det = F.invertible_linear(
        normal(4, 3, dtype=torch.bfloat16), **lu_factors(3, torch.float32)
    )
    assert y.dtype == torch.bfloat16 and log_det.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_scale": torch.zeros(3, 4)}, "log_scale has shape"),
        ({"shift": torch.zeros(2, 2, 5)}, "shift has shape"),
        ({"mask": torch.zeros(3, dtype=torch.bool)}, "mask has shape"),
        ({"scale": "log"}, "scale must be one of"),
        ({"clamp": 0.0}, "clamp must be positive"),
        ({"event_ndim": 3}, "event_ndim must be between"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {name: torch.zeros(2, 5) for name in ("x", "log_scale", "shift")}
    with pytest.raises(ValueError, match=message):
        F.affine_coupling(**(arguments | change))
    with pytest.raises(TypeError, match="mask must be bool"):
        F.affine_coupling(**arguments, mask=torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"bias must have shape \(5,\)"):
        F.actnorm(torch.zeros(2, 5), torch.zeros(5), torch.zeros(4))
    factors = lu_factors(5)
    with pytest.raises(TypeError, match="permutation must be int64"):
        F.invertible_linear(normal(2, 5), **(factors | {"permutation": torch.zeros(5)}))
    with pytest.raises(ValueError, match=r"lower must have shape \(5, 5\)"):
        F.invertible_linear(normal(2, 5), **(factors | {"lower": torch.zeros(4, 4)}))
