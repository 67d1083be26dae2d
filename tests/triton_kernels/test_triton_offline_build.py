"""Every Triton kernel compiles for the GPU targets, without spills, on a machine without a GPU."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("offline builds need compiled kernels", allow_module_level=True)

from helpers import offline_gpu

from dgm_fast import ops
from dgm_fast.functional import (
    AffineMap,
    BernoulliDraw,
    CategoricalDraw,
    ElementMap,
    MixtureDraw,
    SplineMap,
)

# Registers per thread: 64 leave room for 32 warps on a multiprocessor, 80 for 24, 128 for 16, 160 for 12,
# 224 for 8.
USUAL, WIDE, MANY, PRODUCT = 80, 128, 160, 224
# Samplers and recurrences run a few warps a multiprocessor.
INVERSE = 255

B, K, D, C, L, H = 128, 50, 784, 17, 50, 200


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _cases(dtype: torch.dtype) -> dict[str, tuple[Callable[[], Any], int]]:
    """name -> (launcher call, register bound)."""
    from dgm_fast.kernels import (
        adversarial,
        autoregressive,
        coupling,
        latent,
        likelihood,
        linear_head,
        masked,
        mixture,
        nade,
        pixel,
        pixel_lstm,
        spline,
    )

    def t(*shape: int) -> torch.Tensor:
        return _meta(*shape, dtype=dtype)

    def f(*shape: int) -> torch.Tensor:
        return _meta(*shape, dtype=torch.float32)

    x = _meta(B, 1, D, dtype=torch.uint8)
    index = _meta(B, 1, D, dtype=torch.int64)
    mean, log_var, z = t(B, L), t(B, L), t(B, K, L)
    yes, ten = [True] * 7, [True] * 10

    def bernoulli_head(mask: list[bool] | None = None) -> Any:
        args = t(B, K, H), t(D, H), t(D), x
        if mask is None:
            return linear_head.linear_bernoulli_log_prob_fwd(*args)
        return linear_head.linear_bernoulli_log_prob_bwd(f(B, K), *args, mask)

    def categorical_head(classes: int, packing: int, mask: list[bool] | None = None) -> Any:
        pixels = packing == 2
        rows = classes if pixels else classes * L
        h, data = (t(B, 64, D), index[:, 0]) if pixels else (t(B * K, 64), index[:1, 0, :L])
        args = h, t(rows, 64), t(rows), data, classes, packing
        if mask is None:
            return linear_head.linear_categorical_log_prob_fwd(*args)
        return linear_head.linear_categorical_log_prob_bwd(f(h.shape[0]), *args, mask)

    def logistic_mixture(channels: int, mixtures: int, backward: bool = False) -> Any:
        rows = (10 if channels == 3 else 3) * mixtures
        args = t(B, rows, 28, 28), t(B, channels, 28, 28), mixtures, 256, False
        if not backward:
            return mixture.discretized_logistic_mixture_log_prob_fwd(*args)
        return mixture.discretized_logistic_mixture_log_prob_bwd(f(B), *args, [True])

    def gaussian_mixture(components: int, size: int, mask: list[bool] | None = None) -> Any:
        args = t(B, K, size), t(components, size), t(components, size), t(components)
        if mask is None:
            return mixture.gaussian_mixture_log_prob_fwd(*args)
        return mixture.gaussian_mixture_log_prob_bwd(f(B, K), f(B, K), *args, mask)

    def masked_layer(rows: int, inputs: int, outputs: int, mask: list[bool] | None = None) -> Any:
        order = _meta(inputs, dtype=torch.int64), _meta(outputs, dtype=torch.int64)
        args = t(rows, inputs), t(outputs, inputs), t(outputs), *order, None, False
        if mask is None:
            return masked.masked_linear_fwd(*args)
        return masked.masked_linear_bwd(t(rows, outputs), *args, mask)

    heads = [t(63, 10, 500), t(63, 10)] * 3
    densities: dict[str, tuple[Any, ...]] = {
        "nade": (x[:64, 0], t(500, D), t(500), t(D, 500), t(D)),
        "nade_categorical": (index[:, 0, :64], t(500, 64, C), t(500), t(64, C, 500), t(64, C)),
        "rnade": (t(B, 63), t(500, 63), t(500), *heads, t(63), 0),
    }
    densities["logistic rnade"] = *densities["rnade"][:-1], 1

    def density(kind: str, mask: list[bool] | None = None) -> Any:
        args, op = densities[kind], kind.split()[-1]
        if mask is None:
            return getattr(nade, f"{op}_log_prob_fwd")(*args)
        rows, size = args[0].shape
        outputs = {"nade": (), "nade_categorical": (C,)}.get(kind, (30,))
        saved = f(rows), f(rows, size, *outputs)
        return getattr(nade, f"{op}_log_prob_bwd")(f(rows), *saved, *args, mask)

    def samples(kind: str, rows: int, hidden: int | None = None) -> Any:
        args, op = densities[kind][1:], kind.split()[-1]
        if hidden is not None:
            args = t(hidden, D), t(hidden), t(D, hidden), t(D)
        noise = f(rows, args[0].shape[1], *((2,) if op == "rnade" else ()))
        values = _meta(*noise.shape[:2], dtype=dtype)
        given = _meta(*noise.shape[:2], dtype=torch.bool)
        code = args[-1:] if op == "rnade" else ()
        args = args[: len(args) - len(code)]
        return getattr(nade, f"{op}_sample_fwd")(*args, noise, values, given, *code)

    def rational_spline(bins: int, inverse: bool, mask: list[bool] | None = None) -> Any:
        x, parameters = t(B, D), (t(B, D, bins), t(B, D, bins), t(B, D, bins - 1))
        options = (None, inverse, 0, True, -3.0, 3.0, -3.0, 3.0, 1e-3, 1e-3, 1e-3, 0, True)
        if mask is None:
            return spline.rational_quadratic_spline_fwd(x, *parameters, *options)
        return spline.rational_quadratic_spline_bwd(t(B, D), f(B), x, *parameters, *options, mask)

    def logistic_cdf(components: int, inverse: bool, mask: list[bool] | None = None) -> Any:
        x, parameters = t(B, D), [t(B, D, components) for _ in range(3)]
        if mask is None:
            return spline.logistic_mixture_cdf_fwd(x, *parameters, inverse)
        return spline.logistic_mixture_cdf_bwd(t(B, D), f(B, D), x, x, *parameters, inverse, mask)

    def affine(scale: int, inverse: bool, mask: list[bool] | None = None) -> Any:
        args = t(B, D), t(B, D), t(B, D), None, inverse, 1, scale, 2.0
        if mask is None:
            return coupling.affine_coupling_fwd(*args)
        return coupling.affine_coupling_bwd(t(B, D), f(B), *args, mask)

    def actnorm(mask: list[bool] | None = None) -> Any:
        args = t(B, 48, 16, 16), t(48), t(48), False
        if mask is None:
            return coupling.actnorm_fwd(*args)
        return coupling.actnorm_bwd(t(B, 48, 16, 16), *args, mask)

    def convolution(channels: int, mask: list[bool] | None = None) -> Any:
        args = t(64, channels, 28, 28), t(64, channels, 7, 7), t(64), 1, 1, 0, 1
        if mask is None:
            return pixel.masked_conv2d_fwd(*args)
        return pixel.masked_conv2d_bwd(t(64, 64, 28, 28), *args, mask)

    def gate(last: bool, mask: list[bool] | None = None) -> Any:
        x = t(64, 28, 28, 128).permute(0, 3, 1, 2) if last else t(64, 128, 28, 28)
        args = x, t(128), t(64, 128, 1, 1), 1
        if mask is None:
            return pixel.gated_activation_fwd(*args)
        return pixel.gated_activation_bwd(t(64, 64, 28, 28), *args, mask)

    def image_lstm(kind: str, units: int, width: int, mask: list[bool] | None = None) -> Any:
        # Wide layers take a launch a step.
        height = 28 if units < 256 else 2
        args = t(16, 4 * units, height, width), t(4 * units, units, 3 if kind == "row" else 2)
        if mask is None:
            return getattr(pixel_lstm, f"{kind}_lstm_fwd")(*args)
        grad, pixels = t(16, units, height, width), (16, height, width)
        saved = t(*grad.shape), f(*pixels, 4 * units), f(*pixels, units)
        return getattr(pixel_lstm, f"{kind}_lstm_bwd")(grad, *saved, *args, mask)

    def inverse(transform: ElementMap, rows: int, size: int, *hidden: int) -> Any:
        classes = transform.num_classes if isinstance(transform, CategoricalDraw) else 1
        widths = (size * classes, *hidden, size * transform.params_per_dim)
        noise = () if transform.noise_per_dim == 1 else (transform.noise_per_dim,)
        return autoregressive.autoregressive_inverse_fwd(
            f(rows, size, *noise),
            [t(n, m) for m, n in pairwise(widths)],
            [t(n) for n in widths[1:]],
            [_meta(n, dtype=torch.int64) for n in hidden],
            [],
            _meta(size, dtype=torch.int64),
            ops.ACTIVATIONS["elu"],
            1.0,
            *transform.kernel(),
            t(rows, size),
            _meta(rows, size, dtype=torch.bool),
        )

    def adjoint(rows: int, size: int, *hidden: int) -> Any:
        widths = (2 * size, *hidden, size)
        return autoregressive.autoregressive_inverse_fwd(
            f(rows, size, 4),
            [t(n, m) for m, n in pairwise(widths)],
            [t(n) for n in widths[1:]],
            [_meta(n, dtype=torch.int64) for n in hidden],
            [f(rows, n) for n in hidden],
            None,
            ops.ACTIVATIONS["identity"],
            0.0,
            ops.ELEMENT_MAPS["adjoint"],
            [],
            [],
            False,
            None,
            None,
        )

    def loss(real: int, fake: int, size: int = 256, alpha: float = 0.5) -> Any:
        outputs = t(size, 1), t(size, 1)
        return adversarial.adversarial_loss_fwd(*outputs, fake, -real, alpha, 0.3)

    def norm_penalty(backward: bool = False) -> Any:
        args = t(64, 3, 64, 64), 10.0, 1.0, True
        if not backward:
            return adversarial.norm_penalty_fwd(*args)
        return adversarial.norm_penalty_bwd(f(), f(), f(64), *args, yes[:1])

    def activation(bias: bool, shape: tuple[int, ...], mask: list[bool] | None = None) -> Any:
        op, args = ("bias_leaky_relu", (t(shape[1]), 0.2)) if bias else ("leaky_relu", (0.2,))
        if mask is None:
            return getattr(adversarial, f"{op}_fwd")(t(*shape), *args)
        return getattr(adversarial, f"{op}_bwd")(t(*shape), t(*shape), t(*shape), *args, mask)

    def bound(code: int, out: torch.Tensor, log_var_out: Any, data: torch.Tensor) -> Any:
        return latent.iwae_bound_fwd(
            out, log_var_out, data[:, 0], z, mean, log_var, None, code, False
        )

    return {
        "bernoulli": (lambda: likelihood.bernoulli_log_prob_fwd(t(B, K, D), x, 1), USUAL),
        "bernoulli backward": (
            lambda: likelihood.bernoulli_log_prob_bwd(f(B, K), t(B, K, D), x, 1, [True, False]),
            USUAL,
        ),
        "bernoulli backward to x": (
            lambda: likelihood.bernoulli_log_prob_bwd(
                f(B, K), t(B, K, D), t(B, 1, D), 1, [True, True]
            ),
            USUAL,
        ),
        "gaussian": (
            lambda: likelihood.gaussian_log_prob_fwd(t(B, 1, D), t(B, K, D), t(B, K, D), 1),
            USUAL,
        ),
        "gaussian backward": (
            lambda: likelihood.gaussian_log_prob_bwd(
                f(B, K), t(B, 1, D), t(B, K, D), t(D), 1, [False, True, True]
            ),
            WIDE,
        ),
        "categorical": (
            lambda: likelihood.categorical_log_prob_fwd(t(B * K, C, D), index[:1, 0], 1, 1),
            WIDE,
        ),
        "categorical backward": (
            lambda: likelihood.categorical_log_prob_bwd(
                f(B), t(B, 256, D), index[:, 0], 1, 1, [True]
            ),
            WIDE,
        ),
        "categorical, classes last": (
            lambda: likelihood.categorical_log_prob_bwd(
                f(B), t(B, D, 256), index[:, 0], 2, 1, [True]
            ),
            WIDE,
        ),
        "bernoulli head": (bernoulli_head, WIDE),
        "bernoulli head backward": (lambda: bernoulli_head([True] * 3 + [False]), WIDE),
        "categorical head": (lambda: categorical_head(C, 0), PRODUCT),
        "categorical head backward": (lambda: categorical_head(C, 0, yes[:3]), PRODUCT),
        "pixel head": (lambda: categorical_head(256, 2), PRODUCT),
        "pixel head backward": (lambda: categorical_head(256, 2, yes[:3]), PRODUCT),
        "head of many classes": (lambda: categorical_head(1000, 1), PRODUCT),
        "head of many classes backward": (lambda: categorical_head(1000, 1, yes[:3]), PRODUCT),
        "logistic mixture": (lambda: logistic_mixture(3, 10), WIDE),
        "logistic mixture backward": (lambda: logistic_mixture(3, 10, True), WIDE),
        "logistic mixture, many": (lambda: logistic_mixture(3, 40, True), WIDE),
        "logistic mixture, grey": (lambda: logistic_mixture(1, 5, True), USUAL),
        "gaussian mixture": (lambda: gaussian_mixture(500, 10), WIDE),
        "gaussian mixture backward": (lambda: gaussian_mixture(500, 10, yes[:4]), WIDE),
        "gaussian mixture backward, few": (lambda: gaussian_mixture(3, 2, yes[:4]), USUAL),
        "gaussian mixture backward, long": (lambda: gaussian_mixture(20, 300, yes[:4]), WIDE),
        "masked layer": (lambda: masked_layer(64, D, 500), PRODUCT),
        "masked layer backward": (lambda: masked_layer(64, D, 500, yes[:3]), PRODUCT),
        "wide masked layer": (lambda: masked_layer(100, 8000, 8000), PRODUCT),
        "wide masked layer backward": (lambda: masked_layer(100, 8000, 8000, yes[:3]), PRODUCT),
        "masked layer, many rows": (lambda: masked_layer(10000, D, 500, yes[:3]), PRODUCT),
        "fvsbn": (lambda: masked.fvsbn_log_prob_fwd(x[:64, 0], t(D, D), t(D)), PRODUCT),
        "fvsbn backward": (
            lambda: masked.fvsbn_log_prob_bwd(
                f(64), f(64), f(64, D), x[:64, 0], t(D, D), t(D), [False, True, True]
            ),
            PRODUCT,
        ),
        "nade": (lambda: density("nade"), WIDE),
        "nade backward": (lambda: density("nade", yes[:4]), PRODUCT),
        "categorical nade": (lambda: density("nade_categorical"), WIDE),
        "categorical nade backward": (lambda: density("nade_categorical", yes[:4]), PRODUCT),
        "rnade": (lambda: density("rnade"), WIDE),
        "rnade backward": (lambda: density("rnade", ten), PRODUCT),
        "rnade, logistic": (lambda: density("logistic rnade"), WIDE),
        "rnade backward, logistic": (lambda: density("logistic rnade", ten), PRODUCT),
        "nade samples": (lambda: samples("nade", 64), USUAL),
        "nade samples, many": (lambda: samples("nade", 4096), WIDE),
        "nade samples, units in memory": (lambda: samples("nade", 64, 9000), WIDE),
        "categorical nade samples": (lambda: samples("nade_categorical", 64), WIDE),
        "rnade samples": (lambda: samples("rnade", 64), WIDE),
        "rnade samples, logistic": (lambda: samples("logistic rnade", 64), WIDE),
        "spline": (lambda: rational_spline(8, False), MANY),
        "spline inverse": (lambda: rational_spline(8, True), MANY),
        "spline backward": (lambda: rational_spline(8, False, yes[:4]), WIDE),
        "spline inverse backward": (lambda: rational_spline(8, True, yes[:4]), WIDE),
        "spline backward, many bins": (lambda: rational_spline(32, False, yes[:4]), WIDE),
        "mixture CDF": (lambda: logistic_cdf(32, False), WIDE),
        "mixture quantile": (lambda: logistic_cdf(32, True), WIDE),
        "mixture CDF backward": (lambda: logistic_cdf(32, False, yes[:4]), WIDE),
        "mixture quantile backward": (lambda: logistic_cdf(8, True, yes[:4]), WIDE),
        "affine": (lambda: affine(0, False), USUAL),
        "affine, tanh": (lambda: affine(3, True), WIDE),
        "affine backward": (lambda: affine(4, True, yes[:3]), WIDE),
        "actnorm": (actnorm, USUAL),
        "actnorm backward": (lambda: actnorm(yes[:3]), USUAL),
        "masked convolution": (lambda: convolution(64), PRODUCT),
        "masked convolution backward": (lambda: convolution(64, yes[:3]), PRODUCT),
        "first masked convolution": (lambda: convolution(1), PRODUCT),
        "gate": (lambda: gate(False), USUAL),
        "gate, channels last": (lambda: gate(True), USUAL),
        "gate backward": (lambda: gate(False, yes[:3]), WIDE),
        "gate backward, channels last": (lambda: gate(True, yes[:3]), WIDE),
        "row lstm": (lambda: image_lstm("row", 16, 28), INVERSE),
        "row lstm backward": (lambda: image_lstm("row", 16, 28, yes[:2]), INVERSE),
        "wide row lstm": (lambda: image_lstm("row", 256, 64), INVERSE),
        "wide row lstm backward": (lambda: image_lstm("row", 256, 64, yes[:2]), INVERSE),
        "diagonal lstm": (lambda: image_lstm("diagonal", 16, 28), INVERSE),
        "diagonal lstm backward": (lambda: image_lstm("diagonal", 16, 28, yes[:2]), INVERSE),
        "made samples": (lambda: inverse(BernoulliDraw(), 16, D, 500), INVERSE),
        "made samples, classes": (lambda: inverse(CategoricalDraw(C), 64, 64, 500), INVERSE),
        "made samples, mixture": (lambda: inverse(MixtureDraw(10), 64, 63, 500, 500), INVERSE),
        "made samples, logistics": (lambda: inverse(MixtureDraw(5, "logistic"), 64, 63), INVERSE),
        "affine flow": (lambda: inverse(AffineMap("softplus"), 256, 64, 256, 256), INVERSE),
        "affine flow backward": (lambda: adjoint(256, 64, 256, 256), INVERSE),
        "spline flow": (lambda: inverse(SplineMap(8, inverse=True), 256, 64, 256, 256), INVERSE),
        "loss": (lambda: loss(3, 2), USUAL),
        "loss of a map": (lambda: loss(3, 2, 1 << 22), USUAL),
        "loss, Jeffrey": (lambda: loss(14, 25), WIDE),
        "loss, alpha": (lambda: loss(18, 29, alpha=1.5), WIDE),
        "loss backward": (
            lambda: adversarial.adversarial_loss_bwd(
                f(), f(), f(256, 1), f(256, 1), t(256, 1), t(256, 1), 1, 1, 2.0, 0.5, yes[:2]
            ),
            USUAL,
        ),
        "interpolation": (
            lambda: adversarial.interpolate_fwd(t(64, 3, 64, 64), t(64, 3, 64, 64), f(64)),
            USUAL,
        ),
        "norm penalty": (norm_penalty, WIDE),
        "norm penalty backward": (lambda: norm_penalty(True), USUAL),
        "leaky relu": (lambda: activation(False, (B, 64, 14, 14)), USUAL),
        "leaky relu backward": (lambda: activation(False, (B, 64, 14, 14), yes[:1]), USUAL),
        "bias and leaky relu": (lambda: activation(True, (B, 64, 14, 14)), USUAL),
        "bias and leaky relu backward": (
            lambda: activation(True, (B, 64, 14, 14), yes[:2]),
            WIDE,
        ),
        "bias and leaky relu backward, rows": (lambda: activation(True, (B, 512), yes[:2]), WIDE),
        "kl": (lambda: latent.gaussian_kl_fwd(mean, log_var, t(L), t(L), 1), WIDE),
        "kl backward": (
            lambda: latent.gaussian_kl_bwd(f(B), mean, log_var, t(L), t(L), 1, yes[:4]),
            WIDE,
        ),
        "reparameterize": (lambda: latent.reparameterize_fwd(mean, log_var, z), USUAL),
        "reparameterize backward": (
            lambda: latent.reparameterize_bwd(z, mean, log_var, z, [True, True]),
            USUAL,
        ),
        "log_mean_exp": (lambda: latent.log_mean_exp_fwd(t(B, K), 1), USUAL),
        "log_mean_exp backward": (
            lambda: latent.log_mean_exp_bwd(f(B), f(B), t(B, K), 1, [True]),
            USUAL,
        ),
        "elbo": (
            lambda: latent.elbo_fwd(t(B, D), t(B, D), t(B, D), mean, log_var, 1, 0.5),
            WIDE,
        ),
        "iwae, bernoulli": (lambda: bound(0, t(B, K, D), None, x), WIDE),
        "iwae, gaussian": (lambda: bound(1, t(B, K, D), t(D), t(B, 1, D)), WIDE),
        "iwae, categorical": (lambda: bound(2, t(B, K, C, D), None, index), WIDE),
        "iwae backward": (
            lambda: latent.iwae_bound_bwd(
                f(B),
                f(B),
                f(B, K),
                t(B, K, D),
                None,
                x[:, 0],
                z,
                mean,
                log_var,
                None,
                0,
                False,
                [False] * 3 + [True] * 3 + [False],
            ),
            WIDE,
        ),
    }


CASES = list(_cases(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_builds_without_spills(name: str, dtype: torch.dtype, pytestconfig: pytest.Config) -> None:
    call, registers = _cases(dtype)[name]
    builds = offline_gpu.build(call)
    assert builds
    pytestconfig.stash.setdefault(offline_gpu.BUILDS, []).append((f"{name}, {dtype}", builds))
    for b in builds:
        assert b.stack == 0, f"{b.kernel} spills {b.stack} bytes on sm_{b.target}"
        assert b.registers <= registers, f"{b.kernel}: {b.registers} registers on sm_{b.target}"


def test_every_kernel_is_built() -> None:
    launched = {
        launch.kernel.fn.__name__
        for call, _ in _cases(torch.float32).values()
        for launch in offline_gpu.record(call)
    }
    assert offline_gpu.kernels_of("dgm_fast.kernels") == launched


def test_every_op_of_a_family_with_kernels_has_launchers() -> None:
    if ops.active_isa() is None:
        pytest.skip("the C++ extension is not built")
    for name, spec in ops.SPECS.items():
        if spec.family in ops.WITHOUT_TRITON:
            continue
        module = importlib.import_module(f"dgm_fast.kernels.{spec.family}")
        suffixes = ["fwd", "bwd"] if ops.differentiable_arguments(name) else ["fwd"]
        assert all(hasattr(module, f"{name}_{suffix}") for suffix in suffixes), name
