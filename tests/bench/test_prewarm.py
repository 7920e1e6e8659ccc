"""What was compiled elsewhere is found again, in another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from skips import STUB_MISSING

from lk_triton.bench import machine, prewarm, stub
from lk_triton.bench.usage import UsageError

ROOT = Path(__file__).parents[2]


def cache_of_one_kernel(folder: Path) -> Path:
    kernel = folder / "ABC"
    kernel.mkdir(parents=True)
    names = ["k.cubin", "k.json", "k.ptx", "k.ttir"]
    for name in names:
        (kernel / name).write_text(name)
    (kernel / "__grp__k.json").write_text(json.dumps({"child_paths": {name: str(kernel / name) for name in names}}))
    return folder


def test_an_archive_is_unpacked_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "a.tar.gz"
    assert prewarm.pack(cache_of_one_kernel(tmp_path / "there"), archive) == 3
    assert prewarm.main(["--unpack", str(archive), "--state", str(tmp_path / "here")]) == 0
    assert "Triton here is the one that compiled them" in capsys.readouterr().out
    kernel = tmp_path / "here" / "triton" / "ABC"
    assert sorted(file.name for file in kernel.iterdir()) == ["__grp__k.json", "k.cubin", "k.json"]
    paths = json.loads((kernel / "__grp__k.json").read_text())["child_paths"]
    assert paths == {name: str(kernel / name) for name in ("k.cubin", "k.json")}, "Triton asks whether all are there"


def test_another_triton_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.tar.gz"
    prewarm.pack(cache_of_one_kernel(tmp_path / "there"), archive)
    here = machine.software() | {"triton_key": "other"}
    monkeypatch.setattr(machine, "software", lambda: here)
    assert "of no use here: triton_key" in prewarm.agreement(archive)


def test_wrong_calls(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_text("no archive")
    for arguments in ([], ["--out", "a", "--unpack", "b"], ["--unpack", str(tmp_path / "x.tar.gz")],
                      ["--unpack", str(tmp_path / "x.tar.gz"), "--state", str(tmp_path / "s")],
                      ["--out", str(tmp_path)]):  # fmt: skip
        with pytest.raises(SystemExit, match="2"):
            prewarm.main(arguments)
    with pytest.raises(UsageError, match="is no archive of bench prewarm"):
        prewarm.facts_of(tmp_path / "x.tar.gz")


@pytest.mark.slow
def test_triton_compiles_nothing_again(tmp_path: Path) -> None:
    if (reason := stub.missing()) is not None:
        pytest.skip(f"{STUB_MISSING}: {reason}")

    def launch(cache: Path) -> set[str]:
        """Kernels are launched; returns what was compiled for them, as a compilation leaves it behind."""
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", "tests.bench.refused_launches"], env=environment, cwd=ROOT, check=True)
        return {file.name for file in cache.rglob("*.ttir")}

    assert launch(tmp_path / "there") == {"copy.ttir", "copy_tile.ttir"}
    prewarm.pack(tmp_path / "there", tmp_path / "a.tar.gz")
    prewarm.unpack(tmp_path / "a.tar.gz", tmp_path / "here")
    assert launch(tmp_path / "here") == set()
