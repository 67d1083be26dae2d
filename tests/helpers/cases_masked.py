"""Cases of the masked family."""

from __future__ import annotations

import torch
from helpers.cases_likelihood import _generator, _randn
from helpers.op_checks import OpCase
from torch import Tensor

from dgm_fast import functional, reference


def degrees(
    kind: str, inputs: int, outputs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Degrees of inputs and outputs: "sorted", "shuffled", or "outputs" (only these are shuffled)."""
    top = max(2, inputs)
    of_inputs = torch.randint(0, top, (inputs,), generator=generator)
    of_outputs = torch.randint(0, top, (outputs,), generator=generator)
    if kind != "shuffled":
        of_inputs = of_inputs.sort().values
    return of_inputs, of_outputs.sort().values if kind == "sorted" else of_outputs


def linear(
    id: str,
    lead: tuple[int, ...],
    inputs: int,
    outputs: int,
    *,
    kind: str = "sorted",
    strict: bool = False,
    bias: bool = True,
) -> OpCase:
    """x, weight, the bias where there is one, and the degrees; for kind "mask" a mask."""

    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        tensors = [
            _randn((*lead, inputs), dtype, 1.0, generator),
            _randn((outputs, inputs), dtype, 2.0 / inputs**0.5, generator),
        ]
        if bias:
            tensors.append(_randn((outputs,), dtype, 0.5, generator))
        if kind == "mask":
            return (*tensors, torch.rand((outputs, inputs), generator=generator) < 0.5)
        return (*tensors, *degrees(kind, inputs, outputs, generator))

    def of(function):
        def call(x: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
            offset = rest[0] if bias else None
            if kind == "mask":
                return function(x, weight, offset, mask=rest[-1])
            return function(x, weight, offset, *rest[-2:], strict=strict)

        return call

    return OpCase(
        f"masked-linear-{id}",
        "masked_linear",
        of(functional.masked_linear),
        of(reference.masked_linear),
        build,
        (0, 1, 2) if bias else (0, 1),
    )


def fvsbn(
    id: str,
    lead: tuple[int, ...],
    size: int,
    *,
    x_dtype: torch.dtype | None = None,
    soft: bool = False,
) -> OpCase:
    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        x = torch.rand((*lead, size), generator=generator, dtype=torch.float64)
        x = x if soft else (x < 0.4).double()
        weight = _randn((size, size), dtype, 2.0 / size**0.5, generator)
        return x.to(x_dtype or dtype), weight, _randn((size,), dtype, 0.5, generator)

    return OpCase(
        f"fvsbn-{id}",
        "fvsbn_log_prob",
        functional.fvsbn_log_prob,
        reference.fvsbn_log_prob,
        build,
        (0, 1, 2) if x_dtype is None else (1, 2),
    )


# Sizes: below, at and across the steps of depth, the rows of an edge and the blocks of rows; odd; one.
CASES = [
    linear("rows", (3,), 5, 4),
    linear("strict", (3,), 5, 4, strict=True),
    linear("no-bias", (3,), 5, 4, bias=False),
    linear("blocks", (5,), 35, 18),
    linear("shuffled", (3,), 7, 19, kind="shuffled"),
    linear("shuffled-outputs", (3,), 6, 18, kind="outputs", strict=True),
    linear("mask", (3,), 5, 4, kind="mask"),
    linear("batches", (2, 3), 5, 4),
    linear("vector", (), 5, 4),
    linear("one", (1,), 1, 1),
    fvsbn("rows", (3,), 5),
    fvsbn("blocks", (5,), 19),
    fvsbn("soft", (3,), 7, soft=True),
    fvsbn("uint8", (3,), 8, x_dtype=torch.uint8),
    fvsbn("bool", (9,), 3, x_dtype=torch.bool),
    fvsbn("int64", (3,), 5, x_dtype=torch.int64),
    fvsbn("soft-float", (3,), 5, x_dtype=torch.float32, soft=True),
    fvsbn("batches", (2, 3), 5),
    fvsbn("vector", (), 5),
    fvsbn("one", (1,), 1),
]

# Several blocks of rows, panels and threads.
LARGE = [
    linear("large", (70,), 300, 150),
    linear("large-batch", (300,), 90, 130, strict=True),
    linear("large-shuffled", (131,), 201, 133, kind="shuffled"),
    linear("large-mask", (20,), 130, 70, kind="mask"),
    fvsbn("large", (70,), 203),
    fvsbn("large-bool", (140,), 130, x_dtype=torch.bool),
]
