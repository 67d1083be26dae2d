"""Cases of the linear-head family."""

from __future__ import annotations

from functools import partial

import torch
from helpers.cases_likelihood import _generator, _randn
from helpers.op_checks import OpCase
from torch import Tensor

from dgm_fast import functional, reference


def layer(
    h_shape: tuple[int, ...], inputs: int, rows: int, bias: bool, dtype: torch.dtype, generator
) -> list[Tensor]:
    """h, weight [rows, inputs] and, where asked for, bias, with logits of a few units."""
    tensors = [
        _randn(h_shape, dtype, 1.0, generator),
        _randn((rows, inputs), dtype, 2.0 / inputs**0.5, generator),
    ]
    return [*tensors, _randn((rows,), dtype, 0.5, generator)] if bias else tensors


def _without_bias(function):
    """The function with None in the place of the bias."""
    return lambda h, weight, x, **options: function(h, weight, None, x, **options)


def _bernoulli(
    id: str,
    h_shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    *,
    bias: bool = True,
    x_dtype: torch.dtype | None = None,
    soft: bool = False,
    recompute: bool | None = True,
) -> OpCase:
    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        x = torch.rand(x_shape, generator=generator, dtype=torch.float64)
        x = x if soft else (x < 0.4).double()
        return (
            *layer(h_shape, h_shape[-1], x_shape[-1], bias, dtype, generator),
            x.to(x_dtype or dtype),
        )

    count = 4 if bias else 3
    wrap = (lambda f: f) if bias else _without_bias
    ours = partial(functional.linear_bernoulli_log_prob, recompute=recompute)
    return OpCase(
        f"linear_bernoulli-{id}",
        "linear_bernoulli_log_prob",
        wrap(ours),
        wrap(reference.linear_bernoulli_log_prob),
        build,
        tuple(range(count if x_dtype is None else count - 1)),
    )


def _categorical(
    id: str,
    h_shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    classes: int,
    *,
    packing: str = "variable",
    bias: bool = True,
    x_dtype: torch.dtype = torch.int64,
    recompute: bool | None = True,
) -> OpCase:
    """Vectors, or with packing "pixel" h [B, H, *size]."""
    pixels = packing == "pixel"

    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        inputs = h_shape[1] if pixels else h_shape[-1]
        rows = classes if pixels else classes * x_shape[-1]
        x = torch.randint(0, classes, x_shape, generator=generator).to(x_dtype)
        return (*layer(h_shape, inputs, rows, bias, dtype, generator), x)

    def ours(*args: Tensor) -> Tensor:
        options = {} if pixels else {"packing": packing}
        return functional.linear_categorical_log_prob(
            *args, num_classes=classes, recompute=recompute, **options
        )

    def plain(h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        if pixels:
            h, x = h.flatten(2), x.flatten(1)
        return reference.linear_categorical_log_prob(
            h, weight, bias, x, num_classes=classes, packing=packing
        )

    wrap = (lambda f: f) if bias else _without_bias
    return OpCase(
        f"linear_categorical-{id}",
        "linear_categorical_log_prob",
        wrap(ours),
        wrap(plain),
        build,
        tuple(range(3 if bias else 2)),
    )


CASES = [
    _bernoulli("rows", (3, 4), (3, 5)),
    _bernoulli("no-bias", (3, 4), (3, 5), bias=False),
    _bernoulli("samples", (3, 4, 6), (3, 1, 19)),
    _bernoulli("soft", (2, 5), (2, 37), soft=True),
    _bernoulli("event-only", (3, 2, 4), (7,)),
    _bernoulli("uint8", (3, 4), (3, 21), x_dtype=torch.uint8),
    _bernoulli("bool", (3, 4), (3, 21), x_dtype=torch.bool),
    _bernoulli("single", (4,), (7,)),
    _bernoulli("one", (1, 1), (1, 1)),
    _categorical("variable", (3, 4), (3, 5), 3),
    _categorical("class", (3, 4), (3, 5), 3, packing="class"),
    _categorical("no-bias", (3, 4), (3, 5), 3, bias=False),
    _categorical("samples", (3, 4, 6), (3, 1, 5), 3, packing="class"),
    _categorical("samples-variable", (3, 4, 6), (3, 1, 5), 3),
    _categorical("event-only", (3, 4), (5,), 3, x_dtype=torch.int32),
    _categorical("pixels", (2, 4, 3, 5), (2, 3, 5), 6, packing="pixel"),
    _categorical("pixels-flat", (2, 4, 7), (2, 7), 6, packing="pixel", bias=False),
    _categorical("uint8", (2, 4, 3, 5), (2, 3, 5), 6, packing="pixel", x_dtype=torch.uint8),
    _categorical("one-class", (3, 4), (3, 5), 1),
    _categorical("one", (1, 1), (1, 1), 2),
]

LARGE = [
    _bernoulli("large", (9, 50, 33), (9, 1, 785)),
    _bernoulli("large-rows", (300, 50), (300, 301)),
    _categorical("large", (130, 33), (130, 40), 17),
    _categorical("large-class", (130, 33), (130, 40), 17, packing="class"),
    _categorical("large-pixels", (5, 16, 28, 28), (5, 28, 28), 256, packing="pixel"),
]

# Of a size whose logits are kept: a linear layer of PyTorch's, then the likelihood.
KEPT = [
    _bernoulli("kept", (60, 33), (60, 785), recompute=None),
    _categorical("kept", (30, 33), (30, 40), 17, recompute=None),
    _categorical("kept-class", (30, 33), (30, 40), 17, packing="class", recompute=None),
    _categorical("kept-pixels", (2, 8, 11, 13), (2, 11, 13), 100, packing="pixel", recompute=None),
]
