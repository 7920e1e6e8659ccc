"""Images from files to network input, as RepLKNet's authors evaluate them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .options import UsageError, missing_extra

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
"""What counts as an image inside a directory. A file named on the command line is tried whatever its suffix."""


class Normalization(NamedTuple):
    """Mean and standard deviation of each colour, in units of full scale."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NORMALIZATION = {"replknet_xl": Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
"""Of the models that do not take ``IMAGENET``."""

CROP_SHARE = 224 / 256
WARP_FROM = 384
"""From this size on the whole image is resized to a square, without a crop."""

LONGEST = 50
"""Times its shorter side that an image may be long where the shorter one is resized: the longer one grows with it."""


class Failure(Exception):
    """An image that could not be read, and why."""


def find(paths: Sequence[str]) -> list[Path]:
    """The files among ``paths``, and those with an image's suffix in the directories among them, sorted, recursively.

    Raises:
        UsageError: a directory holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not inside:
            raise UsageError(f"no image in {path}: expected files ending in {' '.join(sorted(SUFFIXES))}")
        found += inside
    return found


def load(path: Path) -> Image.Image:
    """The image in ``path`` as RGB, turned upright as its EXIF data says.

    Raises:
        Failure: there is no such file, Pillow cannot read it, or it has too many pixels. The text does not name the file.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise missing_extra("pillow", "demo") from None
    with failures(path), Image.open(path) as file:
        return to_rgb(ImageOps.exif_transpose(file))


@contextmanager
def failures(path: Path | None = None) -> Iterator[None]:
    """Whatever Pillow raises while it reads ``path`` or works on an image, and want of memory, as a Failure."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at half of what is an error
            yield
    except Failure:
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise Failure(f"more than {most:,} pixels, which may be a trap: make it smaller first") from None
    except MemoryError:
        raise Failure("there is not enough memory for its pixels: make it smaller first") from None
    except Exception as error:  # a broken file makes Pillow's plug-ins raise almost anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Failure(reason.replace(f" {str(path)!r}", "")) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode (grey of 8 or 16 bits, palette, CMYK, with or without alpha) as RGB.

    Raises:
        ValueError: the pixels are floating-point numbers.
    """
    from PIL import Image

    if image.mode == "F":  # convert() would clip [0, 1] to black
        raise ValueError("floating-point pixels, which have no known range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits in 16 or 32; convert() would clip instead of scaling
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def sample() -> Image.Image:
    """The photograph that scikit-image ships: a tabby cat."""
    try:
        from PIL import Image
        from skimage import data
    except ImportError as error:
        raise missing_extra("pillow" if error.name == "PIL" else "scikit-image", "demo") from None
    return Image.fromarray(data.chelsea())


def preprocess(image: Image.Image, size: int, normalization: Normalization) -> Tensor:
    """RGB image -> (3, size, size) float32.

    Below 384 the shorter side becomes size / 0.875 and the centre is cropped; from 384 on the image is warped to a square.

    Raises:
        Failure: the image is too long to be cropped, or there is not enough memory.
    """
    from PIL import Image

    if size >= WARP_FROM:
        return warped(image, size, normalization)
    short, shortest = int(size / CROP_SHARE), min(image.size)
    if max(image.size) > LONGEST * shortest:
        raise Failure(f"{image.width}x{image.height} pixels: expected sides within a factor of {LONGEST}; crop it first")
    with failures():
        sides = (image.width * short // shortest, image.height * short // shortest)
        image = image.resize(sides, Image.Resampling.BICUBIC)
        left, top = round((image.width - size) / 2), round((image.height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
        return normalized(image, normalization)


def warped(image: Image.Image, size: int, normalization: Normalization) -> Tensor:
    """RGB image -> (3, size, size) float32, the whole image resized to a square at any size.

    Raises:
        Failure: there is not enough memory.
    """
    from PIL import Image

    with failures():
        return normalized(image.resize((size, size), Image.Resampling.BICUBIC), normalization)


def normalized(image: Image.Image, normalization: Normalization) -> Tensor:
    """RGB image -> (3, H, W) float32."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return ((pixels - torch.tensor(normalization.mean)) / torch.tensor(normalization.std)).permute(2, 0, 1)


def batched(items: Iterator[tuple[str, Tensor]], size: int) -> Iterator[tuple[list[str], Tensor]]:
    """Group (name, (3, S, S)) into (names, (N, 3, S, S)) with N = ``size``, the last one smaller."""
    names, tensors = [], []
    for name, tensor in items:
        names.append(name)
        tensors.append(tensor)
        if len(names) == size:
            yield names, torch.stack(tensors)
            names, tensors = [], []
    if names:
        yield names, torch.stack(tensors)
