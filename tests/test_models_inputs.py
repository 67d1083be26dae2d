"""Latent-variable models: a bad argument gets an error that names it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dgm_fast.models import IWAE, VAE, BetaVAE
from dgm_fast.nn import MLP

D, L = 12, 3
X = torch.zeros(6, D)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: VAE(0, L), ValueError, "num_dims must be at least 1, got 0"),
        (lambda: VAE(D, 0), ValueError, "latent_dim"),
        (lambda: VAE(D, 2.5), TypeError, "latent_dim must be an int, got float"),
        (lambda: VAE(D, L, hidden_sizes=(0,)), ValueError, "hidden_sizes"),
        (lambda: VAE(D, L, context_dim=0), ValueError, "context_dim"),
        (lambda: VAE(D, L, likelihood="poisson"), ValueError, "likelihood.*'poisson'"),
        (lambda: VAE(D, L, likelihood="categorical"), ValueError, "num_classes is missing"),
        (
            lambda: VAE(D, L, likelihood="categorical", num_classes=1),
            ValueError,
            "num_classes must be at least 2",
        ),
        (lambda: VAE(D, L, num_classes=4), ValueError, "num_classes is for the categorical"),
        (lambda: VAE(D, L, decoder_variance="shared"), ValueError, "decoder_variance='shared'"),
        (
            lambda: VAE(D, L, likelihood="gaussian", decoder_variance="own"),
            ValueError,
            "decoder_variance must be one of .*'own'",
        ),
        (lambda: BetaVAE(D, L, beta=-1.0), ValueError, "beta"),
        (lambda: BetaVAE(D, L, beta=math.nan), ValueError, "beta"),
        (lambda: IWAE(D, L, num_samples=0), ValueError, "num_samples must be at least 1, got 0"),
        (lambda: IWAE(D, L, estimator="vimco"), ValueError, "estimator.*'vimco'"),
        (lambda: MLP(3, (4,), 0), ValueError, "out_features"),
    ],
)
def test_constructors(build: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.loss(torch.zeros(6, D + 1)), ValueError, r"x must have shape \[B, 12\]"),
        (lambda m: m.loss(torch.zeros(D)), ValueError, "x must have shape"),
        (lambda m: m.loss(torch.zeros(6, 3, 5)), ValueError, r"x must .* got \(6, 3, 5\)"),
        (lambda m: m.loss([[0.0] * D]), TypeError, "x must be a torch.Tensor, got list"),
        (lambda m: m.loss(X.to(torch.complex64)), TypeError, "x must be .* got torch.complex64"),
        (lambda m: m.loss(X.to("meta")), ValueError, "x is on meta"),
        (lambda m: m.loss(X + 2), ValueError, r"x must hold values in \[0, 1\]"),
        (lambda m: m.elbo(X - 1), ValueError, r"x must hold values in \[0, 1\]"),
        (lambda m: m.loss(X, context=torch.zeros(6, 2)), ValueError, "without context_dim"),
        (lambda m: m.iwae_bound(X, 0), ValueError, "num_samples must be at least 1, got 0"),
        (lambda m: m.iwae_bound(X, 2.0), TypeError, "num_samples must be an int"),
        (lambda m: m.iwae_bound(X, 3, estimator="x"), ValueError, "estimator"),
        (lambda m: m.iwae_bound(X, 3, noise=torch.zeros(6, 4, L)), ValueError, "noise .*6, 3, 3"),
        (lambda m: m.elbo(X, noise=torch.zeros(6, 1, L)), ValueError, "noise must have shape"),
        (lambda m: m.elbo(X, noise=torch.zeros(6, L).long()), TypeError, "noise must be a float"),
        (lambda m: m.log_prob(X, 0), ValueError, "num_samples must be at least 1"),
        (lambda m: m.log_prob(X, 5, chunk_size=0), ValueError, "chunk_size must be at least 1"),
        (lambda m: m.log_prob(X, 5, noise=torch.zeros(6, 4, L)), ValueError, "noise must have"),
        (lambda m: m.decode(torch.zeros(6, L + 1)), ValueError, "z must have shape"),
        (lambda m: m.decode(torch.zeros(L)), ValueError, "z must have shape"),
        (lambda m: m.decode(None), TypeError, "z must be a torch.Tensor"),
        (lambda m: m.log_likelihood(X, torch.zeros(5, L)), ValueError, "z has 5 rows"),
        (lambda m: m.sample(0), ValueError, "n must be at least 1"),
        (lambda m: m.sample(2, conditioned_on=(X, X > 0)), ValueError, "conditioned_on"),
        (lambda m: m.sample(2, noise=torch.zeros(2, L)), TypeError, "noise must be a pair"),
        (
            lambda m: m.sample(2, noise=(torch.zeros(3, L), torch.zeros(2, D))),
            ValueError,
            r"noise must have shape \(2, 3\)",
        ),
        (
            lambda m: m.sample(2, noise=(torch.zeros(2, L), torch.zeros(2, L))),
            ValueError,
            r"noise of x must have shape \(2, 12\)",
        ),
        (lambda m: m.interpolate(X, X, 1), ValueError, "steps must be at least 2"),
        (lambda m: m.interpolate(X, X, 4, "cubic"), ValueError, "mode must be one of"),
        (lambda m: m.interpolate(X, X[:3], 4), ValueError, "x2 must have the shape of x1"),
        (lambda m: m.interpolate(X, X[:, :4], 4), ValueError, "x2 must have shape"),
        (lambda m: m.init_output_bias(torch.zeros(D + 1)), ValueError, "data_mean"),
    ],
)
def test_methods(call: Callable[[VAE], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(VAE(D, L, hidden_sizes=(5,)))


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        (None, ValueError, "context is missing"),
        (torch.zeros(6, 3), ValueError, r"context must have shape .*got \(6, 3\)"),
        (torch.zeros(5, 2), ValueError, r"context must have shape .*\(6, 2\)"),
        (torch.zeros(6), ValueError, "context must have shape"),
        ([1.0, 2.0], TypeError, "context must be a torch.Tensor"),
        (torch.zeros(6, 2, device="meta"), ValueError, "context is on meta"),
    ],
)
def test_contexts(context: Any, error: type[Exception], message: str) -> None:
    model = VAE(D, L, hidden_sizes=(5,), context_dim=2)
    for call in (model.loss, model.encode, model.reconstruct):
        with pytest.raises(error, match=message):
            call(X, context=context)
    with pytest.raises(error, match=message):
        model.sample(6, context=context)
    with pytest.raises(error, match=message):
        model.decode(torch.zeros(6, 4, L), context=context)


def test_class_indices_out_of_range() -> None:
    model = VAE(D, L, hidden_sizes=(5,), likelihood="categorical", num_classes=3)
    for bad in (3, -1):
        with pytest.raises(ValueError, match="x must hold class indices"):
            model.loss(torch.full((6, D), bad))


class Returns(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: torch.Tensor) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("networks", "error", "message"),
    [
        ({"encoder": Returns(torch.zeros(6, L))}, ValueError, r"encoder must return .*\(6, 3\)"),
        ({"encoder": Returns(None)}, TypeError, "encoder must return a tensor or a pair"),
        (
            {"encoder": Returns((torch.zeros(6, L), torch.zeros(6, 1)))},
            ValueError,
            "encoder's log_var must be",
        ),
        ({"decoder": Returns(torch.zeros(6, D + 1))}, ValueError, "decoder must return"),
        ({"decoder": Returns(torch.zeros(5, D))}, ValueError, "decoder must return .*N = 6"),
        ({"decoder": Returns((X, X))}, TypeError, "decoder must return a tensor"),
        (
            {
                "decoder": Returns((X, X, X)),
                "likelihood": "gaussian",
                "decoder_variance": "full",
            },
            ValueError,
            "decoder must return a pair",
        ),
    ],
)
def test_networks_of_the_wrong_shape(
    networks: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        VAE(D, L, hidden_sizes=(5,), **networks).elbo(X)


def test_output_bias_of_a_custom_decoder() -> None:
    with pytest.raises(TypeError, match="init_output_bias needs the default decoder, got Linear"):
        VAE(D, L, decoder=nn.Linear(L, D)).init_output_bias(X[0])
