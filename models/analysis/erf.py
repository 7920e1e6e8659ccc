"""Effective receptive field: how much each input pixel contributes to the centre of the last feature map.

Follows the authors' code (RepLKNet-pytorch, ``erf/visualize_erf.py`` and ``erf/analyze_erf.py``), not the paper's equation 2,
which sums over the images before the logarithm where the code takes the mean: log10(x + 1) is not scale-free.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

THRESHOLDS = (20, 30, 50, 99)
"""Percent of the contribution, of the paper's table 10."""

Map = NDArray[np.float64]


class Area(NamedTuple):
    """A centred square: its side in pixels, and its share of the image's area."""

    side: int
    ratio: float


def feature_map(model: nn.Module, x: Tensor) -> Tensor:
    """The last feature map before any norm: x (1, 3, H, W) -> (1, C, h, w).

    By ``forward_intermediates`` where the model has it, as all of ours and timm's do; otherwise the last four-dimensional
    tensor of what ``model(x)`` returns, alone or inside tuples, lists and dicts.

    Raises:
        ValueError: there is no such map, or it is a single pixel, so that it has no centre.
    """
    intermediates = getattr(model, "forward_intermediates", None)
    if intermediates is None:
        outputs = tensors(model(x))
        maps = [t for t in outputs if t.dim() == 4]
        if not maps:
            shapes = ", ".join(str(tuple(t.shape)) for t in outputs) or "no tensor"
            raise ValueError(f"the model returns {shapes}, expected a feature map (N, C, H, W)")
        y = maps[-1]
    else:
        y = intermediates(x, indices=1, norm=False, intermediates_only=True)[-1]
    if min(y.shape[2:]) < 2:
        size, (h, w) = tuple(x.shape[2:]), y.shape[2:]
        raise ValueError(f"images of {size[0]}x{size[1]} are too small: the last feature map is {h}x{w} and has no centre")
    return y


def tensors(output: Any) -> list[Tensor]:
    """Every tensor inside ``output``, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = output.values()
    return [t for part in output for t in tensors(part)] if not isinstance(output, str) and hasattr(output, "__iter__") else []


def contribution(model: nn.Module, x: Tensor) -> Map:
    """Contribution of each pixel of one image: x (1, 3, H, W), normalized -> (H, W), at least 0.

    relu(d s / d x) summed over the colours, with s the sum over channels of relu(map[centre]).

    Raises:
        ValueError: as ``feature_map``.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = feature_map(model, x)
        centre = y[:, :, y.shape[2] // 2, y.shape[3] // 2].relu().sum()
        (gradient,) = torch.autograd.grad(centre, x)
    return gradient.relu().sum((0, 1)).double().cpu().numpy()


def scores(mean: Map) -> Map:
    """Mean contribution (H, W) -> log10(mean + 1), scaled so that the largest is 1.

    Raises:
        ValueError: no pixel contributes.
    """
    logarithms = np.log10(mean + 1)
    if not logarithms.max() > 0:
        raise ValueError("no pixel contributes to the centre of the last feature map: it is 0 there for every image")
    return logarithms / logarithms.max()


def centred_shares(values: Map) -> Map:
    """values (H, W) -> at index i, the share of their sum inside the square of side 2i + 1 around the pixel (H//2, W//2)."""
    rows, columns = (np.abs(np.arange(n) - n // 2) for n in values.shape)
    rings = np.maximum.outer(rows, columns)
    return np.cumsum(np.bincount(rings.ravel(), weights=values.ravel())) / values.sum()


def area(values: Map, percent: float) -> Area:
    """The smallest centred odd square, from 3x3 on, that holds more than ``percent`` % of the sum of ``values`` (H, W).

    The whole image where no square that lies inside it does.
    """
    h, w = values.shape
    shares = centred_shares(values)
    for i in range(1, min(h, w) // 2):
        if shares[i] > percent / 100:
            side = 2 * i + 1
            return Area(side, side * side / (h * w))
    return Area(min(h, w), 1.0)


@dataclass
class Accumulation:
    """The mean contribution over images, in a file that is complete after every image, so that a study can go on.

    Attributes:
        settings: what the mean depends on besides the images; a file made with other settings is not continued.
        images: names of those in the mean.
    """

    settings: dict[str, Any]
    mean: Map | None = None
    images: list[str] = field(default_factory=list)

    def add(self, name: str, contribution: Map) -> None:
        """Take one more image into the mean.

        Raises:
            ValueError: the contribution is not finite; the mean is as it was.
        """
        if not np.isfinite(contribution).all():
            raise ValueError(f"{name}: the gradient is not finite")
        before = np.zeros_like(contribution) if self.mean is None else self.mean
        self.images.append(name)
        self.mean = before + (contribution - before) / len(self.images)

    def save(self, file: Path) -> None:
        """Write arrays ``mean`` (H, W), ``images`` and ``settings`` (JSON) as .npz; the file appears whole or not at all."""
        if self.mean is None:
            return
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as stream:
                np.savez(stream, mean=self.mean, images=np.array(self.images), settings=np.array(json.dumps(self.settings)))
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, file: Path) -> Accumulation:
        """What ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no such file, or cut off.
        """
        try:
            with np.load(file, allow_pickle=False) as content:
                settings = json.loads(str(content["settings"]))
                return cls(settings, content["mean"], [str(name) for name in content["images"]])
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file} is no saved contribution map: {error}") from error
