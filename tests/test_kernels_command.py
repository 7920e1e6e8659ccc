"""``lk-triton kernels`` on tiny networks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from browser import check
from torch import nn

from lk_triton.cli import main
from lk_triton.models import RepLKNet, randomize_

if TYPE_CHECKING:
    from browser import Browser

pytestmark = pytest.mark.usefixtures("no_interpreter", "one_thread")


def network() -> nn.Module:
    return randomize_(RepLKNet((9, 7), (2, 1), (4, 8), 3, num_classes=2))


def test_files_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], browser: Browser) -> None:
    assert main(["kernels", "test_kernels_command:network", "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {p.name for p in tmp_path.iterdir()} == {"kernels.csv", "maps.npz", "kernels.png", "report.html"}
    rows = list(csv.DictReader((tmp_path / "kernels.csv").open()))
    assert [{k: str(v) for k, v in row.items()} for row in found] == rows
    assert [row["kernel"] for row in found] == ["9x9", "7x7"]
    assert found[0]["centre_mass_flat"] == pytest.approx(9 / 81)
    maps = np.load(tmp_path / "maps.npz")
    assert {name: maps[name].shape for name in maps} == {
        "stage1_before": (9, 9), "stage1_after": (9, 9), "stage2_before": (7, 7), "stage2_after": (7, 7),
    }  # fmt: skip
    shares = [f"{row[key]:.1%}" for row in found for key in row if key.startswith("centre")]
    check(browser, tmp_path / "report.html", *shares, "9x9, 4 channels, 2 layers", "stages.0.blocks.2.large_kernel")


def test_random_weights_and_networks_without_branches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "convnext_atto", "--out", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "warning: convnext_atto: random weights" in captured.err
    assert "7x7" in captured.out
    assert "random weights" in (tmp_path / "report.html").read_text()


def test_networks_without_large_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "test_resnet", "--out", str(tmp_path)]) == 2
    assert "test_resnet: the network has no depthwise convolution of 5x5 or more" in capsys.readouterr().err
