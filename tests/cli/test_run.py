"""``lk-triton run`` in this process, at sizes that take a moment."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import TINY, error_of, run_json
from PIL import Image
from sabotage import SABOTAGES, sabotaged
from safetensors import SafetensorError, safe_open

import lk_triton
from lk_triton.cli import classes, main, run

pytestmark = pytest.mark.usefixtures("no_interpreter", "tiny_is_known")


def test_run_json(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "--sample", "--topk", "3")
    assert result["model"] == "replknet_tiny"
    assert result["weights"] == "random"
    assert (result["device"], result["dtype"]) == ("cpu", "float32")
    assert 0 < result["max_rel_diff"] < 1e-4
    assert result["features"] == {
        "stages.0": [1, 8, 16, 16],
        "stages.1": [1, 16, 8, 8],
        "stages.2": [1, 24, 4, 4],
        "stages.3": [1, 32, 2, 2],
        "logits": [1, 1000],
    }
    latency = result["latency_ms"]
    assert set(latency) == set(result["latency_spread"]) == {"published", "training_form", "fused"}
    assert all(value > 0 for value in latency.values())
    assert result["speedup"] == pytest.approx(latency["published"] / latency["fused"])
    assert all(spread >= 1 for spread in result["latency_spread"].values())
    assert result["rounds"] >= 5
    assert len(result["load_average"]) == 3
    (entry,) = result["topk"]
    assert len(entry["classes"]) == 3
    assert set(entry["classes"][0]) == {"index", "name", "probability"}
    assert result["versions"]["lk_triton"] == lk_triton.__version__


def test_run_is_seeded(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (run_json(capsys, "--sample")["topk"] for _ in range(2))
    assert first == second


def test_run_text_says_that_weights_are_random(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *TINY, "--sample"]) == 0
    captured = capsys.readouterr()
    assert "RANDOM" in captured.out
    assert "largest difference" in captured.out
    assert "published / fused" in captured.out
    assert captured.err == ""


def test_run_with_checkpoint_names_classes(
    capsys: pytest.CaptureFixture[str], photo: Path, checkpoints: dict[str, Path]
) -> None:
    assert main(["run", *TINY, str(photo), "--checkpoint", str(checkpoints["training"])]) == 0
    out = capsys.readouterr().out
    assert "RANDOM" not in out
    index = int(next(line for line in out[out.index(str(photo)) :].splitlines() if "%" in line).split()[1])
    assert classes.imagenet_1k()[index] in out


@pytest.mark.parametrize("form", ["merged", "fused"])
def test_run_with_a_later_form(
    capsys: pytest.CaptureFixture[str], photo: Path, checkpoints: dict[str, Path], form: str
) -> None:
    result = run_json(capsys, photo, "--checkpoint", checkpoints[form])
    assert result["form"] == form
    assert result["latency_ms"]["published"] is result["speedup"] is None
    assert result["max_rel_diff"] < 1e-4
    expected = run_json(capsys, photo, "--checkpoint", checkpoints["training"])
    assert [c["index"] for c in result["topk"][0]["classes"]] == [c["index"] for c in expected["topk"][0]["classes"]]


def test_run_with_another_head(capsys: pytest.CaptureFixture[str], photo: Path, checkpoints: dict[str, Path]) -> None:
    result = run_json(capsys, photo, "--checkpoint", checkpoints["22k"])
    assert result["features"]["logits"] == [1, 21841]
    assert result["topk"][0]["classes"][0]["name"] is None


def test_run_in_bfloat16(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "--sample", "--dtype", "bf16")
    assert result["dtype"] == "bfloat16"
    assert 1e-4 < result["max_rel_diff"] < 1e-1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_run_fails_on_a_network_that_is_wrong_in_one_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sabotage: str, dtype: torch.dtype
) -> None:
    build = run.build

    def build_wrong(*arguments: Any) -> run.Forms:
        forms = build(*arguments)
        wrong = sabotaged(sabotage, forms.reference, dtype).prepare((1, 3, 64, 64))
        return run.Forms(forms.reference, wrong, {"fused": wrong})

    monkeypatch.setattr(run, "build", build_wrong)
    arguments = ["run", "--sample", *TINY, "--dtype", {"float32": "fp32", "float16": "fp16"}.get(str(dtype)[6:], "bf16")]
    assert main([*arguments, "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("lk-triton: error: the fused form does not compute what the training form does: ")
    assert captured.err.count("\n") == 1
    assert json.loads(captured.out)["failures"]
    assert main(arguments) == 1
    assert " differs by " in capsys.readouterr().out


def test_directory_in_batches(capsys: pytest.CaptureFixture[str], photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b.PNG", "deep/c.webp"):
        Image.open(photo).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    out = tmp_path / "features.safetensors"
    result = run_json(capsys, folder, "--batch", "2", "--features", out)
    assert [Path(name).name for name in result["images"]] == ["a.jpg", "b.PNG", "c.webp"]
    assert result["batch"] == 2
    assert result["features"]["stages.0"] == [3, 8, 16, 16]
    assert len(result["topk"]) == 3
    with safe_open(str(out), "pt") as file:
        assert {name: list(file.get_tensor(name).shape) for name in file.keys()} == result["features"]  # noqa: SIM118
        assert json.loads(file.metadata()["images"]) == result["images"]


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str], photo: Path) -> None:
    assert main(["run", *TINY, str(photo), "--sample", "--json"]) == 0
    captured = capsys.readouterr()
    assert "2/2" in captured.err
    assert len(json.loads(captured.out)["images"]) == 2


def test_unreadable_images_are_named_and_skipped(capsys: pytest.CaptureFixture[str], photo: Path, tmp_path: Path) -> None:
    broken, cut, absent = tmp_path / "broken.jpg", tmp_path / "cut.png", tmp_path / "absent.jpg"
    broken.write_bytes(b"not a picture")
    cut.write_bytes(photo.read_bytes()[:2000])
    assert main(["run", *TINY, *map(str, (broken, absent, cut, photo)), "--json"]) == 1
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["images"] == [str(photo)]
    for file, reason in zip((broken, absent, cut), result["skipped"], strict=True):
        assert str(file) in reason
        assert f"skipped {file}" in captured.err


def test_nothing_readable(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", *TINY, str(tmp_path / "absent.jpg"), "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no image could be read" in captured.err


def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "replknet_31b" in error_of(capsys, "run", "--sample", "--model", "replknet31b")
    assert "--sample" in error_of(capsys, "run")
    assert "no image in" in error_of(capsys, "run", tmp_path)
    assert ".safetensors" in error_of(capsys, "run", "--sample", "--features", tmp_path / "x.npz")
    assert ".safetensors" in error_of(capsys, "run", "--sample", "--features", "-")
    assert "no directory" in error_of(capsys, "run", "--sample", "--features", tmp_path / "no" / "x.safetensors")
    assert "none.pth" in error_of(capsys, "run", *TINY, "--sample", "--checkpoint", tmp_path / "none.pth")


@pytest.mark.parametrize(("module", "arguments"), [
    ("PIL", ("--sample",)),
    ("skimage", ("--sample",)),
    ("PIL", ("photo.jpg",)),
    ("tqdm", ("--sample", "photo.jpg")),
    ("safetensors.torch", ("--sample", "--features", "x.safetensors")),
])  # fmt: skip
def test_missing_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module: str, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'lk-triton[demo]'" in error_of(capsys, "run", *TINY, *arguments)


def test_without_timm_indices_are_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, photo: Path, checkpoints: dict[str, Path]
) -> None:
    monkeypatch.setitem(sys.modules, "timm.data.imagenet_info", None)
    classes.imagenet_1k.cache_clear()
    try:
        assert main(["run", *TINY, str(photo), "--checkpoint", str(checkpoints["training"])]) == 0
    finally:
        classes.imagenet_1k.cache_clear()
    assert "pip install 'lk-triton[timm]'" in capsys.readouterr().out


def test_a_difference_that_is_not_finite_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--sample", *TINY, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "largest difference is not finite" in run.text({**result, "max_rel_diff": None})
    assert "largest difference is not finite" not in run.text(result)


def test_features_are_not_written_over_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.safetensors").mkdir()
    assert main(["run", "--sample", *TINY, "--features", str(tmp_path / "x.safetensors")]) == 2
    assert "it is a directory" in capsys.readouterr().err


def test_features_that_cannot_be_written_leave_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    assert main(["run", "--sample", *TINY, "--features", str(tmp_path / "x.safetensors")]) == 1
    captured = capsys.readouterr()
    assert f"cannot write {tmp_path / 'x.safetensors'}: No space left" in captured.err
    assert "largest difference" in captured.out


def test_class_names() -> None:
    names = classes.imagenet_1k()
    assert len(names) == 1000
    assert names[0].startswith("tench")
    assert "tabby" in names[281]
    assert classes.name(281, 21841) is None
