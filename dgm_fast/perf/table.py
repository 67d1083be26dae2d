"""Tables of a result: for a terminal, for plain text and for Markdown."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TextIO

from dgm_fast.perf import ceiling
from dgm_fast.perf.problem import COMPILE, EAGER, OURS

MODE_NAMES = {
    "forward": "forward",
    "backward": "backward",
    "both": "fwd+bwd",
    "second": "2nd order",
    "step": "step",
}
HEADERS = (
    "case",
    "shape",
    "mode",
    "eager ms",
    "compile ms",
    "best peer ms",
    "ours ms",
    "IQR",
    "speed-up",
    "GB/s",
    "roof",
    "peak MB e/c/o",
    "saved MB o",
)


@dataclass(frozen=True)
class Row:
    """One case in one mode, with what follows from the raw times; None is not measured."""

    case: str
    shape: tuple[int, ...]
    mode: str
    eager_ms: float | None
    compile_ms: float | None
    peer_ms: float | None
    ours_ms: float
    ours_iqr_ms: float
    # Over the fastest of all rivals, peers included; those that compute something else do not count.
    speed_up: float
    gb_s: float | None
    tflop_s: float | None
    roof_share: float | None
    peak_bytes: dict[str, int]
    saved_bytes: int | None
    # COMPILE or "peer", where such a rival has no time because it computes something else.
    wrong: frozenset[str] = frozenset()


def rows(result: dict[str, Any], modes: tuple[str, ...] | None = None) -> list[Row]:
    """The measured rows of a result, in its order; failed cases have none."""
    roof = result["ceiling"]
    facts = result["machine"]
    threads = threads_key(facts)
    found = []
    for record in result["records"]:
        for mode, by_variant in record.get("modes", {}).items():
            if modes is not None and mode not in modes:
                continue
            if OURS in by_variant and len(by_variant) > 1:
                found.append(_row(record, mode, by_variant, roof, threads))
    return found


def threads_key(facts: dict[str, Any]) -> str:
    """The key of a result's ceiling that belongs to its times."""
    return "gpu" if facts["device"] == "cuda" else str(facts["threads"])


def by_rival(by_variant: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of eager, compile, ours and, as "peer", the fastest of the others."""
    times = {name: entry["ms"] for name, entry in by_variant.items()}
    known = {name: ms for name, ms in times.items() if name in (EAGER, COMPILE, OURS)}
    peers = [ms for name, ms in times.items() if name not in known]
    return known | ({"peer": min(peers)} if peers else {})


def _row(
    record: dict[str, Any],
    mode: str,
    by_variant: dict[str, Any],
    roof: dict[str, Any],
    threads: str,
) -> Row:
    ours = by_variant[OURS]
    rivals = {name: entry["ms"] for name, entry in by_variant.items() if name != OURS}
    times = by_rival(by_variant)
    num_bytes = record.get("bytes", {}).get(mode, 0)
    flops = record.get("flops", {}).get(mode, 0)
    seconds = ours["ms"] * 1e-3
    memory = record.get("memory", {})
    return Row(
        case=record["case"],
        shape=tuple(record["shape"]),
        mode=mode,
        eager_ms=rivals.get(EAGER),
        compile_ms=rivals.get(COMPILE),
        peer_ms=times.get("peer"),
        ours_ms=ours["ms"],
        ours_iqr_ms=ours["q3"] - ours["q1"],
        speed_up=min(rivals.values()) / ours["ms"],
        gb_s=num_bytes / seconds / 1e9 if num_bytes else None,
        tflop_s=flops / seconds / 1e12 if flops else None,
        roof_share=ceiling.share(roof, threads, num_bytes, flops, seconds) if num_bytes else None,
        peak_bytes={name: entry["peak_bytes"] for name, entry in memory.items()},
        saved_bytes=memory.get(OURS, {}).get("saved_bytes"),
        wrong=frozenset(COMPILE if name == COMPILE else "peer" for name in record.get("wrong", {})),
    )


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, in the order of HEADERS."""
    peaks = [row.peak_bytes.get(name) for name in (EAGER, COMPILE, OURS)]
    return (
        row.case,
        "x".join(map(str, row.shape)),
        MODE_NAMES[row.mode],
        _ms(row.eager_ms),
        _ms(row.compile_ms) or ("wrong" if COMPILE in row.wrong else ""),
        _ms(row.peer_ms) or ("wrong" if "peer" in row.wrong else ""),
        _ms(row.ours_ms),
        _ms(row.ours_iqr_ms),
        f"{row.speed_up:.2f}x",
        "" if row.gb_s is None else f"{row.gb_s:.1f}",
        "" if row.roof_share is None else f"{100 * row.roof_share:.0f}%",
        "/".join("-" if p is None else _megabytes(p) for p in peaks) if any(peaks) else "",
        "" if row.saved_bytes is None else _megabytes(row.saved_bytes),
    )


def headline(result: dict[str, Any]) -> str:
    """The machine and the method in one line."""
    facts = result["machine"]
    where = facts["gpu"] or f"{facts['cpu']}, {facts['threads']} threads, {facts['isa']}"
    commit = (facts["commit"] or "unknown")[:10] + (" with local changes" if facts["dirty"] else "")
    return f"{where}; torch {facts['torch']}; commit {commit}; medians of interleaved rounds"


def problems(result: dict[str, Any]) -> list[str]:
    """What a reader has to know before believing the table."""
    notes = []
    facts = result["machine"]
    if facts["ours"] == "reference":
        notes.append(
            f'"ours" ran the reference path, not the kernels ({facts["ours_reason"]}): '
            "these are not figures of this library"
        )
    skipped = [r["case"] for r in result["records"] if r["status"] == "skipped"]
    if skipped:
        notes.append(f"not run, time was up: {', '.join(skipped)}")
    for record in result["records"]:
        notes += [f"{record['case']}: FAILED, no figure: {f}" for f in record.get("failures", [])]
        notes += [
            f"{record['case']}: {name} not measured: {reason}"
            for name, reason in record.get("unavailable", {}).items()
        ]
        notes += [
            f"{record['case']}: {name} is wrong and does not count: {reason}"
            for name, reason in record.get("wrong", {}).items()
        ]
    return notes


def plain_text(result: dict[str, Any]) -> str:
    """The whole table in aligned plain text, with headline, profiles and notes."""
    body = [cells(row) for row in rows(result)]
    widths = [max(len(r[i]) for r in (HEADERS, *body)) for i in range(len(HEADERS))]
    lines = [headline(result), ""]
    for line in (HEADERS, tuple("-" * w for w in widths), *body):
        aligned = [
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    lines += ["", *launches(result), *step_profiles(result), *problems(result)]
    return "\n".join(lines).rstrip() + "\n"


def launches(result: dict[str, Any]) -> list[str]:
    """What small kernels spend on being launched (GPU): the call against its captured graph."""
    lines = []
    for record in result["records"]:
        if "kernel" in record:
            call, alone = record["modes"]["forward"][OURS]["ms"], record["kernel"]["ms"]
            share = max(0.0, 1 - alone / call)
            lines.append(
                f"{record['case']} forward: {_ms(call)} ms a call, {_ms(alone)} ms in a CUDA graph, "
                f"launch {100 * share:.0f}%"
            )
    return [*lines, ""] if lines else []


def step_profiles(result: dict[str, Any]) -> list[str]:
    """Where the time of the training steps goes, one line per variant."""
    lines = []
    for record in result["records"]:
        for variant, groups in record.get("profile", {}).items():
            parts = ", ".join(f"{name} {100 * share:.0f}%" for name, share in groups.items())
            lines.append(f"{record['case']} {variant}: {parts}")
    return [*lines, ""] if lines else []


def show(result: dict[str, Any], stream: TextIO | None = None) -> None:
    """Print the table: with rich on a terminal wide enough for it, in plain text elsewhere."""
    stream = stream or sys.stdout
    text = plain_text(result)
    if not stream.isatty():
        stream.write(text)
        return
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        stream.write(text)
        return
    console = Console(file=stream)
    if console.width < max(len(line) for line in text.splitlines()[2:4]):
        stream.write(text)
        return
    table = Table(title=headline(result), title_justify="left")
    for i, header in enumerate(HEADERS):
        table.add_column(header, justify="left" if i < 3 else "right", no_wrap=True)
    for row in rows(result):
        color = "green" if row.speed_up >= 1.05 else "red" if row.speed_up < 0.95 else "yellow"
        line = list(cells(row))
        line[8] = f"[{color}]{line[8]}[/{color}]"
        table.add_row(*line)
    console.print(table)
    for note in (*step_profiles(result), *problems(result)):
        console.print(note, markup=False)


def main_rows(result: dict[str, Any], modes: tuple[str, ...] = ("both", "step")) -> list[Row]:
    """A row a case: that of one of ``modes``, or its forward where it has no other mode."""
    forward_only = {r["case"] for r in result["records"] if set(r.get("modes", {})) == {"forward"}}
    return [row for row in rows(result) if row.mode in modes or row.case in forward_only]


def markdown(shown: Iterable[Row]) -> str:
    """A Markdown table of rows; losses stand in it like wins."""
    headers = (
        "case",
        "shape",
        "eager ms",
        "torch.compile ms",
        "ours ms",
        "speed-up over the better rival",
        "GB/s",
        "of copy roof",
        "peak MB eager / compile / ours",
    )
    lines = ["| " + " | ".join(headers) + " |", "| --- | --- |" + " ---: |" * (len(headers) - 2)]
    for row in shown:
        cell = cells(row)
        chosen = (*cell[:2], cell[3], cell[4], cell[6], cell[8], *cell[9:12])
        lines.append("| " + " | ".join(chosen) + " |")
    return "\n".join(lines)


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    decimals = 4 if value < 1 else 3 if value < 10 else 2 if value < 100 else 1
    return f"{value:.{decimals}f}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g}"
