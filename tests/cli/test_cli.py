"""The command line: ``main`` in this process, at sizes that take a moment."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sabotage import SABOTAGES, sabotaged
from safetensors import SafetensorError, safe_open

import lk_triton
from lk_triton.algorithms.depthwise.toeplitz_hopper.host import why_no_gluon
from lk_triton.algorithms.registry import meant_for
from lk_triton.cli import classes, images, main, run
from lk_triton.models import RepLKNet, create_model, randomize_, registry, save_checkpoint
from lk_triton.ops.problem import ConvProblem, DenseProblem, FfnProblem, StemProblem

TINY = ("--model", "replknet_tiny", "--size", "64", "--device", "cpu")


def replknet_tiny(**kwargs: Any) -> RepLKNet:
    """A network for these tests."""
    sizes = {"large_kernel_sizes": (9, 7, 5, 5), "layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "small_kernel": 3}
    return RepLKNet(**{**sizes, **kwargs})


pytestmark = pytest.mark.usefixtures("no_interpreter", "tiny_is_known")


@pytest.fixture(scope="module")
def tiny_is_known() -> Iterator[None]:
    """``create_model`` knows the tiny network while this module's tests run, and not after."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_factories", registry._factories | {"replknet_tiny": replknet_tiny})
        yield


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "cat.png"
    images.sample().save(file)
    return file


@pytest.fixture(scope="module")
def checkpoints(tiny_is_known: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny network with the same random weights in each form, and with a head of 21841 classes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = randomize_(create_model("replknet_tiny")).eval()
    files = {}
    for form in ("training", "merged", "fused"):
        if form != "training":
            model.convert(form)
        files[form] = folder / f"{form}.safetensors"
        save_checkpoint(model, files[form])
    files["22k"] = folder / "22k.safetensors"
    save_checkpoint(create_model("replknet_tiny", num_classes=21841), files["22k"])
    return files


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    assert main(["run", *TINY, *map(str, arguments), "--json"]) == code
    out = capsys.readouterr().out
    return json.loads(out)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a wrong command line gets."""
    try:
        code = main([*map(str, arguments)])
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("lk-triton")
    return captured.err


# ---- run ----------------------------------------------------------------------------------------------------------------


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
    assert "float16" in error_of(capsys, "run", "--sample", "--dtype", "int8")
    assert "'tpu'" in error_of(capsys, "run", "--sample", "--device", "tpu")
    assert "cuda:99" in error_of(capsys, "run", "--sample", "--device", "cuda:99")
    assert "positive" in error_of(capsys, "run", "--sample", "--size", "0")
    assert "positive" in error_of(capsys, "run", "--sample", "--batch", "x")
    assert ".safetensors" in error_of(capsys, "run", "--sample", "--features", tmp_path / "x.npz")
    assert ".safetensors" in error_of(capsys, "run", "--sample", "--features", "-")
    assert "no directory" in error_of(capsys, "run", "--sample", "--features", tmp_path / "no" / "x.safetensors")
    assert "none.pth" in error_of(capsys, "run", *TINY, "--sample", "--checkpoint", tmp_path / "none.pth")
    assert "sm_90" in error_of(capsys, "info", "--arch", "gpu")
    assert "COMMAND" in error_of(capsys)


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


# ---- images -------------------------------------------------------------------------------------------------------------


def test_class_names() -> None:
    names = classes.imagenet_1k()
    assert len(names) == 1000
    assert names[0].startswith("tench")
    assert "tabby" in names[281]
    assert classes.name(281, 21841) is None


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "RGBA", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    original = images.sample()
    if mode == "I;16":
        image = Image.fromarray(np.asarray(original.convert("L")).astype(np.uint16) * 257)
    else:
        image = original.convert(mode)
    file = tmp_path / ("x.tif" if mode in ("CMYK", "I;16") else "x.png")
    image.save(file)
    loaded = images.load(file)
    assert loaded.mode == "RGB"
    reference = np.asarray(original.convert("L"), dtype=float)
    assert np.abs(np.asarray(loaded.convert("L"), dtype=float) - reference).mean() < (
        130 if mode == "1" else 12
    )  # 1 bit is dithered


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    upright = images.sample()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left
    file = tmp_path / "turned.jpg"
    upright.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif, quality=95)
    loaded = images.load(file)
    assert loaded.size == upright.size
    assert np.abs(np.asarray(loaded, dtype=float) - np.asarray(upright, dtype=float)).mean() < 5


@pytest.mark.parametrize("size", [64, 224, 384])
@pytest.mark.parametrize("shape", [(451, 300), (300, 451), (40, 30)])
def test_preprocessing_is_torchvisions(size: int, shape: tuple[int, int]) -> None:
    from torchvision import transforms

    image = images.sample().resize(shape)
    bicubic = transforms.InterpolationMode.BICUBIC
    resize = (
        [transforms.Resize((size, size), bicubic)]
        if size >= 384
        else [transforms.Resize(int(size / (224 / 256)), bicubic), transforms.CenterCrop(size)]
    )
    expected = transforms.Compose([*resize, transforms.ToTensor(), transforms.Normalize(*images.IMAGENET)])(image)
    torch.testing.assert_close(images.preprocess(image, size, images.IMAGENET), expected)


def test_preprocessing_step_by_step() -> None:
    """Bit for bit."""
    x = images.preprocess(images.sample(), 224, images.IMAGENET)
    plain = images.sample().resize((451 * 256 // 300, 256), Image.Resampling.BICUBIC)
    left, top = round((plain.width - 224) / 2), round((plain.height - 224) / 2)
    assert torch.equal(x, images.normalized(plain.crop((left, top, left + 224, top + 224)), images.IMAGENET))


@pytest.mark.parametrize("shape", [(1, 51), (102, 2)])
def test_images_that_are_too_long_are_refused(
    shape: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their longer side would grow with the shorter: 196 bytes of PNG, 1x60000, would become 256x15,360,000 pixels."""
    width, height = shape
    for name, size in (("long.png", shape), ("short.png", (min(50, width), min(50, height)))):
        Image.new("1", size).save(tmp_path / name)
    result = run_json(capsys, tmp_path, code=1)
    assert result["images"] == [str(tmp_path / "short.png")]
    (reason,) = result["skipped"]
    assert reason == f"{tmp_path / 'long.png'}: {width}x{height} pixels: expected sides within a factor of 50; crop it first"


def test_want_of_memory_costs_one_image(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    large = tmp_path / "large.png"
    Image.new("RGB", (500, 500)).save(large)
    resize = Image.Image.resize

    def limited(image: Image.Image, *arguments: Any) -> Image.Image:
        if image.size == (500, 500):
            raise MemoryError
        return resize(image, *arguments)

    monkeypatch.setattr(Image.Image, "resize", limited)
    result = run_json(capsys, large, photo, code=1)
    assert result["images"] == [str(photo)]
    assert result["skipped"] == [f"{large}: there is not enough memory for its pixels: make it smaller first"]


def test_many_pixels(photo: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    """Beyond Pillow's limit it is a line, and between half of it and the limit nothing."""
    pixels = 451 * 300
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels - 1)
    assert images.load(photo).size == (451, 300)
    assert not recwarn
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels // 4)
    with pytest.raises(images.Failure, match=f"^more than {pixels // 4 * 2:,} pixels, which may be a trap"):
        images.load(photo)


# ---- info ---------------------------------------------------------------------------------------------------------------


KINDS = {"dense": DenseProblem, "ConvFFN": FfnProblem, "stem": StemProblem}


@pytest.mark.parametrize("arch", [None, "sm_90", "sm_80", "sm_70"])
def test_info_json(capsys: pytest.CaptureFixture[str], arch: str | None) -> None:
    assert main(["info", "--json", *(("--arch", arch) if arch else ())]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["versions"]) == {"lk_triton", "torch", "triton", "python"}
    assert {"c_compiler", "python_headers", "device"} <= set(result)
    layers = result["layers"]
    half = [layer for layer in layers if layer["dtype"] == "float16"]
    assert sum(layer["count"] for layer in half) == 130 - 4 - 2, (
        "four ConvFFNs and the stem's first three layers are posed whole"
    )
    assert sum(layer["count"] for layer in layers if layer["dtype"] == "float32") == 130
    for layer in layers:
        assert layer["algorithm"] in layer["estimate_us"]
        kind = next((k for word, k in KINDS.items() if f" {word} " in layer["problem"]), ConvProblem)
        meant = meant_for(kind).keys()
        assert set(layer["estimate_us"]) | set(layer["refusals"]) == meant
    large = next(layer for layer in half if "31x31" in layer["problem"])
    if arch in ("sm_90", "sm_80"):
        assert large["algorithm"] == ("resident" if arch == "sm_90" and why_no_gluon() is None else "toeplitz")
    elif arch == "sm_70":
        assert "toeplitz" in large["refusals"]


def test_info_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert main(["info", "--arch", "sm_90"]) == 0
    out = capsys.readouterr().out
    assert "apt install gcc" in out
    assert "(64, 128, 56, 56) 31x31 float16" in out
    assert "not from a measurement" in out


def test_version_and_module() -> None:
    command = [sys.executable, "-m", "lk_triton.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"lk-triton {lk_triton.__version__}\n"


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
