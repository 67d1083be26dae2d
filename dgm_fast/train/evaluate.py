"""Figures of a model on whole splits."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Evaluation noise is the same at every epoch and in every run: figures of two epochs differ by the
# parameters alone, and an evaluation takes nothing from the generators that training uses.
EVALUATION_SEED = 1_000_003

Quantities = Callable[[nn.Module, Any], dict[str, Tensor]]


@contextlib.contextmanager
def evaluation(model: nn.Module, rows: Tensor) -> Iterator[None]:
    """Evaluation mode, no gradients, and the evaluation's own random numbers, for a while."""
    was_training = model.training
    model.eval()
    devices = list(range(torch.cuda.device_count())) if rows.is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(EVALUATION_SEED)
            yield
    finally:
        model.train(was_training)


def per_row(
    model: nn.Module,
    rows: Tensor,
    quantities: Quantities,
    *,
    convert: Callable[[Tensor], Tensor],
    batch_size: int,
    labels: Tensor | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Quantities of every row, [N] float64 on the CPU each.

    The global random generators are as before afterwards, and the model in the mode it was in.

    Args:
        model: put into evaluation mode meanwhile.
        rows: stored rows [N, D].
        quantities: (model, x [B, D]) -> name -> [B]; with labels (model, (x, labels [B])).
        convert: stored rows -> what the model takes (``Dataset.model_input``).
        batch_size: rows at a time.
        labels: of the rows, where the quantities take them.
        on_batch: called with (rows done, rows in all).
    """
    parts: dict[str, list[Tensor]] = {}
    with evaluation(model, rows):
        for first in range(0, len(rows), batch_size):
            part = slice(first, first + batch_size)
            x: Any = convert(rows[part])
            if labels is not None:
                x = x, labels[part]
            for name, values in quantities(model, x).items():
                parts.setdefault(name, []).append(values.double())
            if on_batch is not None:
                on_batch(min(first + batch_size, len(rows)), len(rows))
    return {name: torch.cat(values).cpu() for name, values in parts.items()}


def means(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: rows.mean().item() for name, rows in values.items()}


def summary(values: dict[str, Tensor], num_dims: int) -> dict[str, float]:
    """Mean of each quantity in nats and in bits per dimension, and the standard error of ``nll``.

    Bits per dimension are nats / (D log 2). The standard error is over test rows; it does not hold
    the bias of an importance-sampled estimate.
    """
    out: dict[str, float] = {}
    for name, mean in means(values).items():
        out[f"{name}_nats"] = mean
        out[f"{name}_bits_per_dim"] = mean / (num_dims * math.log(2))
    nll = values["nll"]
    if len(nll) > 1:
        out["nll_standard_error_nats"] = (nll.std() / math.sqrt(len(nll))).item()
    return out
