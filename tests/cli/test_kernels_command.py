"""``lk-triton kernels`` on tiny networks."""

from __future__ import annotations

import csv
import json
import sys
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


def test_results_are_replaced_only_with_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here as in every study that cannot go on; what it says comes before any work."""
    for command in (
        ("kernels", "test_kernels_command:network"),
        ("study", "kernel-size", "--no-measure"),
        ("shape-bias", "test_kernels_command:network", "--stimuli", str(tmp_path / "stimuli")),
    ):
        out = tmp_path / command[0]
        (tmp_path / "stimuli").mkdir(exist_ok=True)
        (tmp_path / "stimuli" / "cat1-dog1.png").touch()
        out.mkdir()
        (out / "report.html").write_text("hours of work")
        assert main([*command, "--out", str(out)]) == 2
        assert f"{out} holds report.html of another run: pass --overwrite" in capsys.readouterr().err
        assert (out / "report.html").read_text() == "hours of work"
    assert main(["kernels", "test_kernels_command:network", "--out", str(tmp_path / "kernels"), "--overwrite"]) == 0
    assert (tmp_path / "kernels/report.html").read_text().startswith("<!")


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_what_is_missing_is_said_before_the_work(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["kernels", "test_kernels_command:network", "--out", str(tmp_path / "out")]) == 2
    assert f"{module} is not installed: pip install 'lk-triton[analysis]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
