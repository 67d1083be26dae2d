"""Plots of a comparison, through matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dgm_fast.data.extras import require
from dgm_fast.train.comparison import Variant
from dgm_fast.train.files import write_atomically


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


def _figure(width: float, height: float) -> tuple[Any, Any]:
    # Without pyplot: no window system, no global state.
    figure = require("matplotlib.figure", "a plot").Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
