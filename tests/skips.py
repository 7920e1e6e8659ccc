"""Which tests may be skipped in a run that is to be whole: those that need a GPU, and those on the stub driver where there is
no C compiler, with which Triton builds its launcher."""

from __future__ import annotations

import pytest

STUB_MISSING = "the stub driver cannot be built"
"""How the reason of the latter begins."""


class ForbidSkips:
    """Turns skips and expected failures outside ``gpu``, but those for ``STUB_MISSING``, into a failing session."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        allowed = "gpu" in report.keywords or (report.skipped and f"Skipped: {STUB_MISSING}" in report.longreprtext)
        if (report.skipped or hasattr(report, "wasxfail")) and not allowed:
            self.found.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.found.append(report.nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.found:
            terminalreporter.section("skips and expected failures that are not allowed here", red=True)
            terminalreporter.write_line("\n".join(self.found))
