"""Where tests run, and which may be skipped.

Without a GPU the Triton kernels run in Triton's interpreter; ``pytest -m gpu`` on a GPU machine compiles them instead.
``--forbid-skips`` (or LK_TRITON_FORBID_SKIPS=1) makes a skip or an expected failure of any test not marked ``gpu`` an error:
see ``skips.py``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from browser import Browser


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--forbid-skips",
        action="store_true",
        default=os.environ.get("LK_TRITON_FORBID_SKIPS") == "1",
        help="fail if a test that is not marked gpu is skipped or expected to fail",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Triton reads the variable when a kernel is decorated, its own when it is imported: before any test unsets the variable.
    if config.option.markexpr != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"
        if find_spec("triton"):
            import_module("triton")
    # What somebody has tuned on this machine must not decide what is tested; a test that tunes takes a folder of its own.
    os.environ["LK_TRITON_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), f"lk_triton-no-cache-{os.getpid()}")
    if config.getoption("--forbid-skips") and not hasattr(config, "workerinput"):
        from skips import ForbidSkips

        config.pluginmanager.register(ForbidSkips(), "lk-triton-forbid-skips")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from lk_triton.gpu import interpreted

    reason = "TRITON_INTERPRET is set: run pytest -m gpu" if interpreted() else _missing_gpu()
    if reason:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA or ROCm GPU"


@pytest.fixture(autouse=True)
def no_remembered_calls() -> None:
    """What a test replaces decides its own calls."""
    second_call = sys.modules.get("lk_triton.ops.second_call")
    if second_call is not None:
        second_call.forget()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For many tiny operations: torch's threads only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors take the torch algorithm, as they do for a user, instead of Triton's interpreter."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium; without it the tests that look at pages are skipped, which --forbid-skips does not allow."""
    from browser import Browser, missing

    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    browser = Browser()
    yield browser
    browser.close()
