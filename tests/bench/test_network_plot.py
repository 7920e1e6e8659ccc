"""Images per second against published accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lk_triton.bench import network_plot, report, usage
from lk_triton.cli import main


def row(name: str, provider: str, n: int, size: int = 224, images: float = 1000.0, **others: object) -> report.Row:
    return {
        "kernel_name": name, "provider": provider, "n": n, "h": size, "w": size, "dtype": "float16", "device": "GPU",
        "torch_version": "2", "commit": "abc", "p50_us": 1.0, "images_per_s": images,
    } | others  # fmt: skip


ROWS = [
    row("replknet_31b-224", "published", 64, images=100.0),
    row("replknet_31b-224", "lk_triton_graph", 64, images=10000.0),
    row("replknet_31b-224", "lk_triton_graph", 1),
    row("convnext_base", "timm_compile/convnext_base", 64),
    row("swin_base_patch4_window12_384", "timm/swin_base_patch4_window12_384", 64, 384),
    row("tiny", "lk_triton", 64, 32),
]


def write(path: Path, *rows: report.Row) -> Path:
    report.append(path, rows)
    return path


def test_panels_and_marks(tmp_path: Path) -> None:
    figure = network_plot.scatter(report.read([write(tmp_path / "n.csv", *ROWS)]))
    assert [axes.get_title() for axes in figure.axes] == ["batch 1", "batch 64"]
    marks = {str(c.get_label()): np.asarray(c.get_offsets()) for c in figure.axes[1].collections}
    assert marks["lk_triton_graph"].tolist() == [[10000.0, 83.5]]
    assert marks["timm_compile"].tolist() == [[1000.0, 83.8]]
    assert marks["timm"].tolist() == [[1000.0, 84.5]]
    texts = {text.get_text() for text in figure.axes[1].texts}
    assert texts == {"replknet_31b-224", "convnext_base", "swin_base_patch4_window12_384"}


def test_the_last_measurement_counts(tmp_path: Path) -> None:
    again = row("replknet_31b-224", "published", 64, images=200.0)
    figure = network_plot.scatter(report.read([write(tmp_path / "n.csv", ROWS[0], again)]))
    assert np.asarray(figure.axes[0].collections[0].get_offsets()).tolist() == [[200.0, 83.5]]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "n.csv", *ROWS)
    assert main(["bench", "plot", str(file), "--out", str(tmp_path / "n.png")]) == 0
    assert (tmp_path / "n.png").read_bytes().startswith(b"\x89PNG")
    write(file, row("31b-224-stage1-n64", "torch", 64, useful_tflops=1.0, images_per_s=""))
    assert main(["bench", "plot", str(file), "--out", str(tmp_path / "n.png")]) == 2
    assert "--cases" in capsys.readouterr().err


def test_nothing_to_plot_and_several_dtypes(tmp_path: Path) -> None:
    with pytest.raises(usage.UsageError, match="published accuracy"):
        network_plot.scatter(report.read([write(tmp_path / "n.csv", ROWS[-1])]))
    with pytest.raises(usage.UsageError, match="--dtype"):
        network_plot.scatter(report.read([write(tmp_path / "m.csv", ROWS[0], ROWS[1] | {"dtype": "bfloat16"})]))
