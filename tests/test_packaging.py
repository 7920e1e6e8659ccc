"""The wheel and the source archive: each file once, everything there, and the wheel the same whichever way it is built."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lk_triton"
COMMAND = "lk_triton_command.py"


def pip_wheel(source: Path, out: Path) -> zipfile.ZipFile:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)]
    subprocess.run(command, check=True, cwd=out.parent)
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel)


def expected(*suffixes: str) -> set[str]:
    """Files of the package with these suffixes, through its symbolic links, as they are named in a wheel."""
    found = set()
    for folder in (PACKAGE, PACKAGE / "models", PACKAGE / "bench"):
        found |= {p.relative_to(ROOT).as_posix() for p in folder.rglob("*") if p.suffix in suffixes}
    return found


@pytest.mark.slow
def test_wheel_and_sdist(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy, because setuptools leaves its build/ behind and would read it the next time
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info"))
    archive = tmp_path / "sdist"
    build = [sys.executable, "-m", "build", "--sdist", "--outdir", str(archive), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (tar,) = archive.glob("*.tar.gz")
    with tarfile.open(tar) as opened:
        opened.extractall(tmp_path, filter="data")
    unpacked = tmp_path / tar.name.removesuffix(".tar.gz")

    direct = pip_wheel(source, tmp_path / "direct")
    indirect = pip_wheel(unpacked, tmp_path / "indirect")
    names = direct.namelist()
    assert sorted(names) == sorted(indirect.namelist())
    assert len(names) == len(set(names))
    information = next(n for n in names if ".dist-info/" in n).split("/")[0]
    assert {n.split("/")[0] for n in names} == {"lk_triton", COMMAND, information}
    assert {n for n in names if n.endswith(".py")} == expected(".py") | {COMMAND}
    assert expected(".json", ".toml", ".html", ".c") <= set(names)
    assert "lk_triton/py.typed" in names
    assert any(n.endswith("licenses/LICENSE") for n in names)
