"""What commands and benchmarks share: each value that is none is refused with what was given and what is allowed."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from command_lines import error_of

from lk_triton.cli import options
from lk_triton.cli.options import UsageError

pytestmark = pytest.mark.usefixtures("no_interpreter")


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", ""])
def test_positive(text: str) -> None:
    assert options.positive("12") == 12
    with pytest.raises(argparse.ArgumentTypeError, match=f"expected a positive integer, got '{text}'"):
        options.positive(text)


def test_dtype() -> None:
    for short, name in options.DTYPES.items():
        assert options.dtype(short) == options.dtype(name) == name
        assert isinstance(getattr(torch, name), torch.dtype)
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected one of fp32, .*, got 'int8'"):
        options.dtype("int8")


def test_the_default_dtype_is_the_devices() -> None:
    assert options.torch_dtype(None, torch.device("cpu")) == torch.float32
    assert options.torch_dtype(None, torch.device("cuda")) == torch.float16
    assert options.torch_dtype("bfloat16", torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "meta"])
@pytest.mark.parametrize("command", [
    ("run", "--sample"), ("tune",), ("bench", "conv"), ("bench", "network"), ("study", "kernel-size"),
    ("erf", "test_resnet", "--sample"), ("shape-bias", "test_resnet", "--stimuli", "."),
], ids=" ".join)  # fmt: skip
def test_devices_that_are_not_here(command: tuple[str, ...], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"error: device {name!r} cannot be used: " in error_of(capsys, *command, "--device", name)


@pytest.mark.parametrize("command", [
    ("info",), ("tune", "--dry-run"), ("study", "kernel-size"), ("inspect", "--shape", "1,8,9,9", "--kernel", "3,3"),
], ids=" ".join)  # fmt: skip
def test_architectures_that_are_none(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(capsys, *command, "--arch", "sm90")
    assert "unknown architecture 'sm90': expected sm_NN such as sm_80 or sm_90" in error
    assert "h200" in error


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    options.check_out(tmp_path / "x.csv", [".csv"])
    with pytest.raises(UsageError, match="it is a directory"):
        options.check_out(tmp_path)
    with pytest.raises(UsageError, match=r"ends in \.csv"):
        options.check_out(tmp_path / "x.txt", [".csv"])


def test_versions() -> None:
    assert list(options.versions()) == ["lk_triton", "torch", "triton", "python"]
