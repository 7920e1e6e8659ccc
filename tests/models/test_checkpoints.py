"""Every style of checkpoint file, conversion to the model's form, and refusals that change nothing."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from lk_triton.models import RepLKNet, inspect_checkpoint, load_checkpoint, randomize_, save_checkpoint

TINY: dict[str, Any] = {"channels": (8, 16, 24, 32), "layers": (1, 1, 1, 1), "large_kernel_sizes": (9, 9, 7, 7)}
FORMS = ("training", "merged", "fused")
State = dict[str, Tensor]


def fresh(form: str = "training", **options: Any) -> RepLKNet:
    """A network with weights of its own."""
    flags = {} if form == "training" else {form: True}
    model = RepLKNet(**{**TINY, "num_classes": 10, **flags, **options}).eval()
    return model if form == "fused" else randomize_(model, seed=1)


@pytest.fixture(scope="module")
def trained() -> RepLKNet:
    torch.manual_seed(0)
    return randomize_(RepLKNet(**TINY, num_classes=10)).eval()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pth"


def assert_same_function(model: RepLKNet, reference: RepLKNet) -> None:
    x = torch.randn(2, 3, 32, 48)
    with torch.inference_mode():
        y, wanted = model.eval()(x), reference(x)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)


def as_mmpretrain(state: State) -> State:
    renamed = {}
    for key, t in state.items():
        if key.startswith("head."):
            renamed[key.replace("head.", "head.fc.")] = t
        else:
            renamed["backbone." + (f"stages.3.{key}" if key.startswith("norm.") else key)] = t
    return renamed


STYLES: dict[str, Callable[[State], Any]] = {
    "flat": lambda s: s,
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}, "epoch": 299, "scaler": {}},
    "upstream training": lambda s: {"model": s, "args": argparse.Namespace(lr=4e-3, model="RepLKNet-31B")},
    "state_dict": lambda s: {"meta": {"epoch": 1}, "state_dict": s},
    "module": lambda s: {"module": s},
    "nested": lambda s: {"model": {"state_dict": s}},
    "ddp": lambda s: {"model": {f"module.{k}": t for k, t in s.items()}},
    "mmpretrain": as_mmpretrain,
    "mmpretrain wrapped": lambda s: {"meta": {}, "state_dict": as_mmpretrain(s)},
    "mmpretrain ddp": lambda s: {"state_dict": {f"module.{k}": t for k, t in as_mmpretrain(s).items()}},
    "MegData73M": lambda s: {k.replace("head.", "head.cls_22k."): t for k, t in s.items()},
    "old torch": lambda s: {k: t for k, t in s.items() if not k.endswith("num_batches_tracked")},
    "with scalars": lambda s: {**s, "epoch": 3},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("style", STYLES)
def test_styles(style: str, form: str, trained: RepLKNet, file: Path) -> None:
    torch.save(STYLES[style](trained.state_dict()), file)
    model = fresh(form)
    assert load_checkpoint(model, file) == ([], [])
    assert_same_function(model, trained)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("target", FORMS)
@pytest.mark.parametrize("source", FORMS)
def test_conversion_goes_forwards(source: str, target: str, suffix: str, trained: RepLKNet, tmp_path: Path) -> None:
    file = tmp_path / f"{source}.{suffix}"
    saved = copy.deepcopy(trained).convert(source)
    save_checkpoint(saved, file)
    assert list(tmp_path.iterdir()) == [file]
    model = fresh(target)
    if FORMS.index(source) <= FORMS.index(target):
        load_checkpoint(model, file)
        assert_same_function(model, trained)
        assert model.form == target
        if source == target:
            torch.testing.assert_close(dict(model.state_dict()), dict(saved.state_dict()))
        return
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"{source} form, the model has the {target} form.*only; build.*{source}=True"):
        load_checkpoint(model, file)
    torch.testing.assert_close(model.state_dict(), before)


@pytest.mark.parametrize("form", FORMS)
def test_inspect(form: str, trained: RepLKNet, file: Path) -> None:
    save_checkpoint(copy.deepcopy(trained).convert(form), file)
    assert inspect_checkpoint(file) == (form, 10)
    save_checkpoint(fresh(form, out_indices=(3,)), file)
    assert inspect_checkpoint(file) == (form, 0)


def test_mmpretrain_keys_of_the_fused_form(trained: RepLKNet, file: Path) -> None:
    torch.save(as_mmpretrain(copy.deepcopy(trained).convert("fused").state_dict()), file)
    model = fresh("fused")
    load_checkpoint(model, file)
    assert_same_function(model, trained)


@pytest.mark.parametrize("kernel", [None, 5])
def test_half_precision_files_are_folded_in_float32(kernel: int | None, file: Path) -> None:
    model = fresh(small_kernel=kernel).half()
    save_checkpoint(model, file)
    fused = fresh("fused", small_kernel=kernel)
    load_checkpoint(fused, file)
    assert {p.dtype for p in fused.parameters()} == {torch.float32}
    assert_same_function(fused, model.float())


def test_model_keeps_its_dtype_mode_and_gradients(trained: RepLKNet, file: Path) -> None:
    save_checkpoint(trained, file)
    model = fresh("fused", dtype=torch.bfloat16).train()
    model.stem.requires_grad_(False)
    parameters = list(model.parameters())
    load_checkpoint(model, file)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.training
    assert {p.dtype for p in parameters} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.stem.parameters())


# ---- heads and backbones --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["head", "head.fc", "head.cls_22k", "head.fc.cls_22k"])
@pytest.mark.parametrize("form", FORMS)
def test_head_of_another_class_count(form: str, key: str, trained: RepLKNet, file: Path) -> None:
    state = {k: t for k, t in trained.state_dict().items() if not k.startswith("head.")}
    head = {f"{key}.weight": torch.randn(21841, 32), f"{key}.bias": torch.randn(21841)}
    torch.save({**state, **head}, file)
    model = fresh(form)
    text = r"21841 classes, the model has 10: .*num_classes=21841.*num_classes=0.*classifier\(10\)"
    with pytest.raises(ValueError, match=text):
        load_checkpoint(model, file)
    headless = fresh(form, num_classes=0)
    load_checkpoint(headless, file)
    trained_headless = copy.deepcopy(trained)
    trained_headless.reset_classifier(0)
    assert_same_function(headless, trained_headless)
    whole = fresh(form, num_classes=21841)
    load_checkpoint(whole, file)
    assert torch.equal(cast("Any", whole.head).weight, head[f"{key}.weight"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("style", ["flat", "mmpretrain"])
def test_backbone_ignores_norm_and_head(style: str, form: str, trained: RepLKNet, file: Path) -> None:
    detector = {"decode_head.conv.weight": torch.zeros(1)} if style == "mmpretrain" else {}
    torch.save({**STYLES[style](trained.state_dict()), **detector}, file)
    model = fresh(form, out_indices=(0, 3))
    assert load_checkpoint(model, file) == ([], [])
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(x)[1], trained.forward_features(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_backbone_with_norms_of_its_own(form: str, trained: RepLKNet, file: Path) -> None:
    """The published files have no such norms: strict names them, otherwise they are left alone."""
    save_checkpoint(trained, file)
    model = fresh(form, out_indices=(0, 1, 2, 3), norm_intermediate_features=True)
    norms = {k: t.clone() for k, t in model.state_dict().items() if ".norm." in k}
    with pytest.raises(ValueError, match=r"missing keys: stages\.0\.norm\.weight.*strict=False"):
        load_checkpoint(model, file)
    missing, unexpected = load_checkpoint(model, file, strict=False)
    assert {key.split(".")[2] for key in missing} == {"norm"}
    assert unexpected == []
    torch.testing.assert_close({k: model.state_dict()[k] for k in norms}, norms)
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        raw = cast("Any", model.forward_intermediates(x, 1, intermediates_only=True))[0]
        torch.testing.assert_close(raw, trained.forward_features(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_backbone_norms_of_a_downstream_file(form: str, file: Path) -> None:
    options = {"out_indices": (0, 1, 2, 3), "norm_intermediate_features": True}
    saved = fresh(**options)
    torch.save({"state_dict": {f"backbone.{k}": t for k, t in saved.state_dict().items()}}, file)
    model = fresh(form, **options)
    load_checkpoint(model, file)
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), saved(x), rtol=1e-5, atol=1e-5)


# ---- refusals -------------------------------------------------------------------------------------------------------


def without(state: State, *keys: str) -> State:
    return {k: t for k, t in state.items() if not k.startswith(keys)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: without(s, "stages.2.blocks.0.pw1"), r"missing keys: stages\.2\.blocks\.0\.pw1\.conv\.weight, "),
        (lambda s: without(s, "stages.2."), r"missing keys: (stages\.2\.\S+ ?){8}and 3\d more"),
        (lambda s: without(s, "head"), r"missing keys: head\.weight, head\.bias;"),
        (lambda s: {**s, "stages.3.blocks.9.pw1.conv.weight": torch.zeros(1)}, r"unexpected keys: stages\.3\.blocks\.9"),
        (lambda s: {**s, "stem.2.bn.bias": torch.zeros(9)}, r"shapes: stem\.2\.bn\.bias \(9,\) instead of \(8,\)$"),
    ],
)
def test_mismatches_name_the_keys_and_change_nothing(
    change: Callable[[State], State], text: str, form: str, trained: RepLKNet, file: Path
) -> None:
    torch.save(change(dict(trained.state_dict())), file)
    model = fresh(form)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=text) as error:
        load_checkpoint(model, file)
    assert str(file) in str(error.value)
    torch.testing.assert_close(model.state_dict(), before)


def test_other_architecture_is_named_by_its_shapes(trained: RepLKNet, file: Path) -> None:
    save_checkpoint(trained, file)
    with pytest.raises(ValueError, match=r"stem\.0\.conv\.weight \(8, 3, 3, 3\) instead of \(16, 3, 3, 3\)"):
        load_checkpoint(fresh("fused", channels=(16, 16, 24, 32)), file)


def test_not_strict(trained: RepLKNet, file: Path) -> None:
    state = dict(trained.state_dict())
    torch.save({**without(state, "head", "stages.1.blocks.0.pw2"), "extra": torch.zeros(1)}, file)
    model = fresh()
    missing, unexpected = load_checkpoint(model, file, strict=False)
    assert missing[0] == "stages.1.blocks.0.pw2.conv.weight"
    assert missing[-2:] == ["head.weight", "head.bias"]
    assert unexpected == ["extra"]
    with pytest.raises(ValueError, match=r"cannot be converted to the fused form, it lacks stages\.1\.blocks\.0\.pw2"):
        load_checkpoint(fresh("fused"), file, strict=False)
    torch.save(without(state, "head", "norm.bias"), file)
    fused = fresh("fused")
    assert load_checkpoint(fused, file, strict=False)[0] == ["norm.bias", "head.weight", "head.bias"]
    assert torch.equal(cast("Any", fused.norm).weight, torch.ones(32))


def test_partly_folded_file(trained: RepLKNet, file: Path) -> None:
    state = dict(copy.deepcopy(trained).convert("merged").state_dict())
    torch.save({**without(state, "stem.0.bn"), "stem.0.conv.bias": torch.zeros(8)}, file)
    with pytest.raises(ValueError, match="deep_fuse_BN"):
        load_checkpoint(fresh("fused"), file)


@pytest.mark.parametrize(
    "content",
    [
        {"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)},
        {"model": None},
        {"epoch": 3},
        {0: torch.zeros(1)},
        [torch.zeros(1)],
        torch.zeros(1),
    ],
)
def test_foreign_file(content: Any, file: Path) -> None:
    torch.save(content, file)
    with pytest.raises(ValueError, match=r"checkpoint\.pth is no RepLKNet checkpoint: expected keys such as stem\.0"):
        load_checkpoint(fresh(), file)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_truncated_file(keep: float, suffix: str, trained: RepLKNet, tmp_path: Path) -> None:
    file = tmp_path / f"a.{suffix}"
    save_checkpoint(trained, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    model = fresh()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"cannot read .*a.{suffix} as a checkpoint"):
        load_checkpoint(model, file)
    torch.testing.assert_close(model.state_dict(), before)


class Harmful:
    ran = False

    def __reduce__(self) -> Any:
        return setattr, (Harmful, "ran", True)


def test_code_in_a_file_is_not_executed(trained: RepLKNet, file: Path) -> None:
    torch.save({"model": trained.state_dict(), "args": Harmful()}, file)
    with pytest.raises(ValueError, match="cannot read"):
        load_checkpoint(fresh(), file)
    assert not Harmful.ran


def test_missing_file(tmp_path: Path) -> None:
    for suffix in ("pth", "safetensors"):
        with pytest.raises(FileNotFoundError, match="absent"):
            load_checkpoint(fresh(), tmp_path / f"absent.{suffix}")


def test_missing_safetensors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for act in (lambda: load_checkpoint(fresh(), tmp_path / "a.safetensors"),
                lambda: save_checkpoint(fresh(), tmp_path / "a.safetensors")):  # fmt: skip
        with pytest.raises(ImportError, match=r"pip install 'lk-triton\[demo\]'"):
            act()
    assert list(tmp_path.iterdir()) == []


def test_meta_model(trained: RepLKNet, file: Path) -> None:
    save_checkpoint(trained, file)
    model = RepLKNet(**TINY, num_classes=10, device="meta")
    with pytest.raises(ValueError, match="to_empty"):
        load_checkpoint(model, file)
    load_checkpoint(model.to_empty(device="cpu"), file)
    assert_same_function(model, trained)


def test_saving_replaces_the_file_as_a_whole(trained: RepLKNet, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(trained, file)
    whole = file.read_bytes()

    def fail(*args: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(fresh(), file)
    assert file.read_bytes() == whole
    assert list(file.parent.iterdir()) == [file]
