"""``lk-triton shape-bias`` on synthetic stimuli and on mock models whose bias is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from browser import check
from PIL import Image
from torch import Tensor, nn

from lk_triton.cli import images, main
from lk_triton.models.analysis.shape_bias import categories

if TYPE_CHECKING:
    from browser import Browser

pytestmark = pytest.mark.usefixtures("no_interpreter", "one_thread")
CLASSES = list(categories())
SIDE, STEP = 16, 15
"""A stimulus is a square of so many pixels; its left half is as grey as its shape says, its right half as its texture says."""

MODULE = "test_shape_bias_command"


class Mock(nn.Module):
    """Decides by shape where ``by_shape(shape, texture)`` says so, as indices of the classes; else by texture."""

    def __init__(self, by_shape: Any, wrap: Any = lambda logits: logits) -> None:
        super().__init__()
        self.by_shape, self.wrap = by_shape, wrap

    def forward(self, x: Tensor) -> Any:
        grey = x[:, 0] * images.IMAGENET.std[0] + images.IMAGENET.mean[0]
        halves = grey[:, :, : SIDE // 2].mean((1, 2)), grey[:, :, SIDE // 2 :].mean((1, 2))
        logits = torch.zeros(len(x), 1000)
        for row, left, right in zip(logits, *((255 * half / STEP).round().int().tolist() for half in halves), strict=True):
            chosen = left if self.by_shape(left, right) else right
            row[list(categories()[CLASSES[chosen]])] = 20.0
        return self.wrap(logits)


def shape() -> Mock:
    return Mock(lambda s, t: True)


def texture() -> Mock:
    return Mock(lambda s, t: False, lambda logits: (logits, logits[:, :2]))


def half() -> Mock:
    return Mock(lambda s, t: s < t)


def per_class() -> Mock:
    return Mock(lambda s, t: s < 4)


def not_finite() -> nn.Module:
    return Mock(lambda s, t: True, lambda logits: logits * float("nan"))


def many_classes() -> nn.Module:
    return Mock(lambda s, t: True, lambda logits: logits.repeat(1, 2))


@pytest.fixture(scope="module")
def stimuli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every pair of classes, in a folder a shape, as the published set is laid out."""
    folder = tmp_path_factory.mktemp("stimuli")
    for i, s in enumerate(CLASSES):
        (folder / s).mkdir()
        for j, t in enumerate(CLASSES):
            pixels = np.full((SIDE, SIDE, 3), STEP * i, dtype=np.uint8)
            pixels[:, SIDE // 2 :] = STEP * j
            Image.fromarray(pixels).save(folder / s / f"{s}{j + 1}-{t}{i + 1}.png")
    return folder


def run(*arguments: str | Path, code: int = 0) -> None:
    assert main(["shape-bias", *map(str, arguments), "--size", str(SIDE), "--device", "cpu"]) == code


def test_known_biases(stimuli: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], browser: Browser) -> None:
    models = [f"{MODULE}:{name}" for name in ("shape", "texture", "half", "per_class")]
    run(*models, "--stimuli", stimuli, "--out", tmp_path / "out", "--json")
    found = {entry["model"].partition(":")[2]: entry for entry in json.loads(capsys.readouterr().out)}
    assert [entry["shape_bias"] for entry in found.values()] == [1, 0, 0.5, 0.25]
    assert all(entry["num"] == 240 for entry in found.values())  # 16 of 256 have no conflict
    assert (found["shape"]["shape_accuracy"], found["shape"]["texture_accuracy"]) == (1, 0)
    assert (found["half"]["shape_accuracy"], found["half"]["texture_accuracy"]) == (0.5, 0.5)
    low, high = found["half"]["interval"]
    assert low < 0.5 < high < 0.6
    biases = [found["per_class"]["classes"][name]["shape_bias"] for name in CLASSES]
    assert biases == [1] * 4 + [0] * 12
    biases = [found["half"]["classes"][name]["shape_bias"] for name in CLASSES]
    assert biases == [pytest.approx((15 - i) / 15) for i in range(16)]

    rows = list(csv.DictReader((tmp_path / "out/decisions.csv").open()))
    assert len(rows) == 4 * 256
    assert all(row["decision"] == row["shape"] for row in rows if row["model"] == models[0])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"decisions.csv", "report.html", "shape_bias.png"}
    numbers = ("0.500", "0.250", f"{low:.3f} to {high:.3f}", "100.0%", "240", "keyboard", "0.933")
    entry = found["half"]["classes"]["bear"]
    low, high = entry["interval"]
    by_class = (f"{low:.3f} to {high:.3f}", f"{entry['shape_accuracy']:.1%}", f"{entry['texture_accuracy']:.1%}")
    check(browser, tmp_path / "out/report.html", *numbers, *by_class)


def test_bad_stimuli_are_named_and_the_rest_is_used(stimuli: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    good = Image.open(stimuli / "cat/cat1-airplane8.png")
    good.save(folder / "cat1-airplane8.png")
    good.convert("L").save(folder / "cat2-airplane8.png")
    good.convert("CMYK").save(folder / "cat3-airplane8.tif")
    good.save(folder / "zebra1-cat1.png")
    good.save(folder / "photo.png")
    (folder / "cat4-dog1.png").write_bytes(b"broken")
    run(f"{MODULE}:shape", f"{MODULE}:many_classes", "--stimuli", folder, "--out", tmp_path / "out", "--json", code=1)
    captured = capsys.readouterr()
    (entry,) = json.loads(captured.out)
    assert (entry["num"], entry["shape_bias"]) == (3, 1)
    assert "zebra1-cat1.png: unknown class 'zebra'" in captured.err
    assert "photo.png: the name 'photo' is not of the form" in captured.err
    assert "cat4-dog1.png" in captured.err
    assert "many_classes: the model returns (3, 2000), expected the logits of ImageNet-1K" in captured.err
    assert captured.err.count("skipped") == 4


def test_logits_that_are_not_finite_decide_for_nothing(
    stimuli: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"{MODULE}:not_finite", "--stimuli", stimuli / "cat", "--out", tmp_path, code=1)
    assert f"skipped {MODULE}:not_finite: the model's logits are not finite" in capsys.readouterr().err


def test_random_weights_are_said(stimuli: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/cat1-dog1.png").write_bytes((stimuli / "cat/cat1-airplane8.png").read_bytes())
    assert main(["shape-bias", "test_resnet", "--stimuli", str(tmp_path / "one"), "--size", "64", "--device", "cpu",
                 "--out", str(tmp_path / "out")]) == 0  # fmt: skip
    captured = capsys.readouterr()
    assert "warning: test_resnet: random weights" in captured.err
    assert "shape bias" in captured.out
    assert "test_resnet: random weights" in (tmp_path / "out/report.html").read_text()


def test_wrong_usage(stimuli: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"{MODULE}:shape", "--stimuli", tmp_path / "nowhere", code=2)
    assert "there is no such directory" in capsys.readouterr().err
    (tmp_path / "same").mkdir()
    (tmp_path / "same/cat1-cat2.png").write_bytes((stimuli / "cat/cat1-airplane8.png").read_bytes())
    run(f"{MODULE}:shape", "--stimuli", tmp_path / "same", code=2)
    assert "no cue-conflict image" in capsys.readouterr().err
