"""The HTML page: complete, self-contained, honest about losses, readable on a phone."""

from __future__ import annotations

import html
import html.parser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("matplotlib")

from click.testing import CliRunner
from helpers.perf_results import make_result, variant

from dgm_fast.perf import history, plots, report, results
from dgm_fast.perf.command import perf

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def larger(result: dict[str, Any], size: str, factor: float) -> dict[str, Any]:
    """The result's case at another size."""
    record = result["records"][0]
    modes = {
        mode: {name: variant(factor * entry["ms"]) for name, entry in by_name.items()}
        for mode, by_name in record["modes"].items()
    }
    num_bytes = {mode: int(factor * count) for mode, count in record["bytes"].items()}
    name = f"elbo/{size}/float32"
    return {**record, "case": name, "size": size, "modes": modes, "bytes": num_bytes}


@pytest.fixture
def result() -> dict[str, Any]:
    result = make_result()
    record = result["records"][0]
    record["flops"] = dict.fromkeys(("forward", "backward", "both"), 10**6)
    result["records"].append(larger(result, "large", 10.0))
    lost = larger(result, "small", 0.1)
    lost["modes"]["both"]["ours"] = variant(0.3)
    result["records"].append(lost)
    return result


class Elements(html.parser.HTMLParser):
    """Tags with their attributes; complains about tags that are not closed in order."""

    VOID = ("meta", "img", "wbr", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_complete(result: dict[str, Any]) -> None:
    page = report.page(result)
    headings = re.findall(r"<h2[^>]*>([^<]*)", page)
    assert headings == [
        "Summary",
        "latent",
        "Roofline",
        "Memory",
        "Over size",
        "History",
        "Machine",
    ]
    assert "Example(R) CPU" in page and "2.13.0" in page
    assert "<b>2</b><span>of 3 cases won" in page and "<b>1</b><span>lost" in page
    assert ">0.67x lost<" in page
    images = [a for tag, a in Elements(page).found if tag == "img"]
    assert len(images) == 2 and all(a["alt"] for a in images)


def test_page_wants_nothing_from_anywhere(result: dict[str, Any]) -> None:
    page = report.page(result)
    found = Elements(page).found
    assert not {tag for tag, _ in found} & {"script", "link", "iframe", "object"}
    for _, attributes in found:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "@import" not in page and "url(" not in page
    assert "default-src 'none'" in page


def test_text_of_a_result_is_escaped(result: dict[str, Any]) -> None:
    result["machine"]["cpu"] = "<b>CPU</b>"
    result["records"][0]["unavailable"] = {"compile": "<script>alert(1)</script>"}
    page = report.page(result)
    assert "<script>" not in page and "&lt;b&gt;CPU&lt;/b&gt;" in page


def test_failed_and_skipped_cases_stand_in_the_notes(result: dict[str, Any]) -> None:
    result["records"].append(
        {
            "case": "bad/small/float32",
            "family": "x",
            "shape": [1],
            "status": "failed",
            "failures": ["off"],
        }
    )
    assert "bad/small/float32: FAILED, no figure: off" in report.page(result)


def test_nothing_measured_is_a_page_too() -> None:
    empty = make_result()
    empty["records"] = []
    assert "Nothing was measured" in report.page(empty)


def test_history_of_this_machine_only(result: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    for commit, ms in zip("abcd", (1.0, 1.0, 2.0, 2.0), strict=True):
        run = make_result(commit=commit * 40)
        run["records"][0]["modes"]["both"]["ours"] = variant(ms)
        history.add(run, path)
    history.add(make_result(commit="e" * 40, threads=64), path)
    page = report.page(result, history.load(path))
    assert "<td>2.00x</td><td>cccccccccc</td>" in page
    assert "not comparable: example-2-00ghz-64t" in page
    elsewhere = report.page(make_result(isa="avx512"), history.load(path))
    assert "No two accepted runs on this machine yet" in elsewhere


def test_roofline_has_a_point_a_case_under_the_measured_roofs(result: dict[str, Any]) -> None:
    made = plots.roofline(result)
    assert made is not None
    (axes,) = made.axes
    points = [line for line in axes.lines if line.get_marker() == "o"]
    (line,) = points
    assert len(line.get_xdata()) == 3
    # 10^6 operations in 1 ms are a GFLOP/s, on 2 * 10^6 bytes.
    assert line.get_xdata()[0] == pytest.approx(0.5) and line.get_ydata()[0] == pytest.approx(1.0)
    largest = next(
        line for line in axes.lines if line.get_linestyle() == "-" and line not in points
    )
    assert max(largest.get_ydata()) == pytest.approx(100.0)


def test_pictures_are_the_same_for_the_same_data(result: dict[str, Any]) -> None:
    first, second = (plots.svg(plots.roofline(result)) for _ in range(2))  # type: ignore[arg-type]
    assert first == second


def test_command(result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = CliRunner().invoke(perf, ["report"])
    assert nothing.exit_code == 2 and "perf run" in nothing.output
    results.save(result, tmp_path / results.RESULTS / "r.json")
    done = CliRunner().invoke(perf, ["report"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "perf-report.html").read_text().startswith("<!DOCTYPE html>")
    (tmp_path / results.RESULTS / "r.json").write_text("{")
    damaged = CliRunner().invoke(perf, ["report"])
    assert damaged.exit_code == 1 and "not valid JSON" in damaged.output


def committed() -> dict[str, Any]:
    newest = max((ROOT / "benchmarks" / "results").glob("*-cpu.json"))
    return results.load(newest)


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(width: int, tmp_path: Path) -> None:
    """A real browser lays out the committed result: nothing sticks out, no picture is broken."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    # A frame of the width of a phone: windows have a least width. The page itself allows no script, so
    # the page around it measures.
    probe = """<script>addEventListener('load', () => {
      const frame = document.querySelector('iframe').contentWindow, page = frame.document;
      const root = page.documentElement, pictures = [...page.images];
      const small = [...page.querySelectorAll('td, th, p, h3, summary, span')]
        .filter(e => e.textContent.trim() && parseFloat(frame.getComputedStyle(e).fontSize) < 11);
      document.documentElement.dataset.found = JSON.stringify({
        sticksOut: root.scrollWidth - root.clientWidth, width: frame.innerWidth,
        pictures: pictures.length, broken: pictures.filter(i => !i.naturalWidth).length,
        small: small.length,
        bars: [...page.querySelectorAll('.bar i')].filter(i => i.offsetWidth > 0).length});
    })</script>"""
    page = html.escape(report.page(committed()))
    file = tmp_path / "around.html"
    file.write_text(
        f"<!DOCTYPE html>{probe}<iframe width='{width}' height='900' style='border: 0' srcdoc=\"{page}\">"
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000"]
    done = subprocess.run(
        [*command, file.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, f"the browser did not lay out the page: {done.stderr[-500:]}"
    seen = dict(re.findall(r"(\w+)&quot;:(-?\d+)", found.group(1)))
    assert seen["width"] == str(width)
    assert seen["sticksOut"] == "0" and seen["broken"] == "0" and seen["small"] == "0"
    assert int(seen["pictures"]) > 5 and int(seen["bars"]) > 200
