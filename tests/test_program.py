"""How programs end: pipes without a reader, full disks and Ctrl-C give an exit code and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lk_triton import program
from lk_triton.cli import main

ROOT = Path(__file__).parent.parent
FULL = Path("/dev/full")
SHORT, LONG = 10, 1 << 20
"""Characters that stay in Python's buffer until the end, and more than any buffer holds."""


def pipe_without_a_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("length", [SHORT, LONG])
def test_nobody_reads(length: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stream = os.fdopen(pipe_without_a_reader(), "w")
    monkeypatch.setattr(sys, "stdout", stream)
    assert program.run("us", lambda: print("x" * length) or 0) == program.NO_READER
    stream.close()  # as Python does at exit
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("length", [SHORT, LONG])
def test_a_full_disk(length: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stream = FULL.open("w")
    monkeypatch.setattr(sys, "stdout", stream)
    assert program.run("us", lambda: print("x" * length) or 0) == 1
    stream.close()
    assert capsys.readouterr().err == "us: error: the output: No space left on device\n"


def test_a_file_that_cannot_be_read_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert program.run("us", lambda: len((tmp_path / "absent").read_text())) == 1
    assert capsys.readouterr().err == f"us: error: {tmp_path / 'absent'}: No such file or directory\n"


def test_other_faults_are_not_the_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    def refused() -> int:
        raise ConnectionRefusedError("nobody listens")

    assert program.run("us", refused) == 1
    assert capsys.readouterr().err == "us: error: nobody listens\n"


def test_interrupted() -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert program.run("us", interrupted) == program.INTERRUPTED


def test_exit_codes_pass() -> None:
    assert program.run("us", lambda: 7) == 7
    with pytest.raises(SystemExit, match="2"):
        program.run("us", lambda: sys.exit(2))


@pytest.mark.parametrize("variable", ["LK_TRITON_ALGORITHM", "LK_TRITON_WITHOUT"])
@pytest.mark.parametrize("command", ["run --sample", "info"])
def test_an_algorithm_that_is_none(
    variable: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "cudnn")
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"lk-triton: error: {variable}=cudnn: unknown algorithm 'cudnn'")
    assert error.count("\n") == 1


def test_programs_in_a_shell() -> None:
    """Python's own exit says nothing either, whether ``lk-triton`` runs or a benchmark as a module."""
    writer = pipe_without_a_reader()
    with FULL.open("w") as full:
        started = {
            (program.NO_READER, ""): ("lk_triton.cli", "cache", "path", writer),
            (1, "python -m lk_triton.bench.conv: error: the output: No space left on device\n"):
                ("lk_triton.bench.conv", "--list", "--device=cpu", full),
        }  # fmt: skip
        running = {
            wanted: subprocess.Popen(
                [sys.executable, "-m", *words], stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT
            )
            for wanted, (*words, stdout) in started.items()
        }
        for wanted, process in running.items():
            errors = process.communicate()[1]
            assert (process.returncode, errors) == wanted
    os.close(writer)


def test_interrupted_while_torch_is_imported(tmp_path: Path) -> None:
    """The package imports torch before any function of it can run: the command's own module catches that."""
    (tmp_path / "torch.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(60)")
    code = "import sys, lk_triton_command; sys.exit(lk_triton_command.main())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (program.INTERRUPTED, "", "")
