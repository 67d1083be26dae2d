"""A pytest plugin that gates your own ops: ``pytest -p dgm_fast.perf.pytest_plugin --dgm-fast-gate``.

Every family that you registered with :func:`dgm_fast.perf.case` becomes a test: results are checked
against your reference first, then timed in turns with it, and the speed-up is held against
your expectations file. Settings in ``pytest.ini`` or ``pyproject.toml``::

    [tool.pytest.ini_options]
    addopts = "-p dgm_fast.perf.pytest_plugin"
    dgm_fast_cases = "my_package.bench"
    dgm_fast_expectations = "benchmarks/expectations.json"

Not loaded by itself: importing it imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dgm_fast")
    group.addoption(
        "--dgm-fast-gate", action="store_true", help="time your registered ops against expectations"
    )
    group.addoption(
        "--dgm-fast-gate-update", action="store_true", help="enter what is measured as expectations"
    )
    group.addoption("--dgm-fast-reason", help="why less may be expected than before; recorded")
    group.addoption("--dgm-fast-no-compile", action="store_true", help="leave out torch.compile")
    parser.addini("dgm_fast_cases", "modules that register cases", type="args", default=[])
    parser.addini(
        "dgm_fast_expectations", "file of expectations", default="benchmarks/expectations.json"
    )


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    if config.getoption("--dgm-fast-gate") or config.getoption("--dgm-fast-gate-update"):
        items += GateSession.from_parent(session, name="dgm_fast gate").collect()


class GateSession(pytest.Collector):
    """The families of users' cases; the expectations are read once, and written once at the end."""

    def collect(self) -> list[pytest.Item]:
        from dgm_fast.perf.choosing import users_cases

        modules = self.config.getini("dgm_fast_cases")
        if not modules:
            raise pytest.UsageError("--dgm-fast-gate needs the ini option dgm_fast_cases")
        try:
            cases = users_cases(modules)
        except Exception as error:
            raise pytest.UsageError(f"dgm_fast_cases: {error}") from error
        if not cases:
            raise pytest.UsageError(f"{', '.join(modules)} registered no case")
        families = dict.fromkeys(case.family for case in cases)
        return [
            GateItem.from_parent(
                self, name=family, cases=[case for case in cases if case.family == family]
            )
            for family in families
        ]


class GateFailure(Exception):
    """A family below what is expected of it, or wrong."""


class GateItem(pytest.Item):
    """One family: measured, then checked or entered."""

    def __init__(self, *, cases: list[Any], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.cases = cases

    @property
    def expectations(self) -> Path:
        return self.config.rootpath / self.config.getini("dgm_fast_expectations")

    def runtest(self) -> None:
        from dgm_fast.perf import gate
        from dgm_fast.perf.results import ResultError
        from dgm_fast.perf.runner import Options, run_suite

        compiled = not self.config.getoption("--dgm-fast-no-compile")
        result = run_suite(self.cases, Options(compiled=compiled))
        try:
            if self.config.getoption("--dgm-fast-gate-update"):
                old = gate.load(self.expectations) if self.expectations.exists() else gate.empty()
                reason = self.config.getoption("--dgm-fast-reason")
                new, changes = gate.update(result, old, reason)
                gate.save(new, self.expectations)
                self.add_report_section("call", "dgm_fast", "\n".join(changes))
                return
            outcome = gate.check(result, gate.load(self.expectations))
        except FileNotFoundError as error:
            raise GateFailure(f"{error}: enter expectations with --dgm-fast-gate-update") from error
        except ResultError as error:
            raise GateFailure(str(error)) from error
        # Expectations of other families are other items' business.
        outcome.findings = [f for f in outcome.findings if f.family == self.name]
        if not outcome.ok:
            raise GateFailure(gate.text(outcome))
        self.add_report_section("call", "dgm_fast", gate.text(outcome))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, GateFailure):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.expectations, None, f"dgm_fast gate: {self.name}"
