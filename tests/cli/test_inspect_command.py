"""``lk-triton inspect``: the schema, the table, the errors; kernels for the targets that no other test compiles."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command_lines import error_of

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import TritonAlgorithm
from lk_triton.algorithms.depthwise.direct.host import DirectAlgorithm
from lk_triton.algorithms.depthwise.toeplitz.cost import issued_macs
from lk_triton.algorithms.depthwise.toeplitz.host import ToeplitzAlgorithm
from lk_triton.cli import inspect, main
from lk_triton.ops.problem import ConvProblem, Epilogue, FfnProblem, Problem

FIELDS = {
    "algorithm": str, "config": dict, "registers": int, "spill_bytes": int, "shared_bytes": int, "occupancy": dict,
    "useful_share": float, "bank_bytes": int, "main_loop": dict, "estimate_us": float, "limiter": str,
}  # fmt: skip
SMALL = ("--shape", "2,8,14,14", "--kernel", "13,13")
PROBLEM = ConvProblem(2, 8, 14, 14, 13, 13, padding=(6, 6), epilogue=Epilogue(True))
FFN = FfnProblem(64, 128, 56, 56, 512, layout="channel_major", out_layout="channel_major")
H100 = gpus.TABLE["h100"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, where kernels are compiled instead of interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "lk_triton.cli", "inspect", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def run_json(*arguments: str) -> Any:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_schema(one: dict[str, Any]) -> None:
    assert list(one) == list(FIELDS)
    assert {name: type(value) for name, value in one.items()} == FIELDS
    assert list(one["occupancy"]) == ["programs", "warps"]
    assert one["occupancy"]["programs"] >= 1
    assert 0 < one["occupancy"]["warps"] <= 1
    loop = one["main_loop"]
    assert list(loop) == ["instructions", "mma", "mma_kind", "global_load_bytes"]
    assert loop["instructions"] > 0
    assert (loop["mma"] > 0) == (loop["mma_kind"] != "")
    assert {int(width) for width in loop["global_load_bytes"]} <= {1, 2, 4, 8, 12, 16}
    assert all(count > 0 for count in loop["global_load_bytes"].values())
    assert one["registers"] > 0


def test_json_of_one_problem(tmp_path: Path) -> None:
    file = tmp_path / "best.sass"
    found = run_json("--device", "h200", *SMALL, "--top", "3", "--sass", str(file))
    assert len(found) == 3
    for one in found:
        check_schema(one)
    assert [one["estimate_us"] for one in found] == sorted(one["estimate_us"] for one in found)
    assert {"toeplitz", "direct"} <= {one["algorithm"] for one in found} <= {"toeplitz", "toeplitz_hopper", "direct"}
    for one in (one for one in found if one["algorithm"] != "toeplitz_hopper"):
        algorithm = ToeplitzAlgorithm() if one["algorithm"] == "toeplitz" else DirectAlgorithm()
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in one["config"].items()}
        config = algorithm.config_type(**values)
        assert config in algorithm.configs(PROBLEM, gpus.TABLE["h200"])
        estimate = algorithm.estimate(PROBLEM, config, gpus.TABLE["h200"])
        assert one["estimate_us"] == round(estimate.seconds * 1e6, 2)
        assert one["limiter"] == estimate.limiter
        assert one["useful_share"] == round(PROBLEM.useful_macs / algorithm.issued_macs(PROBLEM, config), 4)
        if isinstance(algorithm, ToeplitzAlgorithm):
            assert algorithm.issued_macs(PROBLEM, config) == issued_macs(PROBLEM, config)
            # a row of V + KW - 1 elements, rounded up to vectors, for each of V shifts
            length = -(-(13 + config.vector - 1) // config.vector) * config.vector
            assert one["bank_bytes"] == 8 * 13 * config.vector * length * 2
            assert one["main_loop"]["mma"] > 0
        else:
            # 14 columns take two lanes of eight
            assert one["useful_share"] <= 14 / 16
            assert one["bank_bytes"] == 0
            assert one["main_loop"]["mma"] == 0
    assert "EXIT" in file.read_text()


def test_table() -> None:
    done = run("--arch", "sm_80", *SMALL, "--algorithm", "toeplitz", "--top", "2", "--activation", "gelu", "--residual")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("compiled for a100 (sm_80)")
    assert lines[2] == "(2, 8, 14, 14) 13x13 float16"
    assert "registers" in lines[4]
    assert "limiter" in lines[4]
    assert [line.split()[:2] for line in lines[6:8]] == [["1", "toeplitz"], ["2", "toeplitz"]]
    assert all("HMMA" in line and "KiB" in line and "% " in line for line in lines[6:8])
    assert [line.split("=")[0] for line in lines[9:]] == ["1: rows", "2: rows"]
    assert "compiling 2/2" in done.stderr


def test_stride_two_is_served_by_direct() -> None:
    (one,) = run_json("--arch", "sm_90", "--shape", "1,8,14,14", "--kernel", "3,3", "--stride", "2", "--top", "1")
    check_schema(one)
    assert one["algorithm"] == "direct"


@pytest.mark.slow
@pytest.mark.parametrize(("target", "kind"), [("sm_100", "UTCHMMA"), ("gfx942", "v_mfma_f32_")])
def test_matrix_instructions_of_other_targets(target: str, kind: str) -> None:
    (one,) = run_json("--arch", target, "--shape", "64,8,28,28", "--kernel", "29,29", "--algorithm", "toeplitz", "--top", "1")
    check_schema(one)
    assert one["main_loop"]["mma"] > 0
    assert one["main_loop"]["mma_kind"].startswith(kind)
    assert one["main_loop"]["global_load_bytes"]
    assert one["spill_bytes"] == 0


@pytest.mark.slow
def test_direct_for_amd() -> None:
    (one,) = run_json("--device", "mi300x", "--shape", "8,8,28,28", "--kernel", "3,3", "--algorithm", "direct", "--top", "1")
    check_schema(one)
    assert one["main_loop"]["mma"] == 0


@pytest.mark.slow
def test_model() -> None:
    arguments = ("--device", "h100", "--model", "replknet_31b", "--batch", "64", "--size", "224")
    found = run_json(*arguments, "--top", "1", "--algorithm", "toeplitz")
    assert list(found) == ["model", "batch", "size", "device", "layers", "launches", "total_estimate_us"]
    assert [found[name] for name in ("model", "batch", "size", "device")] == ["replknet_31b", 64, 224, "h100"]
    layers = found["layers"]
    for one in layers:
        assert list(one) == ["count", "problem", *FIELDS]
        check_schema({name: one[name] for name in FIELDS})
    counts = Counter({(one["algorithm"], one["problem"]["h"], one["problem"].get("kh", 1)): one["count"] for one in layers})
    assert {h: count for (algorithm, h, k), count in counts.items() if k > 3 and algorithm == "toeplitz"} == {
        56: 2, 28: 2, 14: 18, 7: 2,
    }  # fmt: skip
    assert sum(one["count"] for one in layers) == 124
    assert sum(one["count"] for one in layers if one["algorithm"] == "convffn") == 4
    assert sum(one["count"] for one in layers if one["algorithm"] == "convstem") == 1
    small = [one for one in layers if one["problem"]["kind"] == "depthwise" and one["problem"]["kh"] == 3]
    assert sum(one["count"] for one in small) == 4
    dense = {one["problem"]["kh"]: one["algorithm"] for one in layers if one["problem"]["kind"] == "dense"}
    assert dense[1] in ("pointwise", "cublas")
    assert {one["algorithm"] for one in small if one["problem"]["stride"] == [2, 2]} == {"direct"}, "toeplitz is preferred"
    products = sum(one["count"] for one in layers if one["algorithm"] == "cublas")
    assert found["launches"] == 124 + products, "each has an epilogue"
    assert found["total_estimate_us"] == pytest.approx(sum(one["count"] * one["estimate_us"] for one in layers), abs=0.2)


@pytest.mark.usefixtures("no_interpreter")
@pytest.mark.parametrize("problem", [PROBLEM, FFN], ids=str)
@pytest.mark.parametrize("name", [name for name, a in registry.ALGORITHMS.items() if isinstance(a, TritonAlgorithm)])
def test_another_algorithm_than_the_one_asked_for_is_said(
    name: str, problem: Problem, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = inspect._candidates(problem, H100, name, 1, prefer=True)
    said = capsys.readouterr().err
    assert (said == "") == (found.algorithm == name)
    assert said == "" or said.startswith(f"lk-triton: {name} cannot serve {problem} on h100: ")


@pytest.mark.usefixtures("no_interpreter")
def test_a_chain_is_listed_as_its_layers_where_its_layers_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "fused_problems", lambda *_: [Counter({FFN: 4})])
    asked = {"model": "replknet_31b", "batch": 64, "size": 224, "dtype": "float16"}
    layers = dict.fromkeys(FFN.layers, 4)
    for algorithm, found in ((None, {FFN: 4}), ("toeplitz", {FFN: 4}), ("convffn", {FFN: 4}), ("layerwise", layers)):
        assert inspect._layers(argparse.Namespace(**asked, algorithm=algorithm), H100) == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "h300", *SMALL), "unknown architecture 'h300'"),
        (("--arch", "sm_90", "--device", "h100", *SMALL), "not allowed with"),
        (SMALL, "one of the arguments --device --arch is required"),
        (("--arch", "sm_90"), "one of the arguments --shape --model is required"),
        (("--arch", "sm_90", "--shape", "2,8,14", "--kernel", "13,13"), "expected 4 positive integers"),
        (("--arch", "sm_90", "--shape", "2,8,14,0", "--kernel", "13,13"), "expected a positive integer"),
        (("--arch", "sm_90", "--shape", "2,8,14,14", "--kernel", "13"), "expected 2 positive integers"),
        (("--arch", "sm_90", "--shape", "2,8,14,14"), "--shape also needs --kernel"),
        (("--arch", "sm_90", *SMALL, "--batch", "2"), "--batch goes with --model"),
        (("--arch", "sm_90", "--model", "replknet_31b", "--size", "224"), "--model also needs --batch"),
        (("--arch", "sm_90", "--model", "replknet_31b", "--batch", "1", "--size", "64", "--residual"), "--residual goes with"),
        (("--arch", "sm_90", "--model", "resnet", "--batch", "1", "--size", "64"), "resnet"),
        (("--arch", "sm_90", *SMALL, "--algorithm", "fft"), "unknown algorithm 'fft'"),
        (("--arch", "sm_90", *SMALL, "--algorithm", "torch"), "no Triton kernel"),
        (("--arch", "sm_75", *SMALL, "--algorithm", "toeplitz"), "sm_80 or newer is needed"),
    ],
)
@pytest.mark.usefixtures("no_interpreter")
def test_wrong_usage(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of(capsys, "inspect", *arguments)


def test_interpreter(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["inspect", "--arch", "sm_90", *SMALL]) == 2
    assert capsys.readouterr().err == (
        "lk-triton: error: kernels are interpreted in this process: unset TRITON_INTERPRET to compile them\n"
    )


@pytest.mark.usefixtures("no_interpreter")
def test_without_triton(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert main(["inspect", "--arch", "sm_90", *SMALL]) == 2
    assert "pip install triton" in capsys.readouterr().err


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    done = run("--arch", "sm_90", *SMALL, "--top", "1", "--sass", str(tmp_path / "no" / "folder.sass"))
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert done.stdout == ""


def test_a_file_that_cannot_be_written_is_said_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lk_triton.tools.inspector.inspect", None)
    monkeypatch.setattr("lk_triton.tools.inspector.require_compiler", lambda: None)
    (tmp_path / "file").touch()
    for name, reason in ((".", "it is a directory"), ("file/x.sass", "there is no directory")):
        arguments = ["inspect", "--arch", "sm_90", "--shape", "1,8,14,14", "--kernel", "3,3", "--sass", str(tmp_path / name)]
        assert main(arguments) == 2
        assert reason in capsys.readouterr().err
