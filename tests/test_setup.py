"""setup.sh, with stand-ins for Python and for a virtual environment, so that nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a bash script")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("setup.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def venv(clone: Path) -> Path:
    """A finished environment whose commands write down how they were called, and from where."""
    for name in ("pip", "python", "lk-triton"):
        script(clone / ".venv/bin" / name, f'echo "{name} $* in $PWD" >>"{clone}/calls"')
    return clone / ".venv"


def setup(clone: Path, *arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("LK_TRITON_VENV", "PYTHON")}
    command = ["bash", str(clone / "setup.sh"), *arguments]
    return subprocess.run(command, cwd=cwd or clone, env=kept | variables, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [(), ("install",)])
def test_unknown_command(clone: Path, arguments: tuple[str, ...]) -> None:
    done = setup(clone, *arguments)
    assert done.returncode == 1
    assert "bash setup.sh demo" in done.stderr


def test_no_python(clone: Path) -> None:
    done = setup(clone, "demo", PYTHON="python-that-is-not-there")
    assert done.returncode == 1
    assert "apt install python3 python3-venv" in done.stderr


def test_old_python(clone: Path) -> None:
    old = script(clone / "old", '[ "$1" = --version ] && echo "Python 3.9.2" && exit; [[ $2 != *version_info* ]]')
    done = setup(clone, "demo", PYTHON=str(old))
    assert done.returncode == 1
    assert "Python 3.9.2 is too old" in done.stderr


def test_python_without_venv(clone: Path) -> None:
    bare = script(clone / "bare", "[[ $2 != *ensurepip* ]]")
    done = setup(clone, "test", PYTHON=str(bare))
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_commands_in_either_order_install_once_each(clone: Path, venv: Path, tmp_path: Path) -> None:
    for arguments in (("demo",), ("test", "-m", "not slow"), ("demo", "photo.jpg"), ("test",)):
        done = setup(clone, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (clone / "calls").read_text().splitlines() == [
        f"python -m pip install --quiet --editable .[demo] in {clone}",
        f"lk-triton run --sample in {tmp_path}",
        f"python -m pip install --quiet --editable .[test] in {clone}",
        f"python -m pytest -m not slow in {clone}",
        f"lk-triton run photo.jpg in {tmp_path}",
        f"python -m pytest in {clone}",
    ]


def test_a_changed_pyproject_installs_again(clone: Path, venv: Path) -> None:
    setup(clone, "test")
    stamp = (venv / ".lk-triton-test").stat().st_mtime
    os.utime(clone / "pyproject.toml", (stamp + 10, stamp + 10))
    setup(clone, "test")
    assert (clone / "calls").read_text().count("pip install") == 2


def test_an_environment_of_the_callers(clone: Path, venv: Path) -> None:
    venv.rename(clone / "own")
    done = setup(clone, "test", LK_TRITON_VENV="own")
    assert done.returncode == 0, done.stderr
    assert not venv.exists()


def test_a_failed_installation_is_tried_again(clone: Path, venv: Path) -> None:
    script(venv / "bin/python", "exit 3")
    assert setup(clone, "demo").returncode != 0
    assert not (venv / ".lk-triton-demo").exists()
