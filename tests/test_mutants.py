"""The tests that are to see a fault do see it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS

ROOT = Path(__file__).parents[1]


def copy_package(folder: Path) -> None:
    for name in ("lk_triton", "models", "bench", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def run(folder: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """``tests`` on the package in ``folder``, until one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=line", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_copy_without_a_fault_passes(tmp_path: Path) -> None:
    """So that it is the fault that makes a test fail."""
    copy_package(tmp_path)
    done = run(tmp_path, *dict.fromkeys(mutant.test for mutant in MUTANTS.values()))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_is_seen(name: str, tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    copy_package(tmp_path)
    file = tmp_path / mutant.file
    text = file.read_text(encoding="utf-8")
    assert text.count(mutant.old) == mutant.times, f"{name!r} no longer fits {mutant.file}: let it follow the code"
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    done = run(tmp_path, mutant.test)
    # 1: a test failed; below 0: the interpreter wrote where it may not, and was stopped. Not 4 or 5: no such test
    assert done.returncode == 1 or done.returncode < 0, done.stdout + done.stderr
