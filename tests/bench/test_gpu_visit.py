"""The GPU visit's script: rehearsed without a GPU, so that the first visit is not its first run."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from skips import STUB_MISSING

from lk_triton.bench import stub
from lk_triton.bench.cases import cases, select
from lk_triton.bench.forms import FORMS
from lk_triton.gpu import interpreted

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "gpu_visit.sh"
BUDGETS = {"A": 540, "B": 540, "C": 480}
STEPS = {
    "A": ("machine", "tests", "repeated", "network_n64", "network_n1", "tune_n64", "tune_n1", "tuned"),
    "B": ("peers_n64", "peers_n1", "layers", "layers_compiled"),
    "C": ("tests_rest", "larger", "larger_models", "grid", "sanitizer", "profiled"),
}
"""Of a rehearsal as ``launches``; as ``values`` C also runs programs that print what was computed."""

PROGRAMS = ("run", "study")


def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHON": sys.executable} | environment
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    """All parts, twice, and what is made of it: a README in which every figure is marked."""
    if (reason := stub.missing()) is not None:
        pytest.skip(f"{STUB_MISSING}: {reason}")
    result = call("--rehearse", tmp_path)
    said = "\n".join(f"{file}\n{file.read_text()}" for file in sorted(tmp_path.glob("*-*/summary.txt")))
    assert result.returncode == 0, said + result.stdout[-4000:] + result.stderr
    for mode, gates in (("values", {"ok"}), ("launches", {"not computed"})):
        for part, steps in STEPS.items():
            out = tmp_path / f"{mode}-{part}"
            summary = (out / "summary.txt").read_text()
            assert all(f"{step}: ok" in summary for step in steps), summary
            assert (f"{PROGRAMS[0]}: ok" in summary) == (mode == "values" and part == "C")
            assert len(list(out.iterdir())) <= 8
            tables = {name: rows_of(out / name) for name in ("network.csv", "conv.csv") if (out / name).exists()}
            assert set(tables) == ({"network.csv"} if part == "A" else {"network.csv", "conv.csv"})
            for row in (row for rows in tables.values() for row in rows):
                assert row["rehearsal"] == "true"
                assert row["gate"] in {*gates, "peer", ""}, row
                assert row["p50_us"] if row["gate"] else row["note"]
            ours = [row for row in tables.get("conv.csv", ()) if row["provider"] == "lk_triton_auto"]
            assert part == "A" or (ours and all(row["gate"] in gates for row in ours))
    lines = [json.loads(line) for line in (tmp_path / "launches-A" / "tune.jsonl").read_text().splitlines()]
    assert all(line["rehearsal"] is True for line in lines)
    assert {line["type"] for line in lines} >= {"device", "result", "summary"}
    tuned = json.loads((tmp_path / "launches-A" / "tuned.json").read_text())
    assert tuned["rehearsal"] is True
    assert tuned["entries"]
    page = (tmp_path / "pages" / "README.md").read_text()
    assert "**Rehearsal.**" in page
    assert "(rehearsal)" in page


def ready(state: Path, part: str, *left: str) -> None:
    """Have all steps of a part done but those ``left``."""
    state.mkdir()
    (state / "done.txt").write_text("".join(f"{part} {step}\n" for step in (*STEPS[part], *PROGRAMS) if step not in left))


WRONG = """
import lk_triton.algorithms.base as base

submit = base.TritonAlgorithm.submit

def wrong(*arguments):
    submit(*arguments)
    arguments[-1][0, 0, 0, 0] += 1

base.TritonAlgorithm.submit = wrong
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "step", "bit"), [("A", "network_n64", 8), ("A", "repeated", 4), ("B", "layers_compiled", 32)]
)
def test_a_wrong_kernel_fails_the_rehearsal(part: str, step: str, bit: int, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WRONG)
    ready(tmp_path / "state", part, step)
    arguments = ("--part", part, "--as", "values", "--state", tmp_path / "state", tmp_path / "out")
    result = call(*arguments, PYTHONPATH=str(tmp_path), TRITON_INTERPRET="1")
    assert result.returncode == bit, result.stdout[-3000:]
    assert f"{step}: failed, status 1" in (tmp_path / "out" / "summary.txt").read_text()
    assert f"{part} {step}" not in (tmp_path / "state" / "done.txt").read_text()


def fake_python(folder: Path, body: str = "") -> str:
    """A Python that notes how it is called and succeeds, unless ``body`` ends it before."""
    file = folder / "python"
    file.write_text(f'#!/bin/bash\necho "$*" >>{folder}/calls\n{body}\nexit 0\n')
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize("part", BUDGETS)
def test_a_part_goes_on_where_it_stopped(part: str, tmp_path: Path) -> None:
    python = fake_python(tmp_path, f'[[ "$*" == *"lk_triton.bench.network"* && ! -e {tmp_path}/again ]] && exit 1')
    arguments = ("--part", part, "--state", tmp_path / "state", tmp_path / "out")
    first = call(*arguments, PYTHON=python)
    assert first.returncode == 8
    failed = [step for step in STEPS[part] if f"{step}: failed, status 1" in first.stdout]
    assert failed
    (tmp_path / "again").touch()
    (tmp_path / "calls").unlink()
    second = call(*arguments, PYTHON=python)
    assert second.returncode == 0
    done = [step for step in (*STEPS[part], *PROGRAMS) if f"{step}: done before" in second.stdout]
    assert not set(done) & set(failed)
    programs = [line for line in (tmp_path / "calls").read_text().splitlines() if line.startswith("-m ")]
    tuning = [step for step in STEPS[part] if step.startswith("tune_")]  # which ends by the clock, and goes on
    assert not set(done) & set(tuning)
    assert len(programs) == len(failed) + len(tuning)


def test_a_kernel_that_a_first_call_found_wrong_fails_the_part(tmp_path: Path) -> None:
    """The network's figure is then another algorithm's."""
    found = "toeplitz (version 1, ToeplitzConfig()) computes a problem wrong on a GPU with torch 2"
    python = fake_python(tmp_path, f'[[ "$*" == *bench.network* ]] && echo "{found}"')
    result = call("--part", "B", "--state", tmp_path / "state", tmp_path / "out", PYTHON=python)
    assert result.returncode == 4
    assert found in (tmp_path / "out" / "summary.txt").read_text()


def test_a_program_that_lost_the_gpu_is_started_again(tmp_path: Path) -> None:
    ready(tmp_path / "state", "A", "tune_n64")
    python = fake_python(tmp_path, f'[[ "$*" == *" tune "* && $(grep -c " tune " {tmp_path}/calls) -lt 3 ]] && exit 75')
    named = {"LK_TRITON_COMMIT": "abc", "LK_TRITON_WITHOUT": "direct"}
    result = call("--part", "A", "--state", tmp_path / "state", PYTHON=python, **named)
    assert result.returncode == 0, result.stdout
    calls = [line for line in (tmp_path / "calls").read_text().splitlines() if " tune " in line]
    assert len(calls) == 3
    seconds = [re.search(r"--missing --seconds (\d+) --json", line) for line in calls]
    assert all(found and 100 <= int(found[1]) <= 130 for found in seconds), calls
    assert "part A as gpu, commit abc, without direct" in (tmp_path / "state" / "out-A" / "device.txt").read_text()


@pytest.mark.slow
def test_a_step_that_hangs_does_not_stop_the_next(tmp_path: Path) -> None:
    python = fake_python(tmp_path, '[[ "$*" == *"bench.machine"* ]] && sleep 600')
    result = call("--part", "A", "--state", tmp_path / "state", PYTHON=python)
    assert result.returncode == 1
    assert re.search(r"machine: out of time after 1[5-9] s", result.stdout)
    assert all(f"{step}: ok" in result.stdout for step in STEPS["A"][1:])


@pytest.mark.parametrize(("part", "status"), [("A", 1 + 2 + 4 + 8 + 16), ("B", 8 + 32), ("C", 2 + 8 + 32 + 128)])
def test_failures_are_named_and_do_not_stop_the_next_step(part: str, status: int, tmp_path: Path) -> None:
    """With a Python that always fails, every step fails, and the exit status says so."""
    result = call("--part", part, "--state", tmp_path / "state", tmp_path / "out", PYTHON="false")
    assert result.returncode == status
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert summary.count("failed, status 1") >= len(STEPS[part]) - 2  # compute-sanitizer and ncu are not everywhere
    assert f"exit status {status}" in summary


def test_wrong_calls(tmp_path: Path) -> None:
    calls: tuple[tuple[Any, ...], ...] = (
        (), ("--part", "A"), ("--part", "D", "--state", tmp_path), ("--state", tmp_path), ("--part",), ("--cpu", tmp_path),
        ("--part", "A", "--state", tmp_path, "--as", "x"), ("--rehearse", "--part", "A"), ("--rehearse", tmp_path, "more"),
    )  # fmt: skip
    for arguments in calls:
        result = call(*arguments)
        assert result.returncode == 64, arguments
        assert "usage:" in result.stderr


def test_limits_fit_into_each_part() -> None:
    text = SCRIPT.read_text()
    assert f"declare -A budgets=({' '.join(f'[{part}]={seconds}' for part, seconds in BUDGETS.items())})" in text
    for part, budget in BUDGETS.items():
        found = re.search(rf"^part_{part.lower()}\(\) {{$(.*?)^}}$", text, re.MULTILINE | re.DOTALL)
        assert found is not None
        steps = re.findall(r"^ *(?:network|layers|repeated|program|tests|tune|.*step 1) (\w+) (\d+)\b", found[1], re.MULTILINE)
        limits = dict(steps)  # a step that differs in a rehearsal is named twice
        assert set(STEPS[part]) <= limits.keys()
        assert sum(map(int, limits.values())) <= budget


def test_what_it_asks_for_exists() -> None:
    text = SCRIPT.read_text()
    named = set(re.findall(r"\b(?:published|merged|folded|lk_triton)(?:_(?:graph|estimated|pdl|compile))*\b", text))
    assert {"lk_triton_graph_estimated", "published", "lk_triton_compile"} <= named
    assert {name for name in named if name != "lk_triton"} <= FORMS.keys()
    for pattern in re.findall(r"'((?:31b|convnext|table1|wide)-[^']*)'", text):
        assert select(cases(), [pattern]), pattern
    for file in re.findall(r"tests/[\w/]+\.py", text):
        assert (SCRIPT.parents[1] / file).exists(), file
    assert interpreted(), "these tests run where the rehearsal as values would"
