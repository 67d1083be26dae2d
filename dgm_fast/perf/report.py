"""One HTML page about a result: no network, no scripts, readable on a phone."""

from __future__ import annotations

import base64
import html
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dgm_fast.perf import history, machine, plots, table
from dgm_fast.perf.problem import COMPILE, EAGER, OURS
from dgm_fast.perf.table import Row

STYLE = Path(__file__).with_name("report.css")
# Nothing may be fetched: whatever the page would want from elsewhere is blocked by the browser too.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
WIN, LOSS = 1.05, 0.95
# Of table.HEADERS: on a phone the first columns are seen, so what matters stands there.
ORDER = (0, 8, 6, 4, 3, 5, 2, 1, 7, 9, 10, 11, 12)
# Figures of history are drawn for the cases with the most points, and for no more than this.
HISTORY_CASES = 24


def page(result: dict[str, Any], runs: Sequence[history.Run] = ()) -> str:
    """The whole page. ``runs`` is the history; only what this machine measured is drawn."""
    rows = main_rows(result)
    families = list(plots.families(result))
    parts = [
        _head(result),
        _summary(result, rows),
        *(_family(result, family) for family in families),
        _launches(result),
        _roofline(result),
        _memory(rows),
        _scaling(result, families),
        _history(result, runs),
        _machine(result),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>dgm_fast: {_text(machine.slug(result['machine']))}</title>"
        f"<style>{STYLE.read_text()}</style></head><body><main>\n{body}\n</main></body></html>\n"
    )


def main_rows(result: dict[str, Any]) -> list[Row]:
    """Forward and backward; forward alone of samplers; steps."""
    modes = {r["case"]: set(r.get("modes", {})) for r in result["records"]}
    return [
        row
        for row in table.rows(result, ("both", "step", "forward"))
        if row.mode != "forward" or not modes[row.case] & {"both", "step"}
    ]


def _head(result: dict[str, Any]) -> str:
    notes = "".join(f"<li>{_text(note)}</li>" for note in table.problems(result))
    return (
        "<h1>dgm_fast: measured</h1>"
        f"<p>{_text(table.headline(result))}; {_text(result['created'][:10])}.</p>"
        + (f"<ul class='notes'>{notes}</ul>" if notes else "")
    )


def _summary(result: dict[str, Any], rows: Sequence[Row]) -> str:
    if not rows:
        return "<h2>Summary</h2><p>Nothing was measured.</p>"
    wins, losses = _won(rows), _lost(rows)
    family_of = {r["case"]: r["family"] for r in result["records"] if r.get("modes")}
    lines = []
    for family in plots.families(result):
        own = [row for row in rows if family_of[row.case] == family]
        if own:
            mean = statistics.geometric_mean(row.speed_up for row in own)
            worst = min(own, key=lambda row: row.speed_up)
            lines.append(
                f"<tr><td><a href='#{_text(family)}'>{_text(family)}</a></td><td>{len(own)}</td>"
                f"<td>{len(_won(own))}</td><td>{len(_lost(own))}</td>"
                f"<td class='{_class(mean)}'>{mean:.2f}x</td>"
                f"<td>{worst.speed_up:.2f}x {_text(worst.case)}</td></tr>"
            )
    mean = statistics.geometric_mean(row.speed_up for row in rows)
    cards = (
        (f"{mean:.2f}x", "geometric mean over the best rival"),
        (f"{len(wins)}", f"of {len(rows)} cases won (by 5% or more)"),
        (f"{len(losses)}", "lost (by 5% or more)"),
        (f"{len(rows) - len(wins) - len(losses)}", "even"),
    )
    shown = "".join(f"<div class='card'><b>{n}</b><span>{t}</span></div>" for n, t in cards)
    table_ = _table(("family", "cases", "won", "lost", "mean", "worst"), lines)
    return f"<h2>Summary</h2><div class='cards'>{shown}</div>{table_}"


def _family(result: dict[str, Any], family: str) -> str:
    names = {r["case"] for r in result["records"] if r.get("family") == family}
    own = [row for row in main_rows(result) if row.case in names]
    other = [row for row in table.rows(result) if row.case in names and row not in own]
    bars = "".join(_bars(row) for row in own)
    more = ""
    if other:
        more = f"<details><summary>{len(other)} other modes</summary>{_rows_table(other)}</details>"
    return (
        f"<h2 id='{_text(family)}'>{_text(family)}</h2>"
        f"<p>{len(_won(own))} won, {len(_lost(own))} lost of {len(own)}.</p>"
        f"{_rows_table(own)}<details open><summary>Bars against rivals</summary>"
        f"{_legend()}<div class='bars'>{bars}</div></details>{more}"
    )


def _rows_table(rows: Iterable[Row]) -> str:
    lines = []
    for row in rows:
        cells = [_text(cell) for cell in table.cells(row)]
        cells[0] = _name(row.case)
        cells[8] = f"<span class='{_class(row.speed_up)}'>{cells[8]}{_word(row.speed_up)}</span>"
        lines.append("<tr>" + "".join(f"<td>{cells[i]}</td>" for i in ORDER) + "</tr>")
    return _table([table.HEADERS[i] for i in ORDER], lines)


def _bars(row: Row) -> str:
    """Horizontal bars, the slowest variant at full width."""
    times = {
        EAGER: row.eager_ms,
        COMPILE: row.compile_ms,
        "peer": row.peer_ms,
        OURS: row.ours_ms,
    }
    known = {name: ms for name, ms in times.items() if ms is not None}
    longest = max(known.values())
    lines = "".join(
        f"<div class='bar'><i class='{name}' style='width:{100 * ms / longest:.1f}%'></i>"
        f"<span>{ms:.4g} ms</span></div>"
        for name, ms in known.items()
    )
    title = f"{_name(row.case)} <b class='{_class(row.speed_up)}'>{row.speed_up:.2f}x</b>"
    return f"<div class='case'><h3>{title}</h3>{lines}</div>"


def _legend() -> str:
    items = "".join(f"<span><i class='{n}'></i>{plots.NAMES[n]}</span>" for n in plots.COLORS)
    return f"<p class='legend'>{items}</p>"


def _launches(result: dict[str, Any]) -> str:
    lines = "".join(f"<li>{_text(line)}</li>" for line in table.launches(result) if line)
    return (
        f"<h2>Launch</h2><details><summary>Small kernels</summary><ul>{lines}</ul></details>"
        if lines
        else ""
    )


def _roofline(result: dict[str, Any]) -> str:
    made = plots.roofline(result)
    if made is None:
        return ""
    return (
        "<h2>Roofline</h2><p>What ours reaches of the copy bandwidth and the multiply-add rate that were "
        "measured on this machine; work is counted as the least that any implementation must do.</p>"
        + _image(made, "FLOP/s over operations per byte, one point a case")
    )


def _memory(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        peaks = [row.peak_bytes.get(name) for name in (EAGER, COMPILE, OURS)]
        if peaks[0] and peaks[2] is not None:
            cells = "".join(f"<td>{'' if p is None else f'{p / 1e6:.3g}'}</td>" for p in peaks)
            share = f"{100 * peaks[2] / peaks[0]:.0f}%"
            lines.append(f"<tr><td>{_name(row.case)}</td>{cells}<td>{share}</td></tr>")
    if not lines:
        return ""
    header = ("case", "eager MB", "torch.compile MB", "dgm_fast MB", "of eager's")
    return (
        "<h2>Memory</h2><p>Peak of forward and backward above the inputs.</p><details><summary>"
        f"{len(lines)} cases</summary>{_table(header, lines)}</details>"
    )


def _scaling(result: dict[str, Any], families: Sequence[str]) -> str:
    parts = []
    for family in families:
        images = [
            _image(m, f"{n}: time over size") for n, m in plots.scaling(result, family).items()
        ]
        if images:
            parts.append(f"<h3>{_text(family)}</h3><div class='figures'>{''.join(images)}</div>")
    if not parts:
        return ""
    return f"<h2>Over size</h2><p>Small, medium and large; float32.</p>{''.join(parts)}"


def _history(result: dict[str, Any], runs: Sequence[history.Run]) -> str:
    fingerprint = result["machine"]["fingerprint"]
    here = {
        case: points
        for (case, mode), points in history.series(runs, fingerprint).items()
        if mode in ("both", "step") and len(points) > 1
    }
    others = [m for f, m in history.machines(runs).items() if f != fingerprint]
    note = ""
    if others:
        named = ", ".join(dict.fromkeys(machine.slug(m) for m in others))
        note = f"<p>Measured elsewhere too, and not comparable: {_text(named)}.</p>"
    if not here:
        return "<h2>History</h2><p>No two accepted runs on this machine yet.</p>" + note
    # What changed comes first.
    changed = sorted(here, key=lambda case: -len(history.step_changes(here[case])))
    images = "".join(
        _image(plots.history_figure({case: here[case]}), f"{case}: time over commits")
        for case in changed[:HISTORY_CASES]
    )
    lines = [
        f"<tr><td>{_text(case)}</td><td>{step.ratio:.2f}x</td>"
        f"<td>{_text(points[step.index].commit[:10])}</td></tr>"
        for case, points in here.items()
        for step in history.step_changes(points)
    ]
    steps = _table(("case", "step", "from commit"), lines) if lines else "<p>No step changes.</p>"
    drawn = f"<p>Dashed: the best rival.</p><div class='figures'>{images}</div>"
    return f"<h2>History</h2>{steps}{drawn}{note}"


def _machine(result: dict[str, Any]) -> str:
    facts = {**result["machine"], **{f"setting: {k}": v for k, v in result["settings"].items()}}
    lines = [
        f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in facts.items()
    ]
    roof = result["ceiling"]
    for threads, rates in roof["copy"].items():
        named = ", ".join(f"{int(size):,} B: {rate:.1f} GB/s" for size, rate in rates.items())
        lines.append(f"<tr><td>copy, {_text(threads)} threads</td><td>{named}</td></tr>")
    for threads, rates in roof["gemm"].items():
        named = ", ".join(f"{_text(d)}: {rate:.3f} TFLOP/s" for d, rate in rates.items())
        lines.append(f"<tr><td>GEMM, {_text(threads)} threads</td><td>{named}</td></tr>")
    return "<h2>Machine</h2>" + _table(("fact", ""), lines, kind="facts")


def _table(headers: Sequence[str], lines: Sequence[str], kind: str = "numbers") -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in headers)
    return (
        f"<div class='scroll'><table class='{kind}'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _image(made: Any, description: str) -> str:
    data = base64.b64encode(plots.svg(made).encode()).decode()
    return f"<img alt='{_text(description)}' src='data:image/svg+xml;base64,{data}'>"


def _won(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.speed_up >= WIN]


def _lost(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.speed_up < LOSS]


def _class(speed_up: float) -> str:
    return "win" if speed_up >= WIN else "loss" if speed_up < LOSS else "even"


def _word(speed_up: float) -> str:
    return " lost" if speed_up < LOSS else ""


def _name(case: str) -> str:
    """A case's name, which may be broken at its joints."""
    return _text(case).replace("_", "_<wbr>").replace("/", "/<wbr>").replace(".", ".<wbr>")


def _text(value: Any) -> str:
    return html.escape(str(value))
