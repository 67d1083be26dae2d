"""Plots of a comparison, through matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgm_fast.data.extras import require
from dgm_fast.train.files import write_atomically

if TYPE_CHECKING:
    from dgm_fast.train.comparison import Variant

# Points of a density's grid along each axis.
_GRID = 200


def plot_losses(path: Path, histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Training and validation figures of each epoch, one colour a run."""
    figure, axes = _figure(7.0, 4.5)
    styles = (("train_loss", "train", "-"), ("valid_nll", "validation", "--"))
    for i, (name, history) in enumerate(histories.items()):
        epochs = [record["epoch"] for record in history]
        for key, label, line in styles:
            # The later run is narrower, so that equal curves show both.
            axes.plot(
                epochs,
                [record[key] for record in history],
                line,
                color=f"C{i}",
                linewidth=4.0 / (i + 1),
                alpha=0.7,
                label=f"{name}, {label}",
            )
    axes.set_xlabel("epoch")
    axes.set_ylabel("NLL bound (nats)")
    axes.legend()
    _save(figure, path)


def plot_step_times(path: Path, variants: Sequence[Variant]) -> None:
    """Median milliseconds of the step and its parts, with quartiles."""
    shown = [variant for variant in variants if variant.times]
    figure, axes = _figure(8.0, 4.5)
    quantities = list(shown[0].times)
    width = 0.8 / len(shown)
    for i, variant in enumerate(shown):
        spreads = [variant.times[quantity] for quantity in quantities]
        medians = [1e3 * s.median for s in spreads]
        below = [1e3 * (s.median - s.low) for s in spreads]
        above = [1e3 * (s.high - s.median) for s in spreads]
        places = [k + (i - (len(shown) - 1) / 2) * width for k in range(len(quantities))]
        axes.bar(places, medians, width, yerr=(below, above), capsize=3, label=variant.name)
    axes.set_xticks(range(len(quantities)), quantities)
    axes.set_ylabel("milliseconds (median, quartiles)")
    axes.legend()
    _save(figure, path)


def plot_points(path: Path, model: Any, data: Tensor, samples: Tensor) -> None:
    """Points of data and model side by side, and the model's density where it has one.

    Args:
        path: of the PNG file.
        model: with ``log_prob`` of [N, 2], or without.
        data, samples: [N, 2].
    """
    bounds = torch.stack([data.min(0).values, data.max(0).values])
    margin = 0.1 * (bounds[1] - bounds[0])
    low, high = (bounds + torch.stack([-margin, margin])).tolist()
    panels = [("data", data), ("samples", samples)]
    dense = hasattr(model, "log_prob")
    figure = require("matplotlib.figure", "a plot").Figure(figsize=(4.0 * (2 + dense), 4.0))
    for i, (title, points) in enumerate(panels):
        axes = figure.add_subplot(1, 2 + dense, i + 1)
        x, y = points.detach().cpu().float().unbind(1)
        axes.scatter(x.numpy(), y.numpy(), s=2, alpha=0.4)
        axes.set(title=title, xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    if dense:
        grids = [
            torch.linspace(a, b, _GRID, device=data.device) for a, b in zip(low, high, strict=True)
        ]
        at = torch.cartesian_prod(*grids)
        with torch.no_grad():
            density = model.log_prob(at).float().exp().reshape(_GRID, _GRID).cpu()
        axes = figure.add_subplot(1, 3, 3)
        axes.imshow(
            density.T.numpy(),
            origin="lower",
            extent=(low[0], high[0], low[1], high[1]),
            aspect="auto",
        )
        axes.set(title="density")
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    # Without pyplot: no window system, no global state.
    figure = require("matplotlib.figure", "a plot").Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
