"""What --forbid-skips forbids."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from skips import STUB_MISSING, ForbidSkips


def report(reason: str, *keywords: str, **fields: Any) -> Any:
    text = f"('tests/test_x.py', 3, 'Skipped: {reason}')"
    return SimpleNamespace(nodeid="x", skipped=True, longreprtext=text, keywords=dict.fromkeys(keywords, 1), **fields)


@pytest.mark.parametrize(
    ("skipped", "forbidden"),
    [
        (report("no Triton 3.6"), True),
        (report("no CUDA or ROCm GPU", "gpu"), False),
        (report(f"{STUB_MISSING}: no C compiler"), False),
        (report(f"some other reason, not {STUB_MISSING}"), True),
        (report("", wasxfail="known"), True),
    ],
)
def test_which_skips_fail_the_session(skipped: Any, forbidden: bool) -> None:
    plugin = ForbidSkips()
    plugin.pytest_runtest_logreport(skipped)
    assert plugin.found == (["x"] if forbidden else [])
    session: Any = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    plugin.pytest_sessionfinish(session)
    assert (session.exitstatus != pytest.ExitCode.OK) == forbidden
