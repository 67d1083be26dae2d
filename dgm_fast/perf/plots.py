"""Figures: roofline, times over size, history."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dgm_fast.perf import history, table
from dgm_fast.perf.problem import COMPILE, EAGER, OURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {EAGER: "#8a8a8a", COMPILE: "#2f6fb7", "peer": "#8e5aa8", OURS: "#1a8a4a"}
NAMES = {EAGER: "eager", COMPILE: "torch.compile", "peer": "best peer", OURS: "dgm_fast"}
SIZES = ("small", "medium", "large")


def figure(
    width: float, height: float, rows: int = 1, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure that belongs to no window system, and its axes.

    Raises:
        ImportError: without matplotlib, with what installs it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install 'dgm_fast[perf]'", name="matplotlib"
        ) from error
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.subplots(rows, columns, squeeze=False)
    return made, list(axes.flat)


def roofline(result: dict[str, Any]) -> Figure | None:
    """FLOP/s of ours over operations per byte, under the measured copy rate and GEMM rate.

    Forward and backward of one call; both counts are the case's least possible work.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    records = {r["case"]: r for r in result["records"]}
    for row in table.rows(result, ("both", "forward")):
        record = records[row.case]
        modes = set(record["modes"])
        num_bytes, flops = (record.get(k, {}).get(row.mode, 0) for k in ("bytes", "flops"))
        if not num_bytes or not flops or (row.mode == "forward" and "both" in modes):
            continue
        place = (flops / num_bytes, 1e-9 * flops / (1e-3 * row.ours_ms))
        points.setdefault(record["family"], []).append(place)
    if not points:
        return None
    threads = table.threads_key(result["machine"])
    copy = result["ceiling"]["copy"][threads]
    bandwidths = {"largest copy": copy[max(copy, key=int)], "cached copy": max(copy.values())}
    peak = 1e3 * result["ceiling"]["gemm"][threads]["float32"]
    made, (axes,) = figure(7, 4.6)
    intensities = [x for family in points.values() for x, _ in family]
    low, high = min(intensities) / 2, max(*intensities, peak / bandwidths["largest copy"]) * 2
    for (name, rate), style in zip(bandwidths.items(), ("-", ":"), strict=True):
        xs = [low * (high / low) ** (i / 60) for i in range(61)]
        axes.plot(
            xs,
            [min(rate * x, peak) for x in xs],
            "k" + style,
            lw=1.2,
            label=f"{name} {rate:.0f} GB/s",
        )
    for family, places in points.items():
        axes.plot(*zip(*places, strict=True), "o", ms=5, alpha=0.8, label=family)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GFLOP/s")
    axes.set_title(
        f"GEMM rate {peak:.0f} GFLOP/s; above a sloped line: it reads more than it writes",
        fontsize=9,
    )
    axes.legend(fontsize=7, ncols=2)
    axes.grid(alpha=0.25, which="both")
    return made


def scaling(result: dict[str, Any], family: str) -> dict[str, Figure]:
    """Op -> its times over size, ours and rivals, small to large, float32."""
    curves: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for record in result["records"]:
        modes = record.get("modes", {})
        mode = "both" if "both" in modes else "forward"
        if record.get("family") != family or mode not in modes or record["dtype"] != "float32":
            continue
        if record["size"] not in SIZES or not record.get("bytes", {}).get(mode):
            continue
        name = f"{record['op']} {record['variant']}".strip()
        times = table.by_rival(modes[mode])
        curves.setdefault(name, []).append((record["bytes"][mode], times))
    return {n: _curves(n, sorted(c, key=lambda p: p[0])) for n, c in curves.items() if len(c) > 1}


def _curves(name: str, points: Sequence[tuple[float, dict[str, float]]]) -> Figure:
    made, (ax,) = figure(3.6, 2.8)
    for variant, color in COLORS.items():
        line = [(x, times[variant]) for x, times in points if variant in times]
        if line:
            xs, ys = zip(*line, strict=True)
            ax.plot(xs, ys, "o-", ms=3.5, lw=1.2, color=color, label=NAMES[variant])
    ax.set(xscale="log", yscale="log", title=name, xlabel="bytes read and written", ylabel="ms")
    ax.title.set_fontsize(8)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=7)
    return made


def history_figure(series: Mapping[str, Sequence[history.Point]]) -> Figure:
    """Each case over the commits of one machine: quartiles as bars, step changes marked."""
    columns = min(3, len(series))
    rows = math.ceil(len(series) / columns)
    made, axes = figure(3.2 * columns, 2.4 * rows, rows, columns)
    for ax, (case, points) in zip(axes, series.items(), strict=False):
        _history_axes(ax, case, list(points))
    for ax in axes[len(series) :]:
        ax.remove()
    return made


def _history_axes(ax: Axes, case: str, points: list[history.Point]) -> None:
    at = list(range(len(points)))
    below = [max(0.0, p.ms - p.q1) for p in points]
    above = [max(0.0, p.q3 - p.ms) for p in points]
    ax.errorbar(
        at, [p.ms for p in points], yerr=[below, above], fmt="o-", ms=3, lw=1, color=COLORS[OURS]
    )
    rivals = [(i, p.rival_ms) for i, p in enumerate(points) if p.rival_ms is not None]
    if rivals:
        ax.plot(*zip(*rivals, strict=True), "--", lw=1, color=COLORS[EAGER])
    for step in history.step_changes(points):
        color = "#c0392b" if step.ratio > 1 else COLORS[OURS]
        ax.axvline(step.index - 0.5, color=color, lw=1)
        ax.annotate(
            f"{step.ratio:.2f}x",
            (step.index - 0.5, 0.97),
            xycoords=("data", "axes fraction"),
            fontsize=7,
            color=color,
            va="top",
        )
    ax.set_xticks(at, [p.commit[:7] for p in points], rotation=60, fontsize=6)
    ax.set_ylim(bottom=0)
    ax.set_title(case, fontsize=7)
    ax.set_ylabel("ms", fontsize=7)
    ax.tick_params(axis="y", labelsize=6)


def svg(made: Figure) -> str:
    """The figure as SVG text, the same for the same data."""
    import io

    import matplotlib

    target = io.StringIO()
    # Text stays text: smaller, and legible at any size.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dgm_fast"}):
        made.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue()


def families(result: dict[str, Any]) -> Iterable[str]:
    return dict.fromkeys(r["family"] for r in result["records"] if r.get("modes"))
