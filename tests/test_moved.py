"""Old module names: each warns, and is the module of now."""

from __future__ import annotations

import importlib
import sys

import pytest

from lk_triton._moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_warns_and_is_the_module_of_now(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(FutureWarning, match=f"{old} is called {MOVED[old]}"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])
    assert module.__name__ == MOVED[old]


def test_modules_of_a_moved_package_follow() -> None:
    with pytest.warns(FutureWarning):
        old = importlib.import_module("lk_triton.tuning.cache")
    assert old is importlib.import_module("lk_triton.planning.cache")


def test_a_name_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"lk_triton\.never"):
        importlib.import_module("lk_triton.never")
