"""The roofline: one mark a measured provider and case, under the device's roofs."""

from __future__ import annotations

import sys
from pathlib import Path

import bench_figures as figures
import pytest

from lk_triton.bench import plot, report, usage
from lk_triton.cli import main

TIMES = {"torch": 9.0, "torch_channels_last": 5.0, "lk_triton_auto": 1.5}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "conv.csv"
    rows = figures.rows(TIMES, "31b-224-*-n64", "table1-r16-*")
    report.append(file, [*rows, rows[0] | {"provider": "torch_native", "note": "not installed", "useful_tflops": ""}])
    return file


def test_command_writes_a_picture(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = file.with_suffix(".png")
    assert main(["bench", "plot", str(file), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.stat().st_size > 20_000


def test_marks_and_roofs(file: Path) -> None:
    rows = report.read([file])
    (axes,) = plot.roofline(rows).axes
    marks = {str(c.get_label()): len(c.get_offsets()) for c in axes.collections}  # type: ignore[arg-type]
    assert marks == dict.fromkeys(TIMES, 14)
    texts = [text.get_text() for text in axes.texts]
    for roof in ("DRAM 3 TB/s", "L2 5.5 TB/s", "MMA\n989 TFLOP/s", "FMA\n66.9 TFLOP/s"):
        assert roof in texts
    assert {row["kernel_name"] for row in rows} <= set(texts)


def test_marks_lie_under_the_roofs(file: Path) -> None:
    for row in report.latest(report.read([file])):
        assert float(row["useful_tflops"]) < min(989, 3 * plot.intensity(row))


def test_measuring_again_replaces_a_mark(file: Path) -> None:
    report.append(file, figures.rows({"torch": 2.0}, "31b-224-*-n64"))
    again = [row for row in report.latest(report.read([file])) if row["provider"] == "torch"]
    assert len(again) == 14
    assert sum(float(row["floor_ratio"]) == 2 for row in again) == 4


def test_a_cpu_has_marks_and_no_roofs() -> None:
    rows = [{k: str(v) for k, v in row.items()} for row in figures.rows(TIMES, "31b-224-*-n1", device="cpu, 2 threads")]
    figure = plot.roofline(rows)
    assert not any("DRAM" in text.get_text() for text in figure.axes[0].texts)
    assert "no roofs" in figure.get_suptitle()


def test_wrong_use_is_one_line(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    report.append(file, figures.rows(TIMES, "wide-*", dtype="float32"))
    wrong = {
        (str(file),): "choose one with --dtype",
        (str(file), "--cases", "nothing"): "nothing to plot",
        ("absent.csv",): "absent.csv: No such file",
    }
    for arguments, message in wrong.items():
        assert main(["bench", "plot", *arguments, "--out", "x.png"]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(usage.UsageError, match=r"pip install 'lk-triton\[plot\]'"):
        plot.roofline([])


def test_names_are_spread() -> None:
    assert plot.spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert plot.spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert plot.spread([0.98, 0.99, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])
    assert plot.spread([0.0, 0.01, 0.2], 0.1) == pytest.approx([0, 0.1, 0.2])
    assert plot.spread([0.3] * 11, 0.2) == pytest.approx([i / 10 for i in range(11)])
