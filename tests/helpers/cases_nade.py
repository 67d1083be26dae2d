"""Cases of the NADE family."""

from __future__ import annotations

from collections.abc import Callable

import torch
from helpers.cases_likelihood import _generator, _randn
from helpers.op_checks import OpCase
from torch import Tensor

from dgm_fast import functional, reference

Build = Callable[[torch.dtype], tuple[Tensor, ...]]


def parameters(
    dtype: torch.dtype, generator: torch.Generator, *shapes: tuple[int, ...]
) -> list[Tensor]:
    """Normal; weights scaled with the root of their last size, so that logits do not grow with H."""
    return [
        _randn(shape, dtype, 0.5 if len(shape) < 2 else shape[-1] ** -0.5, generator)
        for shape in shapes
    ]


def binary_inputs(
    lead: tuple[int, ...],
    size: int,
    hidden: int,
    x_dtype: torch.dtype | None = None,
    soft: bool = False,
) -> Build:
    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        x = torch.rand((*lead, size), generator=generator, dtype=torch.float64)
        x = x if soft else (x < 0.4).double()
        weights = parameters(dtype, generator, (hidden, size), (hidden,), (size, hidden), (size,))
        return x.to(x_dtype or dtype), *weights

    return build


def categorical_inputs(
    lead: tuple[int, ...],
    size: int,
    hidden: int,
    classes: int,
    x_dtype: torch.dtype = torch.int64,
) -> Build:
    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        x = torch.randint(0, classes, (*lead, size), generator=generator).to(x_dtype)
        weights = parameters(
            dtype,
            generator,
            (hidden, size, classes),
            (hidden,),
            (size, classes, hidden),
            (size, classes),
        )
        return x, *weights

    return build


def mixture_inputs(
    lead: tuple[int, ...],
    size: int,
    hidden: int,
    mixtures: int,
    *,
    scaled: bool = False,
    uniform: bool = False,
    x_dtype: torch.dtype | None = None,
) -> Build:
    """(x, W, c, heads..., [activation scale])"""

    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        x = _randn((*lead, size), dtype, 1.0, generator)
        heads = ((size, mixtures, hidden), (size, mixtures)) * (2 if uniform else 3)
        weights = parameters(dtype, generator, (hidden, size), (hidden,), *heads)
        if scaled:
            weights.append(1.0 + _randn((size,), dtype, 0.3, generator))
        return x.to(x_dtype or dtype), *weights

    return build


def _binary(id: str, build: Build) -> OpCase:
    return OpCase(
        f"nade-{id}",
        "nade_log_prob",
        functional.nade_log_prob,
        _flattened(reference.nade_log_prob),
        build,
        (1, 2, 3, 4),
    )


def _categorical(id: str, build: Build) -> OpCase:
    return OpCase(
        f"nade-categorical-{id}",
        "nade_categorical_log_prob",
        functional.nade_categorical_log_prob,
        _flattened(reference.nade_categorical_log_prob),
        build,
        (1, 2, 3, 4),
    )


def _flattened(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(x: Tensor, *rest: Tensor) -> Tensor:
        return function(x.reshape(-1, x.shape[-1]), *rest).reshape(x.shape[:-1])

    return call


def _mixture_arguments(args: tuple[Tensor, ...], uniform: bool, scaled: bool) -> tuple[list, dict]:
    """Positional and keyword arguments of the density (without x) from (W, c, heads..., [scale])."""
    positional: list[Tensor | None] = list(args)
    scale = positional.pop() if scaled else None
    if uniform:
        positional[2:2] = [None, None]
    return positional, {"activation_scale": scale}


def _mixture(
    id: str,
    build: Build,
    *,
    mixture: str = "gaussian",
    uniform: bool = False,
    scaled: bool = False,
    grad_x: bool = True,
) -> OpCase:
    def ours(x: Tensor, *args: Tensor) -> Tensor:
        positional, keywords = _mixture_arguments(args, uniform, scaled)
        return functional.rnade_log_prob(
            x, *positional, mixture=mixture, uniform_weights=uniform, **keywords
        )

    def plain(x: Tensor, *args: Tensor) -> Tensor:
        positional, keywords = _mixture_arguments(args, uniform, scaled)
        call = _flattened(
            lambda x: reference.rnade_log_prob(x, *positional, mixture=mixture, **keywords)
        )
        return call(x)

    count = 3 + (4 if uniform else 6) + (1 if scaled else 0)
    return OpCase(
        f"rnade-{id}",
        "rnade_log_prob",
        ours,
        plain,
        build,
        tuple(range(0 if grad_x else 1, count)),
    )


def _with_noise(build: Build, condition: bool, event: tuple[int, ...] = ()) -> Build:
    """(W, c, ..., noise, [values, given]) from the inputs of a log-probability."""

    def sampling(dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, *weights = build(dtype)
        generator = _generator()
        uniform = torch.rand((*x.shape, *event), generator=generator, dtype=torch.float64)
        given = torch.rand(x.shape, generator=generator) < 0.4
        # Noise of reduced precision would round to 1.
        noise = uniform.to(torch.float64 if dtype == torch.float64 else torch.float32)
        return (*weights, noise, x, given) if condition else (*weights, noise)

    return sampling


def _sample(id: str, op: str, build: Build, condition: bool) -> OpCase:
    def ours(*args: Tensor) -> Tensor:
        weights, noise, rest = args[:4], args[4], args[5:]
        return getattr(functional, op)(
            *weights, noise.shape[0], noise=noise, conditioned_on=rest if condition else None
        )

    return OpCase(
        f"{op.replace('_', '-')}-{id}",
        op,
        ours,
        getattr(reference, op),
        _with_noise(build, condition),
        (),
    )


def _mixture_sample(
    id: str,
    build: Build,
    condition: bool,
    *,
    mixture: str = "gaussian",
    uniform: bool = False,
    scaled: bool = False,
) -> OpCase:
    def split(args: tuple[Tensor, ...]) -> tuple[list, dict, tuple[Tensor, ...]]:
        tail = 3 if condition else 1
        positional, keywords = _mixture_arguments(args[:-tail], uniform, scaled)
        return positional, keywords, args[-tail:]

    def ours(*args: Tensor) -> Tensor:
        positional, keywords, (noise, *rest) = split(args)
        return functional.rnade_sample(
            *positional,
            noise.shape[0],
            mixture=mixture,
            uniform_weights=uniform,
            noise=noise,
            conditioned_on=tuple(rest) if condition else None,
            **keywords,
        )

    def plain(*args: Tensor) -> Tensor:
        positional, keywords, rest = split(args)
        return reference.rnade_sample(*positional, *rest, mixture=mixture, **keywords)

    return OpCase(
        f"rnade-sample-{id}", "rnade_sample", ours, plain, _with_noise(build, condition, (2,)), ()
    )


# Sizes: below, at and across vector lanes, slices of hidden units, blocks of dimensions and shared rows;
# odd; one.
CASES = [
    _binary("rows", binary_inputs((3,), 5, 4)),
    _binary("blocks", binary_inputs((5,), 37, 19)),
    _binary("wide", binary_inputs((4,), 7, 70)),
    _binary("soft", binary_inputs((3,), 19, 9, soft=True)),
    _binary("uint8", binary_inputs((3,), 16, 8, torch.uint8)),
    _binary("bool", binary_inputs((9,), 5, 3, torch.bool)),
    _binary("int64", binary_inputs((3,), 5, 3, torch.int64)),
    _binary("vector", binary_inputs((), 5, 4)),
    _binary("batches", binary_inputs((2, 3), 5, 4)),
    _binary("one", binary_inputs((1,), 1, 1)),
    _categorical("rows", categorical_inputs((3,), 5, 4, 3)),
    _categorical("wide", categorical_inputs((6,), 3, 37, 6)),
    _categorical("blocks", categorical_inputs((2,), 19, 3, 2)),
    _categorical("uint8", categorical_inputs((3,), 4, 5, 3, torch.uint8)),
    _categorical("float-index", categorical_inputs((2, 2), 4, 5, 3, torch.float32)),
    _categorical("one-class", categorical_inputs((3,), 4, 5, 1)),
    _categorical("one", categorical_inputs((1,), 1, 1, 2)),
    _mixture("rows", mixture_inputs((3,), 5, 4, 3)),
    _mixture("wide", mixture_inputs((6,), 3, 37, 2)),
    _mixture("blocks", mixture_inputs((2,), 19, 3, 2)),
    _mixture("logistic", mixture_inputs((3,), 5, 4, 3), mixture="logistic"),
    _mixture("uniform", mixture_inputs((3,), 5, 4, 3, uniform=True), uniform=True),
    _mixture("scaled", mixture_inputs((5,), 6, 9, 2, scaled=True), scaled=True),
    _mixture(
        "logistic-uniform-scaled",
        mixture_inputs((2, 2), 4, 5, 2, uniform=True, scaled=True),
        mixture="logistic",
        uniform=True,
        scaled=True,
    ),
    _mixture("int64", mixture_inputs((3,), 4, 5, 2, x_dtype=torch.int64), grad_x=False),
    _mixture("one", mixture_inputs((1,), 1, 1, 1)),
    _sample("rows", "nade_sample", binary_inputs((5,), 7, 6), condition=False),
    _sample("given", "nade_sample", binary_inputs((19,), 6, 20), condition=True),
    _sample("rows", "nade_categorical_sample", categorical_inputs((5,), 7, 6, 3), condition=False),
    _sample("given", "nade_categorical_sample", categorical_inputs((6,), 5, 9, 4), condition=True),
    _mixture_sample("rows", mixture_inputs((5,), 4, 6, 3), condition=False),
    _mixture_sample(
        "given",
        mixture_inputs((5,), 4, 6, 3, uniform=True, scaled=True),
        condition=True,
        mixture="logistic",
        uniform=True,
        scaled=True,
    ),
]

# Several tiles of rows, parts of hidden units and threads.
LARGE = [
    _binary("large", binary_inputs((70,), 130, 300)),
    _binary("large-few-units", binary_inputs((150,), 50, 20)),
    _binary("large-soft", binary_inputs((70,), 50, 70, soft=True)),
    _categorical("large", categorical_inputs((70,), 40, 90, 7)),
    _mixture("large", mixture_inputs((70,), 40, 150, 5, scaled=True), scaled=True),
    _sample("large", "nade_sample", binary_inputs((70,), 40, 70), condition=True),
    _sample(
        "large", "nade_categorical_sample", categorical_inputs((40,), 20, 70, 9), condition=True
    ),
    _mixture_sample("large", mixture_inputs((40,), 12, 70, 4), condition=True),
]
