"""Networks for the studies: whose they are, where their weights come from, how their images are normalized."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lk_triton.cli import images
from lk_triton.cli.analysis import backbones
from lk_triton.cli.options import UsageError
from lk_triton.models import create_model, randomize_, save_checkpoint

CPU = torch.device("cpu")


def test_random_weights_are_seeded_and_frozen() -> None:
    first, second = (backbones.sources(["test_resnet"])[0].build(64, CPU) for _ in range(2))
    assert first.weights == backbones.RANDOM
    for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad
    assert not first.module.training


def test_normalization_is_the_models_own() -> None:
    assert backbones.sources(["vit_tiny_patch16_224"])[0].build(64, CPU).normalization == ((0.5,) * 3, (0.5,) * 3)
    assert backbones.sources(["resnet18"])[0].build(64, CPU).normalization == images.IMAGENET


def test_networks_of_a_fixed_size_are_built_for_the_size_asked_for() -> None:
    model = backbones.sources(["vit_tiny_patch16_224"])[0].build(96, CPU).module
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 1000)


def test_timm_checkpoint(tmp_path: Path) -> None:
    import timm

    saved = timm.create_model("test_resnet")
    torch.save(saved.state_dict(), tmp_path / "resnet.pth")
    (source,) = backbones.sources(["test_resnet"], [str(tmp_path / "resnet.pth")])
    built = source.build(64, CPU)
    assert built.weights == str(tmp_path / "resnet.pth")
    for key, tensor in built.module.state_dict().items():
        assert torch.equal(tensor, saved.state_dict()[key])


@pytest.mark.parametrize("form", ["training", "merged", "fused"])
def test_our_checkpoint_of_any_form(form: str, tmp_path: Path) -> None:
    model = randomize_(create_model("replknet_3", num_classes=7)).eval().convert(form)
    save_checkpoint(model, tmp_path / "a.safetensors")
    ours, other = backbones.sources(["replknet_3", "test_resnet"], [f"replknet_3={tmp_path / 'a.safetensors'}"])
    built = ours.build(64, CPU)
    assert torch.equal(built.module.get_parameter("head.bias"), model.head.bias)  # pyright: ignore
    assert other.checkpoint is None


def test_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    torch.save({"stem.0.conv.weight": torch.ones(1)}, tmp_path / "bad.pth")
    (source,) = backbones.sources(["replknet_3"], [str(tmp_path / "bad.pth")])
    with pytest.raises(UsageError, match=r"cannot build replknet_3: .*bad\.pth does not fit"):
        source.build(64, CPU)


@pytest.mark.parametrize("content", [{"a": torch.ones(1)}, [1, 2]])
def test_timm_checkpoint_that_does_not_fit(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "bad.pth")
    (source,) = backbones.sources(["test_resnet"], [str(tmp_path / "bad.pth")])
    with pytest.raises(UsageError, match=r"cannot build test_resnet from .*bad\.pth: ") as caught:
        source.build(64, CPU)
    assert len(str(caught.value)) < 600 + len(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_nothing_is_fetched_where_there_is_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create = timm.create_model
    torch.save(create("test_resnet").state_dict(), tmp_path / "resnet.pth")

    def offline(name: str, pretrained: bool, **options: Any) -> object:
        assert not pretrained
        return create(name, pretrained, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    (source,) = backbones.sources(["test_resnet"], [str(tmp_path / "resnet.pth")], pretrained=True)
    assert source.build(64, CPU).weights == str(tmp_path / "resnet.pth")


def test_fingerprint() -> None:
    def made(module: torch.nn.Module) -> str:
        return backbones.Backbone(module, images.IMAGENET, "").fingerprint

    linear = torch.nn.Linear(2, 2)
    before = made(linear)
    assert made(linear) == before
    assert made(torch.nn.Sequential(linear)) != before
    with torch.no_grad():
        linear.weight[0, 0] += 1
    assert made(linear) != before
    assert made(torch.nn.BatchNorm2d(3).bfloat16()) != made(torch.nn.BatchNorm2d(3))  # scalars and every dtype


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--pretrained`` is timm's affair; what it raises without a network is told in one line's place."""
    import timm

    def offline(name: str, pretrained: bool, **options: object) -> None:
        raise OSError(f"no route to the weights of {name}: {pretrained}")

    monkeypatch.setattr(timm, "create_model", offline)
    (source,) = backbones.sources(["test_resnet"], pretrained=True)
    with pytest.raises(UsageError, match="cannot build test_resnet: no route to the weights of test_resnet: True"):
        source.build(64, CPU)


def test_identity_changes_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(b"1")
    (source,) = backbones.sources(["test_resnet"], [str(file)])
    before = source.identity
    os.utime(file, ns=(1, 1))
    assert source.identity != before
    assert source.file_name == "test_resnet"
    assert backbones.Source("a.b:c").file_name == "a.b_c"
