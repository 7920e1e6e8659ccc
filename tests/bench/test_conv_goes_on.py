"""``bench conv`` goes on: where a command stopped, behind a lost GPU, and behind errors that are nobody's or everybody's."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lk_triton import context
from lk_triton.bench import conv
from lk_triton.bench.cases import layer
from lk_triton.bench.providers import PROVIDERS, Built, Provider
from lk_triton.ops.problem import ConvProblem

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SMALL = layer(1, 2, 6, 6, 3)


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_missing_measures_what_has_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LK_TRITON_COMMIT", "one")
    file = tmp_path / "conv.csv"
    command = ["--out", str(file), "--tiny", "--device", "cpu", "--rounds", "5", "--missing"]

    def added(cases: str, *providers: str) -> list[tuple[str, str]]:
        before = len(read(file)) if file.exists() else 0
        assert conv.main([*command, "--cases", cases, "--providers", *providers]) == 0
        return [(row["kernel_name"], row["provider"]) for row in read(file)[before:]]

    one, other = "31b-224-stage4-n1", "31b-224-stage3-n1"
    assert added(one, "torch") == [(one, "torch")]
    assert added("31b-224-stage[34]-n1", "torch", "torch_channels_last") == [
        (other, "torch"), (other, "torch_channels_last"), (one, "torch_channels_last"),
    ]  # fmt: skip
    assert added("31b-224-stage[34]-n1", "torch", "torch_channels_last") == []
    monkeypatch.setenv("LK_TRITON_COMMIT", "two")
    assert added(one, "torch") == [(one, "torch")]
    with pytest.raises(SystemExit, match="2"):
        conv.main(["--missing", "--device", "cpu"])


def test_a_lost_gpu_is_exit_code_75(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who lost it has a row, so that it is not tried again; who was to be timed after that has none."""
    lost: list[str] = []

    def build(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
        lost.append("illegal memory access")
        raise RuntimeError(lost[0])

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setitem(PROVIDERS, "torch_channels_last", Provider(build))
    monkeypatch.setattr(context, "lost", lambda device: lost[0] if lost else None)
    monkeypatch.setattr(os, "_exit", leave)
    file = tmp_path / "c.csv"
    command = [
        "--out",
        str(file),
        "--tiny",
        "--device",
        "cpu",
        "--cases",
        "31b-224-stage[14]-n1",
        "--rounds",
        "5",
        "--providers",
    ]
    with pytest.raises(SystemExit, match="75"):
        conv.main([*command, "torch", "torch_channels_last", "lk_triton_torch"])
    (row,) = read(file)
    assert (row["provider"], row["gate"], row["note"]) == (
        "torch_channels_last",
        "failed",
        "RuntimeError: illegal memory access",
    )
    assert "with --missing" in capsys.readouterr().err


def test_an_error_while_all_are_timed_loses_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("unspecified launch failure")

    monkeypatch.setattr(conv, "interleave", broken)
    rows = conv.measure(
        "small", SMALL, CPU, {name: PROVIDERS[name] for name in ("torch", "torch_native", "lk_triton_torch")}, 5
    )
    assert [row.get("gate") for row in rows] == ["failed", None, "failed"]
    assert rows[0]["note"] == "while all were timed: RuntimeError: unspecified launch failure"


def test_references_that_do_not_fit_are_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(conv, "Gate", full)
    (row,) = conv.measure("small", SMALL, CPU, {"torch": PROVIDERS["torch"]}, 5)
    assert row["note"] == "OutOfMemoryError: CUDA out of memory"
