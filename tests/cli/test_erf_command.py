"""``lk-triton erf`` on tiny networks: files, resumption, bad images, and the report in a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from browser import check
from PIL import Image
from torch import nn

from lk_triton.cli import images, main
from lk_triton.models import RepLKNet, create_model, randomize_, registry, save_checkpoint
from lk_triton.models.analysis import erf, published
from lk_triton.models.analysis import report as erf_report

if TYPE_CHECKING:
    from browser import Browser

pytestmark = pytest.mark.usefixtures("no_interpreter", "one_thread", "tiny_is_known")
SIZE = ("--size", "64", "--device", "cpu")


def replknet_tiny(**kwargs: Any) -> RepLKNet:
    """A network for these tests."""
    sizes = {"large_kernel_sizes": (7, 5), "layers": (1, 1), "channels": (4, 8), "small_kernel": 3}
    return RepLKNet(**{**sizes, **kwargs})


def convolution() -> nn.Module:
    """A callable by name, which weighs a 5x5 box alike."""
    conv = nn.Conv2d(3, 1, 5, padding=2)
    nn.init.ones_(conv.weight)
    nn.init.constant_(conv.bias, 1000)  # pyright: ignore[reportArgumentType]  # every relu is open
    return conv


def box() -> nn.Module:
    """A callable whose network another run may find changed."""
    conv = nn.Conv2d(3, 1, BOX[0], padding=BOX[0] // 2)
    nn.init.ones_(conv.weight)
    nn.init.constant_(conv.bias, 1000)  # pyright: ignore[reportArgumentType]
    return conv


BOX = [5]


def not_finite() -> nn.Module:
    """A callable whose gradients are no numbers."""
    conv = nn.Conv2d(3, 1, 5)
    nn.init.constant_(conv.weight, float("nan"))
    return conv


def classifier() -> nn.Module:
    """A callable without a feature map."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture(scope="module")
def tiny_is_known() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_factories", registry._factories | {"replknet_tiny": replknet_tiny})
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photographs of different cuts."""
    found = tmp_path / "photos"
    found.mkdir()
    photo = images.sample()
    for i in range(3):
        photo.crop((50 * i, 0, 50 * i + 200, 200)).save(found / f"{i}.png")
    return found


def run(*arguments: str | Path, code: int = 0) -> None:
    assert main(["erf", *map(str, arguments), *SIZE]) == code


def test_files_json_and_random_weights(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("replknet_tiny", "test_erf_command:convolution", "--images", folder, "--num", "2", "--out", tmp_path / "out", "--json")
    captured = capsys.readouterr()
    ours, theirs = json.loads(captured.out)
    assert set(ours) == {"model", "size", "num", "area_ratio", "side"}
    assert (ours["model"], ours["size"], ours["num"]) == ("replknet_tiny", 64, 2)
    assert list(ours["side"]) == list(ours["area_ratio"]) == ["20", "30", "50", "99"]
    for percent, side in ours["side"].items():
        assert ours["area_ratio"][percent] == pytest.approx((side / 64) ** 2)
    assert "warning: replknet_tiny: random weights" in captured.err
    assert "warning: test_erf_command" not in captured.err
    assert theirs["side"] == {"20": 3, "30": 3, "50": 5, "99": 5}  # a plain 5x5 box
    names = {p.name for p in (tmp_path / "out").iterdir()}
    stems = ("replknet_tiny", "test_erf_command_convolution")
    assert names == {"erf.png", "report.html", *(f"{s}.npz" for s in stems), *(f"{s}.png" for s in stems)}
    mean = np.load(tmp_path / "out/test_erf_command_convolution.npz")["mean"]
    assert mean.shape == (64, 64)
    assert np.count_nonzero(mean) == 25


def test_mean_over_images_is_that_of_the_library(folder: Path, tmp_path: Path) -> None:
    model = randomize_(create_model("replknet_tiny")).eval()
    save_checkpoint(model, tmp_path / "tiny.safetensors")
    run("replknet_tiny", "--checkpoint", tmp_path / "tiny.safetensors", "--images", folder, "--out", tmp_path / "out")
    contributions = [
        erf.contribution(model, images.warped(images.load(p), 64, images.IMAGENET)[None]) for p in sorted(folder.iterdir())
    ]
    saved = np.load(tmp_path / "out/replknet_tiny.npz")
    np.testing.assert_allclose(saved["mean"], np.mean(contributions, axis=0), rtol=1e-5, atol=1e-9)
    assert len(saved["images"]) == 3


def test_a_run_goes_on_where_it_stopped(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("replknet_tiny", "--images", folder, "--out", tmp_path / "out", "--json")
    run(*arguments)
    whole = json.loads(capsys.readouterr().out)
    for name in ("replknet_tiny.npz", "report.html"):
        (tmp_path / "out" / name).unlink()

    computed: list[int] = []
    contribution = erf.contribution

    def interrupted(*args: Any) -> Any:
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(1)
        return contribution(*args)

    monkeypatch.setattr(erf, "contribution", interrupted)
    assert main(["erf", *map(str, arguments), *SIZE]) == 130
    assert len(np.load(tmp_path / "out/replknet_tiny.npz")["images"]) == 2
    computed[:] = [0]  # one more may come
    capsys.readouterr()
    run(*arguments)
    assert json.loads(capsys.readouterr().out) == whole
    assert len(computed) == 2


def test_what_does_not_fit_is_replaced_only_with_overwrite(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ("replknet_tiny", "--images", folder, "--out", out)

    def other_names() -> None:
        (folder / "0.png").rename(folder / "9.png")

    def broken() -> None:
        (out / "replknet_tiny.npz").write_bytes(b"PK\x03\x04")

    run(*arguments)
    for change, more, message in (
        (other_names, (), "was made from other images or with other settings"),
        (lambda: None, ("--num", "1"), "was made from other images or with other settings"),
        (broken, (), "is no saved contribution map"),
    ):
        change()
        before = {file: file.read_bytes() for file in out.iterdir()}
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(erf, "contribution", None)  # said before anything is computed
            run(*arguments, *more, code=2)
        error = capsys.readouterr().err
        assert message in error
        assert "--overwrite" in error
        assert {file: file.read_bytes() for file in out.iterdir()} == before
        run(*arguments, *more, "--overwrite")
        assert f"starting over: {out / 'replknet_tiny.npz'}" in capsys.readouterr().err


def test_a_report_of_other_networks_is_replaced_only_with_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--sample", "--out", tmp_path)
    run("test_erf_command:convolution", *more)
    run("replknet_tiny", *more, code=2)
    assert "results of other networks (test_erf_command_convolution): name them too" in capsys.readouterr().err
    run("replknet_tiny", "test_erf_command:convolution", *more)
    run("replknet_tiny", *more, "--overwrite")
    for file in tmp_path.glob("*.npz"):
        file.unlink()
    capsys.readouterr()
    run("replknet_tiny", *more, code=2)
    assert "report.html of another study" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_leaves_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "report.html"))

    monkeypatch.setattr(erf_report.Report, "write", full)
    run("replknet_tiny", "--sample", "--out", tmp_path, code=1)
    captured = capsys.readouterr()
    assert f"cannot write {tmp_path / 'report.html'}: No space left on device" in captured.err
    assert "high-contribution area ratio" in captured.out
    assert captured.out.endswith("report: not written\n")


def test_a_callable_that_changed_is_not_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("test_erf_command:box", "--sample", "--out", tmp_path, "--json")
    run(*arguments)
    run(*arguments)
    assert "starting over" not in capsys.readouterr().err
    monkeypatch.setattr("test_erf_command.BOX", [9])
    before = (tmp_path / "test_erf_command_box.npz").read_bytes()
    run(*arguments, code=1)
    assert "pass --overwrite to start over" in capsys.readouterr().err
    assert (tmp_path / "test_erf_command_box.npz").read_bytes() == before
    run(*arguments, "--overwrite")
    captured = capsys.readouterr()
    assert "starting over" in captured.err
    assert json.loads(captured.out)[0]["side"]["99"] == 9


def test_a_finished_run_says_again_what_it_passed_over(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "00.png").write_bytes(b"no image")
    for _ in range(2):
        run("replknet_tiny", "--images", folder, "--num", "2", "--out", tmp_path / "out", "--json", code=1)
        captured = capsys.readouterr()
        assert json.loads(captured.out)[0]["num"] == 2
        assert f"skipped {folder / '00.png'}: cannot identify image file\n" in captured.err
    run("replknet_tiny", "--images", folder, "--num", "3", "--out", tmp_path / "out", code=1)


def test_gradients_that_are_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("test_erf_command:not_finite", "--sample", "--out", tmp_path, code=1)
    assert "skipped sample: the gradient is not finite, of test_erf_command:not_finite" in capsys.readouterr().err


def test_bad_images_are_named_and_the_rest_is_taken(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], browser: Browser
) -> None:
    photo = images.sample().crop((0, 0, 64, 64))
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:2000])
    photo.convert("L").save(folder / "grey.png")
    photo.convert("CMYK").save(folder / "cmyk.tif")
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.float32) / 255).save(folder / "real.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "turned.jpg", exif=exif)
    run("replknet_tiny", "--images", folder, "--out", tmp_path / "out", "--json", code=1)
    captured = capsys.readouterr()
    assert json.loads(captured.out)[0]["num"] == 7
    assert captured.err.count("skipped") == 3
    assert "real.tif: floating-point pixels" in captured.err
    assert "broken.jpg" in captured.err
    assert "cut.png" in captured.err
    check(browser, tmp_path / "out/report.html", "broken.jpg", "cut.png")


def test_a_network_that_fails_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("test_erf_command:classifier", "replknet_tiny", "--sample", "--out", tmp_path, "--json", code=1)
    captured = capsys.readouterr()
    assert [entry["model"] for entry in json.loads(captured.out)] == ["replknet_tiny"]
    assert "skipped test_erf_command:classifier: the model returns (1, 3), expected a feature map" in captured.err


def test_too_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["erf", "replknet_tiny", "--sample", "--size", "8", "--out", str(tmp_path), "--device", "cpu"]) == 1
    assert "replknet_tiny: images of 8x8 are too small: the last feature map is 1x1" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (("replknet_tiny",), "name a directory with --images DIR, or pass --sample"),
    (("replknet_tinny", "--sample"), "unknown model 'replknet_tinny'"),
    (("replknet_tiny", "replknet_tiny", "--sample"), "each model once"),
    (("no_such_module:f", "--sample"), "cannot import no_such_module:f"),
    (("test_erf_command:SIZE", "--sample"), "is tuple, expected a function"),
    (("broken_module:f", "--sample"), "cannot import broken_module:f: name 'oops' is not defined"),
    (("replknet_tiny", "--sample", "--checkpoint", "x.pth", "--checkpoint", "y.pth"), "one checkpoint a model"),
    (("replknet_tiny", "resnet18", "--sample", "--checkpoint", "x.pth"), "say whose it is, such as --checkpoint"),
    (("replknet_tiny", "--sample", "--checkpoint", "x.pth"), "cannot read x.pth"),
    (("replknet_tiny", "resnet18", "--sample", "--checkpoint", "resnet18=y.pth"), "cannot read y.pth"),
    (("test_erf_command:convolution", "--sample", "--checkpoint", "x.pth"), "load its weights itself"),
])  # fmt: skip
def test_wrong_usage(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "broken_module.py").write_text("oops")
    monkeypatch.syspath_prepend(tmp_path)
    run(*arguments, "--out", tmp_path, code=2)
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_out_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    run("replknet_tiny", "--sample", "--out", tmp_path / "file", code=2)
    assert "cannot write to" in capsys.readouterr().err


def test_report_in_a_browser(tmp_path: Path, capsys: pytest.CaptureFixture[str], browser: Browser) -> None:
    torch.manual_seed(0)
    run("replknet_tiny", "resnet18", "--sample", "--out", tmp_path, "--json")
    entries = json.loads(capsys.readouterr().out)
    numbers = [f"{ratio:.1%}" for entry in entries for ratio in entry["area_ratio"].values()]
    sides = [f"{side} x {side}" for entry in entries for side in entry["side"].values()]
    table = [cell for row in published.table("erf").rows for cell in row]
    check(browser, tmp_path / "report.html", *numbers, *sides, *table, "replknet_tiny, resnet18: random weights")
    light, dark = (browser.view(tmp_path / "report.html", scheme, 1280).sources for scheme in ("light", "dark"))
    assert len(light) == 3
    assert light[0] != dark[0], "the picture with axes has its own for dark pages"
    assert "http" not in (tmp_path / "report.html").read_text()


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("replknet_tiny", "--sample", "--out", tmp_path)
    out = capsys.readouterr().out
    assert "high-contribution area ratio" in out
    assert str(tmp_path / "report.html") in out
