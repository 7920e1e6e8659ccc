"""The programs that only a visit to a GPU runs: facts of the machine, repeated calls, and what tests have passed already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lk_triton.algorithms import registry
from lk_triton.bench import machine, passed, repeat

LAYER = ["--cases", "31b-224-stage4-n64", "--algorithm", "toeplitz", "--tiny", "--device", "cpu", "--calls", "3"]


def test_facts_of_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.main(["--tiny", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["copy_gb_per_s"] > 0
    assert found["product_tflops"] > 0
    assert len(found["triton_key"]) == 16
    assert found["facts"]["name"] == "interpreter"
    assert {"device", "commit", "python", "cuda", "ptxas", "driver", "torch_version", "triton_version"} <= found.keys()


def test_repeated_calls_that_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert repeat.main(LAYER) == 0
    assert "ok" in capsys.readouterr().out


@pytest.mark.parametrize("wrong_call", [1, 2, 3, None])
def test_repeated_calls_that_do_not(
    wrong_call: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bit in one output of one call; None: in every call, which the comparison with float64 sees."""
    toeplitz: Any = registry.get("toeplitz")
    launch, calls = toeplitz.launch, []

    def changed(*arguments: object) -> torch.Tensor:
        y = launch(*arguments)
        if wrong_call is None:
            y[0, 0, 0, 0] += 1
        elif len(calls) == wrong_call:
            y.view(torch.int16)[0, 0, 0, 0] ^= 1
        calls.append(1)
        return y

    monkeypatch.setattr(toeplitz, "launch", changed)
    assert repeat.main(LAYER) == 1
    assert "failed" in capsys.readouterr().out


def test_what_cannot_serve_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert repeat.main([*LAYER, "--algorithm", "toeplitz_hopper"]) == 1
    assert "cannot serve" in capsys.readouterr().out


@pytest.mark.parametrize("parallel", [(), pytest.param(("-n", "2"), marks=pytest.mark.slow)])
def test_tests_that_passed_do_not_run_again(parallel: tuple[str, ...], tmp_path: Path) -> None:
    tests = tmp_path / "test_some.py"
    tests.write_text("import pytest\n@pytest.mark.parametrize('i', range(4))\ndef test_it(i):\n    assert i != 2\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "passed", "--passed", "passed.txt", *parallel, "test_some.py"]
    environment = os.environ | {"PYTHONPATH": str(Path(passed.__file__).parent)}  # without torch, which takes seconds

    def run() -> tuple[int, str]:
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
        return result.returncode, result.stdout + result.stderr

    status, said = run()
    assert (status, "1 failed, 3 passed" in said) == (1, True), said
    status, said = run()
    assert (status, "1 failed" in said, " passed" in said) == (1, True, False), said
    tests.write_text(tests.read_text().replace("i != 2", "True"))
    assert run()[0] == 0
    assert run()[0] == 0, "nothing left"
