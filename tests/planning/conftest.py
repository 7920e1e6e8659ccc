"""A cache folder and a folder of shipped tables for each test, and a clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import Clock

from lk_triton.planning import autotune as on_call
from lk_triton.planning import cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's cache, empty."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    cache.reload()
    yield tmp_path / "cache"
    cache.reload()


@pytest.fixture(autouse=True)
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of shipped tables, empty."""
    (tmp_path / "tables").mkdir()
    monkeypatch.setattr(cache, "TABLES", tmp_path / "tables")
    return tmp_path / "tables"


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is said or tuned once per process has not been yet."""
    monkeypatch.setattr(on_call, "_told", set())
    monkeypatch.setattr(on_call, "_tuned", set())


@pytest.fixture
def clock() -> Clock:
    return Clock()
