"""Files that are damaged, hostile or of another network: one error that names the file, and a model that is as it was."""

from __future__ import annotations

import copy
import io
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lk_triton.cli import main
from lk_triton.models import RepLKNet, create_model, inspect_checkpoint, load_checkpoint, randomize_, registry

TINY: dict[str, Any] = {"channels": (4, 4, 8, 8), "layers": (1, 1, 1, 1), "large_kernel_sizes": (5, 5, 5, 5)}
KEY = "stages.2.blocks.0.pw1.conv.weight"
"""Behind hundreds of others that would be copied first."""

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return dict(randomize_(RepLKNet(**TINY, num_classes=10)).state_dict())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pth"


@pytest.fixture(scope="module")
def models() -> dict[str, RepLKNet]:
    """Whose weights no refusal changes."""
    return {
        "training": randomize_(RepLKNet(**TINY, num_classes=10), seed=1).eval(),
        "fused": RepLKNet(**TINY, num_classes=10, fused=True).eval(),
    }


def refusal(models: dict[str, RepLKNet], file: Path, strict: bool = True) -> str:
    """The error of loading, which is the same for each form, changes nothing and names the file."""
    texts = set()
    for model in models.values():
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match="checkpoint") as error:
            load_checkpoint(model, file, strict)
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
        assert str(file) in str(error.value)
        assert "weights_only" not in str(error.value)
        assert error.value.__cause__ is None or "weights_only" not in str(error.value.__cause__)
        texts.add(str(error.value))
    assert len(texts) == 1
    return texts.pop()


# What a file holds


def test_a_file_that_contains_itself(models: dict[str, RepLKNet], file: Path) -> None:
    itself: dict[str, Any] = {}
    itself["model"] = itself
    torch.save(itself, file)
    assert "found the keys 'model' and no tensors" in refusal(models, file)
    a: dict[str, Any] = {}
    a["model"] = {"state_dict": a}
    torch.save(a, file)
    refusal(models, file)
    with pytest.raises(ValueError, match="no RepLKNet checkpoint"):
        inspect_checkpoint(file)


def change(tensor: Callable[[Tensor], Tensor], key: str = KEY) -> Callable[[State], Any]:
    return lambda state: {**state, key: tensor(state[key])}


def one(value: float) -> Callable[[Tensor], Tensor]:
    def put(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return put


STATES: dict[str, tuple[Callable[[State], Any], str]] = {
    "sparse": (change(lambda t: t.to_sparse()), f"{KEY} is sparse, quantized, nested or without data"),
    "quantized": (change(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)), f"{KEY} is sparse, quantized"),
    "meta": (change(lambda t: t.to("meta")), f"{KEY} is sparse, quantized, nested or without data"),
    "nested": (change(lambda t: torch.nested.nested_tensor([t, t])), f"{KEY} is sparse, quantized, nested"),
    "complex": (change(lambda t: t.to(torch.complex64)), f"{KEY} is of complex64, expected float16, bfloat16, float32"),
    "bool": (change(lambda t: t > 0), f"{KEY} is of bool"),
    "int8": (change(lambda t: t.to(torch.int8)), f"{KEY} is of int8"),
    "float8": (change(lambda t: t.to(torch.float8_e4m3fn)), f"{KEY} is of float8_e4m3fn"),
    "counter": (change(lambda t: t.float(), "stem.0.bn.num_batches_tracked"), "is of float32, expected an integer"),
    "NaN": (change(one(float("nan"))), f"{KEY} holds NaN or Inf"),
    "Inf": (change(one(float("inf"))), f"{KEY} holds NaN or Inf"),
    "variance": (change(one(-0.5), "stages.2.blocks.0.pw1.bn.running_var"), "running_var holds negative numbers"),
    "stage": (lambda s: {**s, "stages.0": torch.zeros(1)}, "unexpected keys: stages.0"),
    "letters": (lambda s: {**s, "stages.abc.norm.weight": torch.zeros(1)}, "unexpected keys: stages.abc.norm.weight"),
    "head": (lambda s: {**s, "head.weight": torch.zeros(())}, "head.weight has the shape (), expected (classes, channels)"),
    "ema": (lambda s: {"ema": s, "epoch": 3}, "found the keys 'ema', 'epoch' and no tensors under model or state_dict or"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STATES)
def test_what_cannot_be_loaded(name: str, state: State, models: dict[str, RepLKNet], file: Path) -> None:
    make, reason = STATES[name]
    torch.save(make(state), file)
    assert reason in refusal(models, file)


def test_numbers_beyond_the_models_dtype(state: State, file: Path) -> None:
    """A cast would make them infinite."""
    torch.save(change(one(1e6))(state), file)
    model = RepLKNet(**TINY, num_classes=10).half()
    before = model.state_dict()[KEY].clone()
    with pytest.raises(ValueError, match=f"{KEY} holds numbers beyond float16"):
        load_checkpoint(model, file)
    assert torch.equal(model.state_dict()[KEY], before)
    load_checkpoint(model.float(), file)


def test_a_head_without_classes_cannot_be_inspected(state: State, file: Path) -> None:
    torch.save({**state, "head.weight": torch.zeros(())}, file)
    with pytest.raises(ValueError, match=r"checkpoint\.pth: head\.weight has the shape"):
        inspect_checkpoint(file)


def test_what_is_not_loaded_may_be_anything(state: State, file: Path) -> None:
    torch.save({**state, "extra": torch.tensor(True), "stages.abc": torch.zeros(1).to_sparse()}, file)
    model = RepLKNet(**TINY, num_classes=10)
    assert load_checkpoint(model, file, strict=False) == ([], ["extra", "stages.abc"])
    backbone = RepLKNet(**TINY, out_indices=(3,))
    torch.save({**state, "extra": torch.tensor(True)}, file)
    assert load_checkpoint(backbone, file) == ([], [])


def test_other_weights_are_named(state: State, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    average = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    torch.save({"model_ema": average, "model": state, "optimizer": {"state": {}}}, file)
    model = RepLKNet(**TINY, num_classes=10)
    load_checkpoint(model, file)
    assert torch.equal(model.state_dict()[KEY], state[KEY])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == f"{file} holds weights under 'model_ema' too: those under 'model' are taken"


# What a file is


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def pickled(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


FILES: dict[str, tuple[Callable[[State], bytes], str]] = {
    "page": (lambda s: b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>", "it is a web page"),
    "page with a mark": (lambda s: b"\xef\xbb\xbf\n <html>", "it is a web page"),
    "empty": (lambda s: b"", "it is empty"),
    "text": (lambda s: b"hello, world", "is it whole, and a file of tensors only?"),
    "hostile": (lambda s: pickled({"model": s, "args": Harmful()}), "it holds Python objects (posix.system) that could run"),
    "cut": (lambda s: pickled(s)[:-100], "is it whole, and a file of tensors only?"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_none(name: str, state: State, models: dict[str, RepLKNet], file: Path) -> None:
    make, reason = FILES[name]
    file.write_bytes(make(state))
    assert reason in refusal(models, file)


def test_truncated_anywhere(state: State, models: dict[str, RepLKNet], file: Path) -> None:
    whole = pickled(state)
    for i in range(20):
        file.write_bytes(whole[: len(whole) * i // 20])
        assert "cannot read" in refusal(models, file)


def test_flipped_bits_are_found(state: State, models: dict[str, RepLKNet], file: Path) -> None:
    whole = bytearray(pickled(state))
    values = state[KEY].contiguous().numpy().tobytes()
    whole[whole.index(values)] ^= 1
    file.write_bytes(whole)
    assert "Bad CRC-32" in refusal(models, file)


def test_files_without_checksums_are_read(state: State, file: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, file)
    finally:
        torch.serialization.set_crc32_options(before)
    assert not any(record.CRC for record in zipfile.ZipFile(file).infolist())
    assert load_checkpoint(RepLKNet(**TINY, num_classes=10), file) == ([], [])


def test_what_is_no_file(models: dict[str, RepLKNet], file: Path) -> None:
    os.mkfifo(file)
    assert "it is a pipe or a device" in refusal(models, file)
    file.unlink()
    file.mkdir()
    with pytest.raises(IsADirectoryError) as error:
        load_checkpoint(models["training"], file)
    assert error.value.filename == str(file) or error.value.filename == file


# Another network's


@pytest.fixture
def two_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One as registered, one with other kernels."""

    def network(size: int) -> Callable[..., RepLKNet]:
        return lambda **options: RepLKNet(**{**TINY, "large_kernel_sizes": (size,) * 4, **options})

    def of_nobody(*, width: int) -> RepLKNet:
        raise AssertionError

    monkeypatch.setattr(registry, "_factories", {"tiny_5": network(5), "tiny_7": network(7), "odd": of_nobody})


@pytest.mark.usefixtures("two_networks")
@pytest.mark.parametrize("form", ["training", "merged", "fused"])
def test_the_right_network_is_named(form: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(randomize_(create_model("tiny_5", num_classes=10)).eval().convert(form).state_dict(), file)
    options = {} if form == "training" else {form: True}
    with pytest.raises(ValueError, match="does not fit the model, it looks like tiny_5: shapes: stages"):
        create_model("tiny_7", file, num_classes=10, **options)
    assert main(["run", "--sample", "--model", "tiny_7", "--checkpoint", str(file)]) == 2
    error = capsys.readouterr().err
    assert error == f"lk-triton: error: {file} does not fit tiny_7: it looks like tiny_5: --model tiny_5\n"
    assert main(["erf", "tiny_7", "--sample", "--size", "32", "--checkpoint", str(file), "--out", str(file.parent / "o")]) == 1
    assert "it looks like tiny_5" in capsys.readouterr().err


@pytest.mark.usefixtures("two_networks")
def test_the_command_line_lists_little_and_has_no_strict(state: State, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({key: tensor for key, tensor in state.items() if not key.startswith("stages.2.")}, file)
    with pytest.raises(ValueError, match="strict=False loads what fits") as error:
        create_model("tiny_5", file, num_classes=10)
    assert "looks like" not in str(error.value)
    assert main(["run", "--sample", "--model", "tiny_5", "--checkpoint", str(file)]) == 2
    said = capsys.readouterr().err
    assert "missing keys: stages.2." in said
    assert "strict" not in said
    assert len(said) < 450
