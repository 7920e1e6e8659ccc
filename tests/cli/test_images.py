"""Images from files to network input: what Pillow can read, as torchvision would prepare it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_lines import run_json
from PIL import Image

from lk_triton.cli import images

pytestmark = pytest.mark.usefixtures("no_interpreter", "tiny_is_known")


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
