"""The README keeps its word: examples run, links lead somewhere, figures have a result file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_is_a_short_example() -> None:
    assert EXAMPLES
    assert len(EXAMPLES[0].strip().splitlines()) <= 10


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_example_runs(index: int, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:dgm_fast", "-c", EXAMPLES[index]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "document", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_to_files(document: str) -> None:
    folder = (ROOT / document).parent
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    assert [link for link in links if "://" not in link and not (folder / link).exists()] == []


def test_make_targets_named_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^    |`)make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_measured_section_is_empty_or_names_its_result_file() -> None:
    match = re.search(r"<!-- bench:start -->\n(.*?)\n?<!-- bench:end -->", README, re.DOTALL)
    assert match is not None
    body = match.group(1).strip()
    if body != "no result file yet":
        assert re.search(r"benchmarks/results/[\w.-]+\.json", body)


def test_environment_variables_in_use_are_documented() -> None:
    used: set[str] = set()
    for file in [ROOT / "setup.py", *(ROOT / "dgm_fast").rglob("*.py")]:
        used |= set(re.findall(r"\bDGM_FAST_[A-Z_]+\b", file.read_text()))
    used -= {"DGM_FAST_MODULE"}  # a compiler macro
    assert used
    documents = README + (ROOT / "docs" / "development.md").read_text()
    assert {name for name in used if f"`{name}" not in documents} == set()
