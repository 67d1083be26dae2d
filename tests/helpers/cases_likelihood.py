"""Cases of the likelihood family."""

from __future__ import annotations

from dataclasses import replace

import torch
from helpers.op_checks import OpCase
from torch import Tensor

from dgm_fast import functional, reference


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def randn(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return _randn(shape, dtype, scale, _generator())


def _randn(
    shape: tuple[int, ...], dtype: torch.dtype, scale: float, generator: torch.Generator
) -> Tensor:
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def bernoulli_inputs(
    logits_shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    x_dtype: torch.dtype | None = None,
    soft: bool = False,
):
    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        logits = _randn(logits_shape, dtype, 3.0, generator)
        x = torch.rand(x_shape, generator=generator, dtype=torch.float64)
        x = x if soft else (x < 0.4).double()
        return logits, x.to(x_dtype or dtype)

    return build


def gaussian_inputs(*shapes: tuple[int, ...]):
    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        return tuple(_randn(shape, dtype, 1.0, generator) for shape in shapes)

    return build


def categorical_inputs(
    logits_shape: tuple[int, ...], x_shape: tuple[int, ...], x_dtype: torch.dtype, classes: int
):
    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        logits = _randn(logits_shape, dtype, 3.0, generator)
        return logits, torch.randint(0, classes, x_shape, generator=generator).to(x_dtype)

    return build


def _bernoulli(id: str, build, grads=(0, 1), **options) -> OpCase:
    return OpCase(
        f"bernoulli-{id}",
        "bernoulli_log_prob",
        lambda logits, x: functional.bernoulli_log_prob(logits, x, **options),
        lambda logits, x: reference.bernoulli_log_prob(logits, x, **options),
        build,
        grads,
    )


def _gaussian(id: str, *shapes: tuple[int, ...], **options) -> OpCase:
    return OpCase(
        f"gaussian-{id}",
        "gaussian_log_prob",
        lambda *args: functional.gaussian_log_prob(*args, **options),
        lambda *args: reference.gaussian_log_prob(*args, **options),
        gaussian_inputs(*shapes),
        tuple(range(len(shapes))),
    )


def _gaussian_float_data(id: str, *shapes: tuple[int, ...]) -> OpCase:
    """Parameters of reduced precision beside data in float32."""
    case = _gaussian(id, *shapes)

    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, *parameters = case.build(dtype)
        return x.to(torch.promote_types(dtype, torch.float32)), *parameters

    return replace(case, build=build)


def _categorical(
    id: str,
    logits_shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    x_dtype: torch.dtype = torch.int64,
    **options,
) -> OpCase:
    classes = logits_shape[options.get("class_dim", 1)]
    return OpCase(
        f"categorical-{id}",
        "categorical_log_prob",
        lambda logits, x: functional.categorical_log_prob(logits, x, **options),
        lambda logits, x: reference.categorical_log_prob(logits, x, **options),
        categorical_inputs(logits_shape, x_shape, x_dtype, classes),
        (0,),
    )


# Sizes: below, at and across vector lanes and unrolled blocks; odd; one; several blocks of classes.
CASES = [
    _bernoulli("rows", bernoulli_inputs((3, 5), (3, 5))),
    _bernoulli("soft", bernoulli_inputs((2, 37), (2, 37), soft=True)),
    _bernoulli("samples", bernoulli_inputs((3, 4, 33), (3, 1, 33))),
    _bernoulli("event-only", bernoulli_inputs((3, 2, 7), (7,))),
    _bernoulli("image", bernoulli_inputs((2, 3, 4, 5), (2, 3, 4, 5)), event_ndim=3),
    _bernoulli("elementwise", bernoulli_inputs((4, 3), (4, 3)), event_ndim=0),
    _bernoulli("uint8", bernoulli_inputs((3, 40), (3, 40), torch.uint8), grads=(0,)),
    _bernoulli("bool", bernoulli_inputs((3, 17), (3, 17), torch.bool), grads=(0,)),
    _bernoulli("int64", bernoulli_inputs((3, 17), (3, 17), torch.int64), grads=(0,)),
    _bernoulli("one", bernoulli_inputs((1, 1), (1, 1))),
    _bernoulli("shared-logits", bernoulli_inputs((1, 19), (4, 19))),
    _gaussian("unit", (3, 5), (3, 5)),
    _gaussian("own", (3, 37), (3, 37), (3, 37)),
    _gaussian("shared", (4, 21), (21,), (21,)),
    _gaussian_float_data("float-data", (3, 37), (3, 37), (3, 37)),
    _gaussian_float_data("shared-float-data", (19,), (4, 19), (19,)),
    _gaussian("scalar", (4, 21), (), ()),
    _gaussian("samples", (3, 1, 18), (3, 4, 18), (18,)),
    _gaussian("row-variance", (3, 9), (3, 9), (3, 1)),
    _gaussian("prior", (3, 4, 6), ()),
    _gaussian("image", (2, 3, 4), (2, 3, 4), (3, 4), event_ndim=2),
    _gaussian("elementwise", (5, 3), (5, 3), (5, 3), event_ndim=0),
    _categorical("columns", (3, 17, 6), (3, 6)),
    _categorical("wide", (2, 35, 19), (2, 19)),
    _categorical("last", (3, 5, 19), (3, 5), class_dim=2),
    _categorical("last-summed", (3, 5, 40), (3, 5), class_dim=2, event_ndim=1),
    _categorical("image", (2, 5, 3, 4), (2, 3, 4)),
    _categorical("rows-of-image", (2, 5, 3, 4), (2, 3, 4), event_ndim=1),
    _categorical("elementwise", (2, 5, 3, 4), (2, 3, 4), event_ndim=0),
    _categorical("samples", (3, 4, 6, 5), (3, 1, 5), torch.uint8, class_dim=2, event_ndim=1),
    _categorical("event-only", (3, 6, 5), (5,), torch.int32),
    _categorical("float-index", (3, 6, 5), (3, 5), torch.float32),
    _categorical("one-class", (3, 1, 5), (3, 5)),
    _categorical("one", (1, 2, 1), (1, 1)),
]

# Rows long enough for unrolled loops, several runs of the product of factors, and threads.
LARGE = [
    _bernoulli("large", bernoulli_inputs((64, 1000), (64, 1000))),
    _bernoulli("long", bernoulli_inputs((2, 9001), (2, 9001))),
    _gaussian("large", (70, 785), (70, 785), (785,)),
    _categorical("large", (9, 256, 100), (9, 100)),
]
