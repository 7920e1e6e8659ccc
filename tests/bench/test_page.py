"""The page of measurements: every figure of the CSV is in it, losses and failures too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import bench_figures as figures
import pytest
from browser import check

from lk_triton.bench import page, report, usage
from lk_triton.cli import main

if TYPE_CHECKING:
    from browser import Browser


def test_page_in_a_browser(tmp_path: Path, browser: Browser, capsys: pytest.CaptureFixture[str]) -> None:
    rows = figures.rows({"torch": 9.0, "torch_channels_last": 0.9, "lk_triton_auto": 1.5}, "31b-224-*-n64")
    rows += figures.rows({"torch": 4.0, "lk_triton_auto": 2.0}, "31b-224-*-n1", device="cpu, 2 threads", dtype="float32")
    unmeasured = {"p50_us": "", "useful_tflops": ""}
    wrong = rows[0] | unmeasured | {"provider": "torch_native", "gate": "failed", "note": "error above 1e-3: not timed"}
    network = {
        "kernel_name": "replknet_31b", "provider": "fused", "n": 64, "dtype": "float16", "device": figures.GPU, "gate": "ok",
        "p50_us": 12345.0, "spread": 1.01, "images_per_s": 5184.3, "speedup": 6.78,
    }  # fmt: skip
    report.append(tmp_path / "all.csv", [*rows, wrong, network])
    assert main(["bench", "report", str(tmp_path / "all.csv"), "--out", str(tmp_path / "all.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "all.html")
    numbers = [report.cell(row[column]) for row in rows for column in ("p50_us", "useful_tflops", "floor_ratio")]
    failure = "31b-224-stage1-n64, torch_native: error above 1e-3: not timed"
    check(browser, tmp_path / "all.html", *numbers, "replknet_31b", "5184", "6.780", failure, "cpu, 2 threads, float32")


def test_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(usage.UsageError, match="no row has a figure"):
        page.page([])
    assert main(["bench", "report", str(tmp_path / "none.csv"), "--out", str(tmp_path / "x.html")]) == 2
