"""A pytest plugin for runs that are cut short: ``pytest -p lk_triton.bench.passed --passed FILE`` leaves out the tests that
FILE names, and adds to it each that passes, as it passes."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare ``--passed``."""
    parser.addoption("--passed", type=Path, metavar="FILE", help="tests that need not run again; those that pass are added")


def pytest_configure(config: pytest.Config) -> None:
    """Read the file before any test is run: with pytest-xdist each worker leaves out the same tests."""
    file = config.getoption("--passed")
    if file is not None:
        config.pluginmanager.register(Passed(file, records=not hasattr(config, "workerinput")), "lk-triton-passed")


class Passed:
    """The tests that have passed; one of several processes ``records``."""

    def __init__(self, file: Path, records: bool) -> None:
        self.file, self.records = file, records
        self.names = set(file.read_text().splitlines()) if file.exists() else set()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Deselect."""
        done = [item for item in items if item.nodeid in self.names]
        if done:
            config.hook.pytest_deselected(items=done)
            items[:] = [item for item in items if item.nodeid not in self.names]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record."""
        if self.records and report.when == "call" and report.passed:
            with self.file.open("a") as stream:
                stream.write(f"{report.nodeid}\n")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """No test left is no failure."""
        if self.names and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK
