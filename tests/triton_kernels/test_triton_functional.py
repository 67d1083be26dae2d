"""The public functions under backend("triton"), on CPU tensors in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from dgm_fast.kernels import bernoulli

import dgm_fast.functional as F
from dgm_fast import ops

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(ops.active_isa() is None, reason="the C++ extension is not built"),
    pytest.mark.usefixtures("grouped"),
]

B, K, D, L = 4, 3, 11, 5


def _leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def _calls() -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """name -> (function of its differentiable arguments, arguments)."""
    bits = (torch.rand(B, D) < 0.5).double()
    index = torch.randint(0, 6, (B, D))
    noise = torch.randn(B, K, L, dtype=torch.float64)

    def iwae(out: Tensor, z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        return F.iwae_bound(bits, out, z, mean, log_var)

    def dreg(out: Tensor, mean: Tensor, log_var: Tensor, weight: Tensor) -> Tensor:
        z = mean.unsqueeze(1) + (log_var / 2).exp().unsqueeze(1) * noise
        logits = out + z @ weight
        return F.iwae_bound(bits, logits, z, mean, log_var, estimator="dreg")

    def bernoulli_head(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        return F.linear_bernoulli_log_prob(h, weight, bias, x, recompute=True)

    def categorical_head(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear_categorical_log_prob(
            h, weight, bias, index, num_classes=6, packing="class", recompute=True
        )

    def pixel_head(h: Tensor, weight: Tensor) -> Tensor:
        x = index[:, :10].view(B, 2, 5)
        return F.linear_categorical_log_prob(h, weight, None, x, num_classes=6, recompute=True)

    pixels = torch.randint(0, 16, (B, 3, 2, 3)) / 7.5 - 1

    def logistic_mixture(params: Tensor) -> Tensor:
        return F.discretized_logistic_mixture_log_prob(params, pixels, num_mixtures=2, levels=16)

    def sample(mean: Tensor, log_var: Tensor) -> Tensor:
        return F.reparameterize(mean, log_var, K, generator=torch.Generator().manual_seed(3))

    def mixture_nade(x: Tensor, *parameters: Tensor) -> Tensor:
        return F.rnade_log_prob(x, *parameters[:-1], activation_scale=parameters[-1])

    samples = torch.randn(2, B, D, dtype=torch.float64)

    def penalty(hidden: Tensor, output: Tensor) -> Tensor:
        eps = torch.linspace(0, 1, B, dtype=torch.float64)
        critic = lambda x: F.leaky_relu(x @ hidden.T, 0.2) @ output.T  # noqa: E731
        return F.gradient_penalty(critic, *samples, eps=eps, method="exact")

    heads = [_leaf(*shape) for shape in ((3, 2, L), (3, 2)) * 3]

    return {
        "bernoulli": (lambda logits: F.bernoulli_log_prob(logits, bits), [_leaf(B, D)]),
        "gaussian": (F.gaussian_log_prob, [_leaf(B, D), _leaf(B, D), _leaf(D)]),
        "categorical": (lambda logits: F.categorical_log_prob(logits, index), [_leaf(B, 6, D)]),
        "kl": (F.gaussian_kl, [_leaf(B, L), _leaf(B, L), _leaf(L), _leaf()]),
        "reparameterize": (sample, [_leaf(B, L), _leaf(B, L)]),
        "log_mean_exp": (F.log_mean_exp, [_leaf(B, K)]),
        "elbo": (
            lambda out, mean, log_var: F.elbo(bits, out, mean, log_var, beta=0.3),
            [_leaf(B, D), _leaf(B, L), _leaf(B, L)],
        ),
        "logistic mixture": (logistic_mixture, [_leaf(B, 20, 2, 3)]),
        "gaussian mixture": (
            F.gaussian_mixture_log_prob,
            [_leaf(B, L), _leaf(K, L), _leaf(K, L), _leaf(K)],
        ),
        "bernoulli head": (
            bernoulli_head,
            [
                _leaf(B, K, L),
                _leaf(D, L),
                _leaf(D),
                _leaf(B, 1, D).detach().sigmoid().requires_grad_(),
            ],
        ),
        "categorical head": (categorical_head, [_leaf(B, L), _leaf(6 * D, L), _leaf(6 * D)]),
        "pixel head": (pixel_head, [_leaf(B, L, 2, 5), _leaf(6, L)]),
        "masked layer": (
            lambda *layer: F.masked_linear(*layer, torch.arange(D), torch.arange(L) * 2),
            [_leaf(B, D), _leaf(L, D), _leaf(L)],
        ),
        "fvsbn": (
            F.fvsbn_log_prob,
            [_leaf(B, D).detach().sigmoid().requires_grad_(), _leaf(D, D), _leaf(D)],
        ),
        "nade": (
            lambda *parameters: F.nade_log_prob(bits, *parameters),
            [_leaf(L, D), _leaf(L), _leaf(D, L), _leaf(D)],
        ),
        "categorical nade": (
            lambda *parameters: F.nade_categorical_log_prob(index[:, :3], *parameters),
            [_leaf(L, 3, 6), _leaf(L), _leaf(3, 6, L), _leaf(3, 6)],
        ),
        "masked convolution": (
            lambda *layer: F.masked_conv2d(*layer, mask_type="A", data_channels=3),
            [_leaf(2, 3, 4, 5), _leaf(4, 3, 3, 3), _leaf(4)],
        ),
        "gate": (
            lambda x, bias, condition: F.gated_activation(x, bias=bias, condition=condition),
            [_leaf(2, 4, 3), _leaf(4), _leaf(2, 4)],
        ),
        "rnade": (mixture_nade, [_leaf(B, 3), _leaf(L, 3), _leaf(L), *heads, _leaf(3)]),
        "discriminator loss": (
            lambda real, fake: F.discriminator_loss(real, fake, "non_saturating"),
            [_leaf(B), _leaf(K, D)],
        ),
        "f-divergence": (
            lambda real, fake: F.f_divergence_loss(real, fake, "jeffrey"),
            [_leaf(B), _leaf(B)],
        ),
        "leaky relu": (lambda x: F.leaky_relu(x, 0.2), [_leaf(B, D)]),
        "bias and leaky relu": (
            lambda x, bias: F.bias_leaky_relu(x, bias, 0.2),
            [_leaf(B, D, L), _leaf(D)],
        ),
        "gradient penalty": (penalty, [_leaf(L, D), _leaf(1, L)]),
        "iwae": (iwae, [_leaf(B, K, D), _leaf(B, K, L), _leaf(B, L), _leaf(B, L)]),
        "dreg": (dreg, [_leaf(B, K, D), _leaf(B, L), _leaf(B, L), _leaf(L, D)]),
    }


@pytest.mark.parametrize("name", list(_calls()))
def test_backend_triton_matches_the_reference(name: str) -> None:
    call, args = _calls()[name]
    results: dict[str, tuple[Any, ...]] = {}
    for backend in ("triton", "reference"):
        with ops.backend(backend):
            out = call(*args)
            results[backend] = (out, *torch.autograd.grad(out.square().sum(), args))
    torch.testing.assert_close(results["triton"], results["reference"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        "bernoulli",
        "gaussian",
        "kl",
        "iwae",
        "logistic mixture",
        "gaussian mixture",
        "bernoulli head",
        "categorical head",
        "pixel head",
        "masked layer",
        "masked convolution",
        "gate",
        "fvsbn",
        "nade",
    ],
)
def test_second_derivatives(name: str) -> None:
    call, args = _calls()[name]
    results: dict[str, tuple[Any, ...]] = {}
    for backend in ("triton", "reference"):
        with ops.backend(backend):
            first = torch.autograd.grad(call(*args).sum(), args, create_graph=True)
            total = sum(g.square().sum() for g in first)
            results[backend] = torch.autograd.grad(total, args, allow_unused=True)
    torch.testing.assert_close(results["triton"], results["reference"], rtol=1e-11, atol=1e-11)


def test_the_kernels_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    launch = bernoulli.launch
    monkeypatch.setattr(
        bernoulli,
        "launch",
        lambda kernel, *args, **meta: (launched.append(kernel), launch(kernel, *args, **meta)),
    )
    call, args = _calls()["bernoulli"]
    with ops.backend("triton"):
        call(*args).sum().backward()
    assert launched == [
        bernoulli.bernoulli_log_prob_fwd_kernel,
        bernoulli.bernoulli_log_prob_bwd_kernel,
    ]
    call(*args)
    assert len(launched) == 2
