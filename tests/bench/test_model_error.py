"""The cost model's error, from rows whose times are made up as multiples of the estimates."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import bench_figures as figures
import pytest
import torch

from lk_triton.algorithms import registry
from lk_triton.bench import adopt, conv, model_error, report
from lk_triton.bench.cases import cases, tiny
from lk_triton.bench.providers import config_to_json
from lk_triton.cli import main
from lk_triton.gpu import TABLE
from lk_triton.planning.entry import problem_from_json, problem_to_json
from lk_triton.planning.plan import plan

H100 = TABLE["h100"]
CPU = torch.device("cpu")


def row(name: str, algorithm: str, multiple: float, provider: str = "", **changes: object) -> report.Row:
    """What ``bench conv`` would write of a case, had it taken ``multiple`` times the estimate."""
    problem = cases()[name]
    layout = changes.pop("layout", "nchw")
    problem = replace(problem, layout=str(layout))
    chosen = plan(problem, H100, algorithm)
    seconds, _ = registry.get(algorithm).estimate(problem, chosen.config, H100)
    made = conv.describe(name, provider or f"lk_triton_{algorithm}", problem, CPU)
    made |= {"device": figures.GPU, "sms": 132, "config": config_to_json(chosen), "gate": "ok"}
    return made | {"p50_us": seconds * 1e6 * multiple, "useful_tflops": 1.0} | changes


def measured(folder: Path, *rows: report.Row) -> str:
    file = folder / "conv.csv"
    report.append(file, rows)
    return str(file)


def read_json(capsys: pytest.CaptureFixture[str], *files: str) -> dict[str, Any]:
    assert main(["bench", "model-error", *files, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_ratios_median_and_worst(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0.25 is farther from 1 than 2 is."""
    multiples = {"31b-224-stage1-n64": 2.0, "31b-224-stage2-n64": 1.5, "31b-224-stage3-n64": 0.25}
    file = measured(
        tmp_path,
        *(row(name, "toeplitz", multiple) for name, multiple in multiples.items()),
        row("table1-r16-k3-n64", "direct", 3.0),
        row("table1-r16-k3-n64", "torch", 1.0, provider="torch"),
    )
    found = read_json(capsys, file)
    assert [(c["kernel_name"], c["ratio"]) for c in found["cases"]] == [*multiples.items(), ("table1-r16-k3-n64", 3.0)]
    assert found["algorithms"] == [
        {"device": figures.GPU, "algorithm": "toeplitz", "configs": 3, "median_ratio": 1.5, "worst_ratio": 0.25,
         "worst_case": "31b-224-stage3-n64"},
        {"device": figures.GPU, "algorithm": "direct", "configs": 1, "median_ratio": 3.0, "worst_ratio": 3.0,
         "worst_case": "table1-r16-k3-n64"},
    ]  # fmt: skip
    assert found["skipped"] == {}
    first = found["cases"][0]
    assert set(first) == {*model_error.CASE_COLUMNS, "config"}
    assert first["measured_us"] == pytest.approx(2 * first["estimate_us"], rel=1e-4)
    assert main(["bench", "model-error", file]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["31b-224-stage3-n64", "float16", "toeplitz"] in [line[4:7] for line in lines]
    assert ["toeplitz", "3", "1.500", "0.2500", "31b-224-stage3-n64"] in [line[4:] for line in lines]


def test_the_estimate_is_of_the_config_that_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not of today's choice; and it is today's estimate."""
    name = "31b-224-stage1-n64"
    problem = cases()[name]
    toeplitz = registry.get("toeplitz")
    another = toeplitz.configs(problem, H100)[-1]
    assert another != plan(problem, H100, "toeplitz").config
    ran = config_to_json(replace(plan(problem, H100, "toeplitz"), config=another))
    (case,) = read_json(capsys, measured(tmp_path, row(name, "toeplitz", 1.0, config=ran)))["cases"]
    seconds, limiter = toeplitz.estimate(problem, another, H100)
    assert (case["estimate_us"], case["limiter"]) == (pytest.approx(seconds * 1e6, rel=1e-4), limiter)


def test_a_config_counts_once_and_the_last_measurement_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "31b-224-stage1-n64"
    rows = [row(name, "toeplitz", m, provider) for m, provider in ((9.0, ""), (5.0, ""), (2.0, "lk_triton_auto"))]
    (case,) = read_json(capsys, measured(tmp_path, *rows))["cases"]
    assert case["ratio"] == 2


def test_channels_last_is_compared_with_its_conversions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "31b-224-stage1-n64"
    layouts = {"lk_triton_auto": "nchw", "lk_triton_auto_channels_last": "channels_last"}
    rows = [row(name, "toeplitz", 1.0, provider, layout=layout) for provider, layout in layouts.items()]
    dense, last = read_json(capsys, measured(tmp_path, *rows))["cases"]
    assert last["estimate_us"] > 1.2 * dense["estimate_us"]


def test_what_cannot_be_compared_is_counted_by_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "31b-224-stage1-n64"
    rows = [
        row(name, "toeplitz", 1.0),
        row(name, "toeplitz", 1.0, device="NVIDIA GH999"),
        row(name, "toeplitz", 1.0, device="NVIDIA H100 PCIe", sms=114),
        row(name, "direct", 1.0, config="direct, cost model: DirectConfig()"),
        row(name, "direct", 1.0, "lk_triton_auto", config=json.dumps({"algorithm": "direct", "config": {"block": 64}})),
        row(name, "torch", 1.0, problem="", p50_us=""),
    ]
    found = read_json(capsys, measured(tmp_path, *rows))
    assert len(found["cases"]) == 1
    assert list(found["skipped"].values()) == [1, 1, 3]
    text = " ".join(found["skipped"])
    for reason in ("no device facts of NVIDIA GH999", "114 SMs", "another version"):
        assert reason in text


def test_nothing_to_compare_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cpu = measured(tmp_path, row("31b-224-stage1-n1", "toeplitz", 1.0, device="cpu, 2 threads"))
    assert main(["bench", "model-error", cpu]) == 2
    assert "nothing to compare: no device facts of cpu, 2 threads" in capsys.readouterr().err
    assert main(["bench", "model-error", str(tmp_path / "none.csv")]) == 2
    assert "none.csv: No such file" in capsys.readouterr().err


def test_what_bench_conv_writes_can_be_read(tmp_path: Path) -> None:
    """In the interpreter, whose row says that it is one; a GPU's name makes it comparable."""
    file = tmp_path / "conv.csv"
    arguments = ["--out", str(file), "--tiny", "--device", "cpu", "--rounds", "5", "--providers", "lk_triton_toeplitz"]
    assert conv.main([*arguments, "--cases", "31b-224-stage1-n1"]) == 0
    (written,) = report.read([file])
    with pytest.raises(ValueError, match="no device facts"):
        model_error.compare(written)
    compared = model_error.compare(written | {"device": figures.GPU, "sms": "132"})
    assert compared.algorithm == "toeplitz"
    assert problem_from_json(json.loads(written["problem"])) == tiny(cases()["31b-224-stage1-n1"])


def test_tuned_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rejected trials and those of other versions are counted, not compared."""
    problem = cases()["31b-224-stage1-n64"]
    config = asdict(plan(problem, H100, "toeplitz").config)
    trial = {"algorithm": "toeplitz", "config": config, "microseconds": 10.0}
    trials = [trial, trial | {"microseconds": None}, trial | {"config": {"rows": 8}}, trial | {"algorithm": "gone"}]
    lines = [
        {"type": "device", "device": H100.name},
        {"type": "result", "problem": problem_to_json(problem), "trials": trials},
    ]
    file = tmp_path / "tuned.jsonl"
    file.write_text("\n".join(map(json.dumps, [*lines, {"type": "summary"}])))
    assert main(["bench", "model-error", str(file), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (case,) = answer["cases"]
    assert case["ratio"] == pytest.approx(10.0 / case["estimate_us"], rel=1e-3)
    assert answer["skipped"] == {"rejected": 1, "written by another version": 2}


def test_figures_written_down_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """Every committed one is compared."""
    files = sorted(adopt.ROOT.glob("bench/results/*/by_hand/*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    answer = read_json(capsys, *map(str, files))
    assert len(answer["cases"]) == sum(len(line.get("trials", ())) for line in lines) > 0
    assert answer["skipped"] == {}
