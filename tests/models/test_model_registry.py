"""Networks by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lk_triton import models
from lk_triton.models import RepLKNet, create_model, list_models, register, registry, save_checkpoint

NAMES = ["replknet_13", "replknet_25", "replknet_3", "replknet_31b", "replknet_31l", "replknet_7", "replknet_xl"]


def test_list_models() -> None:
    assert list_models() == NAMES
    assert list_models("31") == ["replknet_31b", "replknet_31l"]
    assert list_models("_?5") == ["replknet_25"]
    assert list_models("resnet") == []
    assert all(callable(getattr(models, name)) for name in NAMES)


@pytest.mark.parametrize(("name", "near"), [("replknet31b", "replknet_31b"), ("RepLKNet-XL", "replknet_xl"), ("31b", "31b")])
def test_unknown_model_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown model '{name}'.*{near}"):
        create_model(name)


def test_arguments_reach_the_network() -> None:
    model = create_model("replknet_31l", num_classes=5, in_chans=1, dtype=torch.float64, device="meta", layers=(1, 1, 1, 1))
    assert model.head.weight.shape == (5, 1536)
    assert model.state_dict()["stem.0.conv.weight"].shape[1] == 1
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert create_model("replknet_31b", device="meta", merged=True).form == "merged"
    with pytest.raises(TypeError, match="nonsense"):
        create_model("replknet_3", nonsense=1)


def test_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_factories", {})

    @register
    def replknet_mine(**kwargs: Any) -> RepLKNet:
        return RepLKNet(**{"channels": (8, 8, 8, 8), **kwargs})

    assert list_models() == ["replknet_mine"]
    assert create_model("replknet_mine", device="meta").num_features == 8


def test_checkpoint_argument(tmp_path: Path) -> None:
    options: dict[str, Any] = {"channels": (8, 8, 8, 8), "layers": (1, 1, 1, 1), "num_classes": 3}
    model = create_model("replknet_3", **options)
    save_checkpoint(model, tmp_path / "a.pth")
    again = create_model("replknet_3", tmp_path / "a.pth", **options)
    torch.testing.assert_close(again.state_dict(), model.state_dict())
