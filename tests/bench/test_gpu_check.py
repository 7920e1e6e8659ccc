"""The GPU visit's script: rehearsed on a CPU, so that the first visit is not its first run."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lk_triton.bench.cases import cases, select
from lk_triton.bench.forms import FORMS
from lk_triton.bench.providers import PROVIDERS

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "gpu_check.sh"
STEPS = ("tests", "layers_n64", "layers_n1", "tune", "network", "network_compiled", "grid_compiled", "grid")


def call(*arguments: str, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHON": sys.executable} | environment
    return subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, env=env, timeout=timeout)


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call("--cpu", str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(list(out.iterdir())) <= 8
    summary = (out / "summary.txt").read_text()
    assert all(f"{step}: ok" in summary for step in STEPS)
    assert "mode: cpu" in (out / "device.txt").read_text()
    assert "'torch_version'" in (out / "device.txt").read_text()
    assert '"candidates"' in (out / "bench.log").read_text()  # of the dry run
    with (out / "conv.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    layers = {"31b-224-stage1-n64", "31b-224-stage4-n64", "31b-224-stage4-n1", "wide-stage1-n1"}
    grid, compiled = {"table1-r16-k3-n64", "slak-51x5-n64"}, {"table1-r16-k7-n64"}
    assert {row["kernel_name"] for row in rows} == layers | grid | compiled
    refused = {"flaggems": "flag_gems", "lk_triton_resident": "interpreted", "lk_triton_onednn": "CPU"}
    for row in rows:
        if (why := refused.get(row["provider"])) is not None:
            assert not row["gate"]
            assert why in row["note"]
        else:
            assert row["gate"] == "ok"
            assert float(row["p50_us"]) > 0
    assert {row["provider"] for row in rows if row["kernel_name"] in layers} == PROVIDERS.keys()
    few = {"torch", "torch_channels_last", "lk_triton_auto"}
    assert {row["provider"] for row in rows if row["kernel_name"] in grid} == few
    assert {row["provider"] for row in rows if row["kernel_name"] in compiled} == few | {"torch_compile"}
    with (out / "network.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["provider"] for row in rows] == ["published", "lk_triton", "folded_compile"]
    assert all(row["gate"] == "ok" and float(row["images_per_s"]) > 0 for row in rows)


def patterns(variable: str) -> list[str]:
    """The cases that the script names for a GPU."""
    found = re.search(rf"^{variable}=\((.*)\)$", SCRIPT.read_text(), re.MULTILINE)
    assert found is not None
    return shlex.split(found[1])


def test_the_compiled_part_of_the_grid() -> None:
    expected = {f"table1-r{r}-k{k}-n64" for r in (16, 32, 64) for k in (3, 7, 13, 31)}
    assert select(cases(), patterns("compiled")).keys() == expected | {f"convnext-stage{i}-n64" for i in (1, 2, 3, 4)}


def test_the_grid_is_everything_and_what_was_compiled_comes_last() -> None:
    grid, compiled = (list(select(cases(), patterns(variable))) for variable in ("grid", "compiled"))
    assert set(grid) == cases().keys()
    assert set(grid[-len(compiled) :]) == set(compiled)


def test_what_it_asks_of_the_network_exists() -> None:
    assert {*patterns("eager"), *patterns("late")} <= FORMS.keys()


def test_limits_fit_into_the_visit() -> None:
    text = SCRIPT.read_text()
    total = re.search(r"^total=(\d+)", text, re.MULTILINE)
    assert total is not None
    limits = re.findall(r"^step \d+ \w+ (\d+) ", text, re.MULTILINE)
    assert len(limits) == len(STEPS) - 1  # the grid takes what is left
    assert sum(int(limit) for limit in limits) <= int(total[1])


def test_failures_are_named_and_do_not_stop_the_next_step(tmp_path: Path) -> None:
    """With a Python that always fails, every step fails, and the exit status says so."""
    result = call("--cpu", str(tmp_path), PYTHON="false", timeout=60)
    assert result.returncode == 1 + 2 + 4 + 8 + 16 + 32
    summary = (tmp_path / "summary.txt").read_text()
    assert summary.count("failed, status 1") == len(STEPS)
    assert "exit status 63" in summary


def test_wrong_calls(tmp_path: Path) -> None:
    for arguments in ((), ("--cpu",), ("--gpu", str(tmp_path)), (str(tmp_path), "more")):
        result = call(*arguments, timeout=60)
        assert result.returncode == 64
        assert "usage:" in result.stderr
