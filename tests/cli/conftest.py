"""A network and an image that take a moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lk_triton.cli import images
from lk_triton.models import RepLKNet, create_model, randomize_, registry, save_checkpoint


def replknet_tiny(**kwargs: Any) -> RepLKNet:
    """A network for these tests."""
    sizes = {"large_kernel_sizes": (9, 7, 5, 5), "layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "small_kernel": 3}
    return RepLKNet(**{**sizes, **kwargs})


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
