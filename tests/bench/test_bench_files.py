"""What the benchmarks read and write: nothing measured is lost, and a file that is none of ours gets one line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from lk_triton.bench import conv, network, report
from lk_triton.cli import main


@pytest.mark.parametrize("name", ["file/c.csv", ".", "c.html", "old.csv", "full.csv", "picture.csv"])
@pytest.mark.parametrize("program", [conv, network])
def test_an_unwritable_file_is_said_before_anything_is_measured(
    program: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "old.csv").write_text("kernel_name,provider\n")
    (tmp_path / "full.csv").symlink_to("/dev/full")
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    monkeypatch.setattr(program, "measure", None)
    with pytest.raises(SystemExit, match="2"):
        program.main(["--tiny", "--device", "cpu", "--out", str(tmp_path / name)])
    error = capsys.readouterr().err
    assert f"{tmp_path / name}" in error or "cannot write in" in error
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


def test_a_write_that_fails_leaves_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk fills while the first case is measured: every case is still measured and shown."""
    file = tmp_path / "c.csv"

    def fills_the_disk(name: str, *_: object) -> list[report.Row]:
        file.unlink()
        file.symlink_to("/dev/full")
        return [{"kernel_name": name, "provider": "torch", "p50_us": 123.4}]

    monkeypatch.setattr(conv, "measure", fills_the_disk)
    cases = ("31b-224-stage1-n1", "31b-224-stage2-n1")
    assert conv.main(["--tiny", "--device", "cpu", "--out", str(file), "--cases", *cases]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("123.4") == 2
    assert captured.err.count(f"these rows are not in {file}: No space left on device") == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xd8\xff\xe0\0\x10JFIF\n\x80\x81", "is no CSV file of bench conv or bench network"),
        (b"name,value\na,1\n", "it lacks their columns"),
        (b"kernel_name,p50_us\nx,1.0\nx,fast\n", "row 2: p50_us is 'fast', expected a number"),
        (b"kernel_name,p50_us\nx,nan\n", "row 1: p50_us is 'nan', expected a number"),
        (b"kernel_name,p50_us\nx,1.0,2.0\n", "row 1: it has more cells than the file has columns"),
        (b"kernel_name,p50_us\nx\n", "row 1: it has fewer cells than the file has columns"),
        (b"kernel_name,p50_us,useful_tflops\nx,1.0,2.0\n", "lacks its sizes or its dtype"),
    ],
)
@pytest.mark.parametrize("command", [("plot", "x.png"), ("report", "x.html")])
def test_what_is_no_csv_of_ours(
    command: tuple[str, str], content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "c.csv", tmp_path / command[1]
    file.write_bytes(content)
    assert main(["bench", command[0], str(file), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_what_is_no_output_of_tune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tuned.jsonl"
    for content in (b"\xff", b"{", b"[]", b"7", b'{"type": "result", "trials": [{}]}'):
        file.write_bytes(content)
        assert main(["bench", "model-error", str(file)]) == 2
        assert f"{file} is not what lk-triton tune --json prints" in capsys.readouterr().err


def test_pictures_and_pages_are_checked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "read", None)
    for command, name, message in (
        ("plot", "x.xyz", ".svg"), ("plot", "c.csv/x.png", "there is no directory"),
        ("plot", "no/x.png", "there is no directory"), ("report", "x.png", ".html"),
    ):  # fmt: skip
        (tmp_path / "c.csv").touch()
        assert main(["bench", command, str(tmp_path / "c.csv"), "--out", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["bench", "report", "c.csv", "--out", str(tmp_path / "x.html")]) == 2
    assert "pip install 'lk-triton[analysis]'" in capsys.readouterr().err
