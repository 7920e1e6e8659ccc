"""Command lines in this process, and what they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lk_triton.cli import main

TINY = ("--model", "replknet_tiny", "--size", "64", "--device", "cpu")
"""The network of ``conftest.py``."""


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    assert main(["run", *TINY, *map(str, arguments), "--json"]) == code
    out = capsys.readouterr().out
    return json.loads(out)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a wrong command line gets."""
    try:
        code = main([*map(str, arguments)])
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("lk-triton")
    return captured.err
