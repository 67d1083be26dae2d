"""Tests that need TRITON_INTERPRET=1, as part of an ordinary test run.

The variable changes what ``triton.jit`` makes of every kernel, so such tests run in a process of their
own. A test file marks its tests and lies under a folder whose ``conftest.py`` imports the hooks below:

    pytestmark = pytest.mark.interpreter

The ordinary run collects these tests, starts one child process for all of those selected, beside its
other tests, waits for it at the first, and reports each with the outcome it had in the child.
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
_CHILD = pytest.StashKey["Child"]()
_RESULTS = pytest.StashKey[dict[str, dict[str, Any]]]()


def active() -> bool:
    """Whether this process runs Triton kernels in the interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_finish(session: pytest.Session) -> None:
    marked = [i.nodeid for i in session.items if i.get_closest_marker("interpreter")]
    if marked and not active() and not session.config.option.collectonly:
        session.config.stash[_CHILD] = Child(session.config.rootpath, marked)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Nothing of it outlives a run that ended before it was needed."""
    if _CHILD in config.stash:
        config.stash[_CHILD].stop()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if active() or not pyfuncitem.get_closest_marker("interpreter"):
        return None
    config = pyfuncitem.config
    if _RESULTS not in config.stash:
        config.stash[_RESULTS] = config.stash[_CHILD].results()
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


class Child:
    """The process that runs tests in the interpreter."""

    def __init__(self, root: Path, nodeids: list[str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._report = Path(self._folder.name, "report.jsonl")
        self._output = Path(self._folder.name, "output.txt")
        # The kernels run in numpy, one program after the other: more threads only get in the way.
        variables = {
            "TRITON_INTERPRET": "1",
            "OMP_NUM_THREADS": "1",
            _REPORT: str(self._report),
        }
        with self._output.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *nodeids],
                cwd=root,
                env=os.environ | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Tests that look at the clock run beside it.
                preexec_fn=lambda: os.nice(10),
            )

    def results(self) -> dict[str, dict[str, Any]]:
        """What became of every test, when all are done; and under "output" the end of what it wrote."""
        self._process.wait()
        lines = self._report.read_text().splitlines() if self._report.exists() else []
        found: dict[str, dict[str, Any]] = {
            "output": {"text": self._output.read_text(errors="replace")[-4000:]}
        }
        for line in map(json.loads, lines):
            # A failure in teardown comes after the call's own line and outweighs it.
            found[line["nodeid"]] = line
        return found

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()
