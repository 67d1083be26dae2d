"""Cases of the adversarial family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers.cases_likelihood import _generator, _randn
from helpers.op_checks import OpCase
from torch import Tensor

from dgm_fast import functional, ops, reference
from dgm_fast.reference import adversarial as formulas

Build = Callable[[torch.dtype], tuple[Tensor, ...]]
KINDS = tuple(formulas.DISCRIMINATOR_TERMS)
# Rows of f-GAN with the options that change them.
ROWS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in formulas.DIVERGENCES if name != "alpha"),
    ("weighted_jensen_shannon", {"pi": 0.2}),
    *(("alpha", {"alpha": alpha}) for alpha in (-1.0, 0.5, 1.5, 2.0)),
]


def tensors(*shapes: tuple[int, ...], scale: float = 1.0, memory_format: Any = None) -> Build:
    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        made = [_randn(shape, dtype, scale, generator) for shape in shapes]
        if memory_format is not None:
            made = [t.contiguous(memory_format=memory_format) if t.ndim == 4 else t for t in made]
        return tuple(made)

    return build


def _loss(kind: str, build: Build, suffix: str = "") -> OpCase:
    return OpCase(
        f"discriminator-{kind}{suffix}",
        "adversarial_loss",
        lambda real, fake: functional.discriminator_loss(real, fake, kind),
        lambda real, fake: reference.discriminator_loss(real, fake, kind),
        build,
        (0, 1),
    )


def _generator_loss(kind: str, build: Build) -> OpCase:
    return OpCase(
        f"generator-{kind}",
        "adversarial_loss",
        lambda fake: functional.generator_loss(fake, kind),
        lambda fake: reference.generator_loss(fake, kind),
        build,
        (0,),
    )


def _divergence(name: str, options: dict[str, Any], build: Build, suffix: str = "") -> OpCase:
    label = "-".join([name, *(f"{v}" for v in options.values())])
    return OpCase(
        f"f-{label}{suffix}",
        "adversarial_loss",
        lambda real, fake: functional.f_divergence_loss(real, fake, name, **options),
        lambda real, fake: reference.f_divergence_loss(real, fake, name, **options),
        build,
        (0, 1),
    )


def _divergence_generator(name: str, form: str, options: dict[str, Any], build: Build) -> OpCase:
    label = "-".join([name, form, *(f"{v}" for v in options.values())])
    return OpCase(
        f"f-generator-{label}",
        "adversarial_loss",
        lambda fake: functional.f_divergence_generator_loss(fake, name, form=form, **options),
        lambda fake: reference.f_divergence_generator_loss(fake, name, form=form, **options),
        build,
        (0,),
    )


def _penalty(
    id: str, build: Build, center: float = 1.0, one_sided: bool = False, weight: float = 10.0
) -> OpCase:
    def ours(gradient: Tensor) -> Tensor:
        if not ops.use_kernel(gradient, "adversarial"):
            return plain(gradient)
        return ops.norm_penalty(gradient, weight, center, one_sided)[0]

    def plain(gradient: Tensor) -> Tensor:
        return reference.norm_penalty(gradient, weight, center, one_sided)[0]

    return OpCase(f"penalty-{id}", "norm_penalty", ours, plain, build, (0,))


def _interpolation(id: str, build: Build) -> OpCase:
    def with_eps(dtype: torch.dtype) -> tuple[Tensor, ...]:
        real, fake = build(dtype)
        eps = torch.rand(real.shape[0], generator=_generator(), dtype=torch.float64)
        return real, fake, eps.to(torch.float64 if dtype == torch.float64 else torch.float32)

    def ours(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
        if not ops.use_kernel(real, "adversarial"):
            return reference.interpolate(real, fake, eps)
        return ops.interpolate(real, fake, eps)

    return OpCase(f"interpolate-{id}", "interpolate", ours, reference.interpolate, with_eps, ())


def _activation(id: str, slope: float, build: Build) -> OpCase:
    return OpCase(
        f"leaky-relu-{id}",
        "leaky_relu",
        lambda x: functional.leaky_relu(x, slope),
        lambda x: reference.leaky_relu(x, slope),
        build,
        (0,),
    )


def _bias_activation(id: str, slope: float, build: Build) -> OpCase:
    return OpCase(
        f"bias-leaky-relu-{id}",
        "bias_leaky_relu",
        lambda x, bias: functional.bias_leaky_relu(x, bias, slope),
        lambda x, bias: reference.bias_leaky_relu(x, bias, slope),
        build,
        (0, 1),
    )


LAST = torch.channels_last
CASES = [
    *(_loss(kind, tensors((5,), (7,), scale=2.0)) for kind in ("minimax", "wasserstein")),
    *(_loss(kind, tensors((37, 1), (33, 1), scale=2.0)) for kind in ("hinge", "least_squares")),
    _loss("non_saturating", tensors((2, 1, 5, 4), (3, 1, 5, 4)), "-map"),
    _loss("kl", tensors((1,), (1,)), "-one"),
    *(_generator_loss(kind, tensors((19,))) for kind in KINDS),
    *(_divergence(name, options, tensors((6,), (9,))) for name, options in ROWS),
    _divergence_generator("kl", "theoretical", {}, tensors((6,))),
    _divergence_generator("jeffrey", "theoretical", {}, tensors((21,))),
    _divergence_generator("reverse_kl", "practical", {}, tensors((6,))),
    _divergence_generator("alpha", "practical", {"alpha": 0.5}, tensors((6,))),
    _penalty("rows", tensors((3, 5))),
    _penalty("images", tensors((2, 3, 5, 4))),
    _penalty("channels-last", tensors((2, 3, 5, 4), memory_format=LAST)),
    _penalty("one-sided", tensors((7, 4), scale=0.6), one_sided=True),
    _penalty("zero-centred", tensors((4, 19)), center=0.0),
    _penalty("half", tensors((4, 19)), center=0.5, weight=2.5),
    _penalty("vector", tensors((5, 1))),
    _penalty("one", tensors((1, 1))),
    _interpolation("rows", tensors((3, 5), (3, 5))),
    _interpolation("images", tensors((2, 3, 5, 4), (2, 3, 5, 4))),
    _interpolation("one", tensors((1, 1), (1, 1))),
    _activation("rows", 0.2, tensors((3, 5))),
    _activation("relu", 0.0, tensors((37,))),
    _activation("linear", 1.0, tensors((3, 5))),
    _activation("channels-last", 0.2, tensors((2, 3, 5, 4), memory_format=LAST)),
    _bias_activation("rows", 0.2, tensors((5, 19), (19,))),
    _bias_activation("relu", 0.0, tensors((3, 4), (4,))),
    _bias_activation("images", 0.2, tensors((2, 3, 5, 4), (3,))),
    _bias_activation("channels-last", 0.2, tensors((2, 3, 5, 4), (3,), memory_format=LAST)),
    _bias_activation("one", 0.2, tensors((1, 1), (1,))),
]

# Several blocks of sums and threads.
LARGE = [
    _divergence("jensen_shannon", {}, tensors((70_000,), (50_000,), scale=3.0), "-large"),
    _penalty("large", tensors((70, 5000), scale=0.02)),
    _interpolation("large", tensors((70, 5000), (70, 5000))),
    _activation("large", 0.2, tensors((70, 5000))),
    _bias_activation("large", 0.2, tensors((700, 300), (300,))),
    _bias_activation("large-images", 0.2, tensors((8, 16, 60, 50), (16,))),
]
