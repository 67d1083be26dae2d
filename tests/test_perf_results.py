"""Result files: round trip, damage, atomic writing, comparison, tables, README."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.perf_results import make_result, variant

from dgm_fast.perf import machine, readme, results, table

ROOT = Path(__file__).parents[1]


def test_round_trip(tmp_path: Path) -> None:
    result = make_result()
    path = results.save(result, tmp_path / "deep" / "r.json")
    assert results.load(path) == result
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]
    # One line per record: a diff between two commits names the cases that changed.
    assert sum("elbo/medium" in line for line in path.read_text().splitlines()) == 1


def test_file_name_holds_date_machine_and_suite(tmp_path: Path) -> None:
    result = make_result()
    first = results.default_path(result, tmp_path)
    assert first.name == "2026-01-31-example-2-00ghz-2t-cpu.json"
    results.save(result, first)
    assert results.default_path(result, tmp_path).name == "2026-01-31-example-2-00ghz-2t-cpu-2.json"


def test_truncated_file(tmp_path: Path) -> None:
    path = results.save(make_result(), tmp_path / "r.json")
    text = path.read_text()
    for length in (0, 10, len(text) // 2, len(text) - 3):
        path.write_text(text[:length])
        with pytest.raises(results.ResultError, match="not valid JSON"):
            results.load(path)


def test_edited_file(tmp_path: Path) -> None:
    path = results.save(make_result(), tmp_path / "r.json")
    path.write_text(path.read_text().replace('"ms": 1.0', '"ms": 0.5'))
    with pytest.raises(results.ResultError, match="damaged or was edited"):
        results.load(path)


def test_binary_file(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(bytes(range(256)))
    with pytest.raises(results.ResultError, match="not valid JSON"):
        results.load(tmp_path / "r.json")


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"schema": {"name": "other", "version": 1}}', "3"]
)
def test_foreign_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(results.ResultError, match="not a result file"):
        results.load(tmp_path / "r.json")


@pytest.mark.parametrize("version", [0, 2, None])
def test_other_schema_version(tmp_path: Path, version: int | None) -> None:
    result = make_result()
    result["schema"]["version"] = version
    path = results.save(result, tmp_path / "r.json")
    with pytest.raises(results.ResultError, match=f"schema version {version}"):
        results.load(path)


def test_missing_part(tmp_path: Path) -> None:
    path = results.save(make_result(), tmp_path / "r.json")
    body = json.loads(path.read_text())
    del body["ceiling"]
    path.write_text(json.dumps(body))
    with pytest.raises(results.ResultError, match="no ceiling"):
        results.load(path)
    body["ceiling"] = {}
    del body["records"]
    with pytest.raises(results.ResultError, match="'records'"):
        results.save(body, tmp_path / "other.json")


def test_value_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    result = make_result()
    result["records"][0]["modes"]["both"]["ours"]["ms"] = float("nan")
    with pytest.raises(results.ResultError, match="cannot be written"):
        results.save(result, tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = results.save(make_result(), tmp_path / "r.json")
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        results.save(make_result(threads=1), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_compare() -> None:
    before, after = make_result(commit="a"), make_result(commit="b", dirty=True)
    after["records"][0]["modes"]["both"]["ours"] = variant(1.5)
    after["records"].append({**copy.deepcopy(after["records"][0]), "case": "new/small/float32"})
    changes = {(c.case, c.mode, c.variant): c.ratio for c in results.compare(before, after)}
    assert changes["elbo/medium/float32", "both", "ours"] == pytest.approx(1.5)
    assert changes["elbo/medium/float32", "both", "eager"] == 1.0
    assert not any(case.startswith("new") for case, _, _ in changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [("threads", 1), ("isa", "avx512"), ("torch", "2.11.0"), ("cpu", "Other"), ("device", "cuda")],
)
def test_different_machines_are_not_compared(field: str, value: Any) -> None:
    first, second = make_result(), make_result(**{field: value})
    assert first["machine"]["fingerprint"] != second["machine"]["fingerprint"]
    with pytest.raises(
        results.ResultError, match=f"different machines.*{field}: .* against {value}"
    ):
        results.compare(first, second)


def test_description_of_this_machine() -> None:
    facts = machine.describe(torch.device("cpu"))
    assert set(machine.FINGERPRINT_FIELDS) <= set(facts)
    assert facts["cpu"] and facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["fingerprint"] == machine.fingerprint(facts) and len(facts["fingerprint"]) == 12
    json.dumps(facts)
    other = {**facts, "commit": "elsewhere", "dirty": True}
    assert machine.fingerprint(other) == facts["fingerprint"]


def test_commit_without_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("DGM_FAST_COMMIT", raising=False)
    assert machine.revision() == {"commit": None, "dirty": None}
    monkeypatch.setenv("DGM_FAST_COMMIT", "abc")
    assert machine.revision() == {"commit": "abc", "dirty": None}


def test_rows_compare_with_the_fastest_rival() -> None:
    forward, both = table.rows(make_result())
    assert forward.speed_up == pytest.approx(0.5)
    assert both.speed_up == pytest.approx(2.0)
    assert (both.eager_ms, both.compile_ms, both.peer_ms, both.ours_ms) == (4.0, 2.0, 3.0, 1.0)
    assert both.ours_iqr_ms == pytest.approx(0.2)
    assert both.gb_s == pytest.approx(2.0)
    assert both.roof_share == pytest.approx(0.5)
    assert both.saved_bytes == 512


def test_plain_text_shows_losses_and_notes() -> None:
    result = make_result(ours="reference", ours_reason="the C++ extension is not built")
    result["records"].append(
        {
            "case": "bad/small/float32",
            "shape": [2],
            "status": "failed",
            "failures": ["ours: value is off"],
            "unavailable": {"compile": "RuntimeError: no compiler"},
        }
    )
    text = table.plain_text(result)
    assert "0.50x" in text and "2.00x" in text and "9/-/1" in text
    assert "these are not figures of this library" in text
    assert "bad/small/float32: FAILED, no figure: ours: value is off" in text
    assert "bad/small/float32: compile not measured: RuntimeError: no compiler" in text
    header = next(line for line in text.splitlines() if line.startswith("case"))
    row = next(line for line in text.splitlines() if "fwd+bwd" in line)
    for title, cell in (("eager ms", "4.000"), ("ours ms", "1.000"), ("speed-up", "2.00x")):
        assert header.index(title) + len(title) == row.index(cell) + len(cell)


def test_a_wrong_rival_is_marked_and_does_not_count() -> None:
    result = make_result()
    (record,) = result["records"]
    for by_variant in record["modes"].values():
        by_variant.pop("peer", None)
        del by_variant["compile"]
    record["wrong"] = {"compile": "value is off by 7.00e-01", "zuko": "grad.x is off by 2.00e-02"}
    _, both = table.rows(result)
    assert both.speed_up == pytest.approx(4.0), "over eager alone"
    assert table.cells(both)[3:7] == ("4.000", "wrong", "wrong", "1.000")
    note = "elbo/medium/float32: compile is wrong and does not count: value is off by 7.00e-01"
    section = readme.section(result, "r.json")
    for text in (table.plain_text(result), section):
        assert note in text and "zuko is wrong" in text
    assert "| 4.000 | wrong | 1.000 | 4.00x |" in section
    # Of several peers the right ones are shown.
    record["modes"]["both"]["nflows"] = variant(3.0)
    assert table.cells(table.rows(result)[1])[5] == "3.000"


def test_launch_is_told_apart_from_the_kernel() -> None:
    result = make_result()
    assert table.launches(result) == []
    result["records"][0]["kernel"] = variant(0.15)
    (line, _) = table.launches(result)
    assert line.endswith("0.6000 ms a call, 0.1500 ms in a CUDA graph, launch 75%")
    assert line in table.plain_text(result)


def test_show_writes_plain_text_where_there_is_no_terminal(capsys: pytest.CaptureFixture) -> None:
    table.show(make_result())
    assert capsys.readouterr().out == table.plain_text(make_result())


def test_readme_section(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Title\n\n<!-- bench:start -->\nold\n<!-- bench:end -->\n\nrest\n")
    path = results.save(make_result(), tmp_path / "benchmarks" / "results" / "r.json")
    arguments = [str(path), "--readme", str(page)]
    assert readme.main([*arguments, "--check"]) == 1
    assert readme.main(arguments) == 0
    text = page.read_text()
    assert text.startswith("# Title\n\n<!-- bench:start -->\n")
    assert text.endswith("\n<!-- bench:end -->\n\nrest\n")
    assert "old" not in text
    assert "| elbo/medium/float32 | 128x784x50 | 4.000 | 2.000 | 1.000 | 2.00x |" in text
    assert readme.named_result(text) == "benchmarks/results/r.json"
    assert readme.main([*arguments, "--check"]) == 0
    # A figure edited by hand is noticed.
    page.write_text(text.replace("2.00x", "9.00x"))
    assert readme.main([*arguments, "--check"]) == 1


def test_readme_shows_the_largest_sizes_and_names_every_loss() -> None:
    result = make_result()
    (medium,) = result["records"]
    for size, ours in (("small", 2.5), ("odd", 1.0), ("large", 0.5)):
        modes = {"both": {**medium["modes"]["both"], "ours": variant(ours)}}
        result["records"].append({**medium, "case": f"elbo/{size}/float32", "modes": modes})
    result["records"].append({**medium, "case": "iwae_step/digits/float32"})
    text = readme.section(result, "r.json")
    shown = [line.split(" |")[0] for line in text.splitlines() if line.startswith("| ")]
    assert shown[2:] == ["| elbo/large/float32", "| iwae_step/digits/float32"]
    # Of medium, small and odd: 2, 0.8 and 2.
    assert "The 3 other cases" in text and f"{3.2 ** (1 / 3):.2f}x the better rival" in text
    assert "Lost among them: elbo/small/float32 0.80x." in text


@pytest.mark.parametrize(
    "text",
    ["no markers", "<!-- bench:start -->", "<!-- bench:end --><!-- bench:start -->"],
)
def test_readme_without_markers_stays_as_it_is(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture
) -> None:
    page = tmp_path / "README.md"
    page.write_text(text)
    path = results.save(make_result(), tmp_path / "r.json")
    assert readme.main([str(path), "--readme", str(page)]) == 2
    assert "bench:" in capsys.readouterr().err
    assert page.read_text() == text


def test_readme_refuses_a_damaged_result(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- bench:start --><!-- bench:end -->")
    (tmp_path / "r.json").write_text("{")
    assert readme.main([str(tmp_path / "r.json"), "--readme", str(page)]) == 2
    assert "not valid JSON" in capsys.readouterr().err


def test_readme_is_in_step_with_its_result_file() -> None:
    page = ROOT / "README.md"
    if not page.exists():
        pytest.skip("no README")
    name = readme.named_result(page.read_text())
    if name is None:
        pytest.skip("README has no benchmark section yet")
    assert (ROOT / name).exists(), f"README names {name}, which is not there"
    assert readme.main([str(ROOT / name), "--readme", str(page), "--check"]) == 0, (
        f"README's table is not that of {name}: python -m dgm_fast.perf.readme {name}"
    )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda p: p.name
)
def test_committed_results_are_readable(path: Path) -> None:
    assert results.load(path)["records"]
