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


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_is_seen(name: str, tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    for folder in ("lk_triton", "models", "bench", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    file = tmp_path / mutant.file
    text = file.read_text(encoding="utf-8")
    assert text.count(mutant.old) == mutant.times, f"{name!r} no longer fits {mutant.file}: let it follow the code"
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=line", mutant.test]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    # 1: a test failed; below 0: the interpreter wrote where it may not, and was stopped. Not 4 or 5: no such test
    assert done.returncode == 1 or done.returncode < 0, done.stdout + done.stderr
