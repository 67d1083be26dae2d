"""Tests that need TRITON_INTERPRET=1, as part of an ordinary test run.

The variable changes what ``triton.jit`` makes of every kernel, so such tests run in a process of their
own. A test file marks its tests and lies under a folder whose ``conftest.py`` imports the hooks below:

    pytestmark = pytest.mark.interpreter

The ordinary run collects these tests, starts one child process for all of those selected when it
reaches the first, and reports each with the outcome it had in the child.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

_REPORT = "DGM_FAST_INTERPRETER_REPORT"
_SELECTED = pytest.StashKey[list[str]]()
_RESULTS = pytest.StashKey[dict[str, dict[str, Any]]]()


def active() -> bool:
    """Whether this process runs Triton kernels in the interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[_SELECTED] = [
        item.nodeid for item in session.items if item.get_closest_marker("interpreter")
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if active() or not pyfuncitem.get_closest_marker("interpreter"):
        return None
    config = pyfuncitem.config
    if _RESULTS not in config.stash:
        config.stash[_RESULTS] = _run_child(config.rootpath, config.stash[_SELECTED])
    result = config.stash[_RESULTS].get(pyfuncitem.nodeid)
    if result is None:
        output = config.stash[_RESULTS]["output"]["text"]
        pytest.fail(f"the interpreter process gave no result:\n{output}", pytrace=False)
    if result["outcome"] == "skipped":
        pytest.skip(f"in the interpreter process: {result['text']}")
    if result["outcome"] == "failed":
        pytest.fail(f"in the interpreter process:\n{result['text']}", pytrace=False)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the child: one line of JSON for the call of each test, or for what kept it from running."""
    path = os.environ.get(_REPORT)
    if path is None or (report.when != "call" and report.passed):
        return
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    with open(path, "a") as file:
        line = {"nodeid": report.nodeid, "outcome": report.outcome, "text": text}
        file.write(json.dumps(line) + "\n")


def _run_child(root: Path, nodeids: list[str]) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.jsonl")
        # The kernels run in numpy, one program after the other: more threads only get in the way.
        variables = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", _REPORT: str(path)}
        child = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *nodeids],
            cwd=root,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines = path.read_text().splitlines() if path.exists() else []
    results: dict[str, dict[str, Any]] = {"output": {"text": child.stdout[-4000:]}}
    for line in map(json.loads, lines):
        # A failure in teardown comes after the call's own line and outweighs it.
        results[line["nodeid"]] = line
    return results
