"""The benchmark's own honesty: wrong results get no figure, losses are shown, timings are what they say."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lk_triton.bench import conv, network, report
from lk_triton.bench.cases import STAGES, cases, layer, tiny
from lk_triton.bench.gate import Gate, draw, eager, judge
from lk_triton.bench.providers import PROVIDERS, Built, Provider
from lk_triton.bench.timing import CpuTimer, Timing, buffers_for, calls_for, interleave
from lk_triton.problem import ConvProblem

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SMALL = layer(1, 2, 6, 6, 3)


def test_cases_are_the_published_layers() -> None:
    found = cases()
    assert len(found) == 9
    shapes = [(p.c, p.h, p.w, p.kh, p.kw) for name, p in found.items() if name.endswith("n64")]
    assert shapes == [(c, s, s, k, k) for c, s, k in STAGES]
    for problem in found.values():
        assert (problem.oh, problem.ow) == (problem.h, problem.w)
        assert (problem.epilogue.bias, problem.epilogue.activation) == (True, "relu")
        small = tiny(problem)
        assert small.nominal_macs < 1e5
        assert (small.kh >= 2 * small.h - 1) == (problem.kh >= 2 * problem.h - 1)


# Gate


def test_gate_accepts_torch_and_every_algorithm() -> None:
    gate = Gate(SMALL, CPU)
    for name, provider in PROVIDERS.items():
        if name != "torch_compile":
            verdict = gate.check(provider.build(SMALL, gate.weight, gate.bias).run)
            assert verdict.ok, name
            assert 0 < verdict.error <= verdict.allowed < 3e-3


def wrong_value(y: Tensor) -> Tensor:
    y = y.clone()
    y[0, 1, 2, 3] += 0.05 * y.abs().max()
    return y


def unwritten(y: Tensor) -> Tensor:
    y = y.clone()
    y[..., -1] = float("nan")
    return y


@pytest.mark.parametrize(
    "spoil",
    [wrong_value, unwritten, torch.zeros_like, lambda y: y.roll(1, -1), lambda y: y * 1.01, lambda y: y + float("inf")],
)
def test_gate_refuses_wrong_values(spoil) -> None:  # type: ignore[no-untyped-def]
    gate = Gate(SMALL, CPU)
    assert not gate.check(lambda x: spoil(eager(SMALL, x, gate.weight, gate.bias))).ok


def test_gate_refuses_wrong_shapes_and_dtypes() -> None:
    gate = Gate(SMALL, CPU)
    for spoil in (lambda y: y[..., 1:], lambda y: y.float()):
        with pytest.raises(ValueError, match="wrong output"):
            gate.check(lambda x, s=spoil: s(eager(SMALL, x, gate.weight, gate.bias)))


def test_gate_allows_one_rounding_beyond_twice_torchs_error() -> None:
    exact = torch.tensor([1.0, 0.5], dtype=torch.float64)
    eps = torch.finfo(torch.float16).eps
    for torch_error, error, ok in ((0, 1, True), (0, 1.5, False), (1, 3, True), (1, 3.5, False)):
        off, torch_off = (torch.tensor([0, e * eps], dtype=torch.float64) for e in (error, torch_error))
        verdict = judge((exact - off).half(), (exact + torch_off).half(), exact)
        assert (verdict.error, verdict.torch_error) == (error * eps, torch_error * eps)
        assert verdict.ok == ok


def test_inputs_are_fresh_every_time() -> None:
    torch.manual_seed(0)
    first, second = ([t for t in draw(SMALL, CPU) if t is not None] for _ in range(2))
    assert len(first) == 3
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.count_nonzero(t) > 0 for t in first)


# Timing


def test_timing_figures() -> None:
    timing = Timing((4.0, 1.0, 2.0, 3.0, 5.0))
    assert (timing.quantile(0.2), timing.quantile(0.5), timing.quantile(0.8)) == pytest.approx((1.8, 3.0, 4.2))
    assert timing.spread == 5
    assert (timing.best(CPU), timing.best(torch.device("cuda"))) == (1.0, 3.0)


def test_cpu_timer_measures_one_call() -> None:
    timer = CpuTimer(lambda _: time.sleep(0.002))
    assert timer.calls >= 1
    assert 0.002 <= min(timer.round() for _ in range(3)) < 0.01


def test_cpu_timer_rotates_buffers_and_keeps_their_results() -> None:
    seen: list[int] = []
    timer = CpuTimer(lambda i: (seen.append(i), time.sleep(0.001)), buffers=3)
    seen.clear()
    timer.round()
    assert seen[:3] == [0, 1, 2]
    assert seen == [i % 3 for i in range(timer.calls)]


class Recorder:
    def __init__(self, name: str, order: list[str]) -> None:
        self.name, self.order = name, order

    def round(self) -> float:
        self.order.append(self.name)
        return 2e-6


def test_rounds_are_interleaved_and_at_least_five() -> None:
    order: list[str] = []
    timings = interleave({name: Recorder(name, order) for name in "abc"}, rounds=1)
    assert order == list("abcbcacababcbca")  # each round starts with another
    assert all(t.rounds == pytest.approx((2.0,) * 5) for t in timings.values())
    assert interleave({}, 5) == {}


def test_how_much_is_measured() -> None:
    assert calls_for(10.0, 1, "cuda") == 1
    assert calls_for(10.0, 4, "cuda") == 4
    assert calls_for(1e-5, 1, "cuda") == 512
    assert buffers_for(1, CPU) == 1


@pytest.mark.gpu
def test_buffers_exceed_l2_and_graphs_time_plausibly() -> None:
    device = torch.device("cuda")
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    assert buffers_for(l2, device) * l2 >= 2 * l2
    rows = conv.measure("layer", layer(8, 64, 28, 28, 13), device, PROVIDERS, 5)
    assert [row["gate"] for row in rows] == ["ok"] * len(PROVIDERS)
    assert all(1 < float(str(row["p50_us"])) < 1e5 for row in rows)


# Rows and files


def wrong(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
    return Built(lambda x: x * 0, "fast and wrong")


def crashing(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
    def run(x: Tensor) -> Tensor:
        raise RuntimeError("misaligned address\nstack trace")

    return Built(run, "")


def test_a_wrong_provider_is_named_and_gets_no_figure() -> None:
    providers = {"torch": PROVIDERS["torch"], "wrong": Provider(wrong), "crashing": Provider(crashing)}
    rows = {row["provider"]: row for row in conv.measure("small", SMALL, CPU, providers, 5)}
    assert rows["torch"]["gate"] == "ok"
    assert rows["wrong"]["gate"] == rows["crashing"]["gate"] == "failed"
    assert "not timed" in str(rows["wrong"]["note"])
    assert rows["crashing"]["note"] == "RuntimeError: misaligned address"
    for name in ("wrong", "crashing"):
        assert not {"p50_us", "min_us", "tflops", "speedup"} & rows[name].keys()
    assert rows["torch"]["speedup"] == 1


def test_a_provider_that_cannot_serve_says_why(no_interpreter: None) -> None:
    (row,) = conv.measure("small", SMALL, CPU, {"direct": PROVIDERS["lk_triton_direct"]}, 5)
    assert "need a CUDA or ROCm GPU" in str(row["note"])
    assert not {"gate", "p50_us"} & row.keys()


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_conv_writes_csv_and_shows_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "conv.csv"
    arguments = ["--out", str(file), "--tiny", "--device", "cpu", "--rounds", "5", "--providers", "torch", "*_toeplitz"]
    for case in ("31b-stage4-n1", "31b-stage1-n1"):
        assert conv.main([*arguments, "--cases", case]) == 0
    rows = read(file)
    assert [(r["kernel_name"], r["provider"]) for r in rows] == [
        (case, provider) for case in ("31b-stage4-n1", "31b-stage1-n1") for provider in ("torch", "lk_triton_toeplitz")
    ]
    assert tuple(rows[0]) == report.FIELDS
    for row in rows:
        assert row["gate"] == "ok"
        assert 0 < float(row["min_us"]) <= float(row["p20_us"]) <= float(row["p50_us"]) <= float(row["p80_us"])
        facts = ("device", "torch_version", "triton_version", "lk_triton_version", "commit", "config", "timestamp")
        assert all(row[field] for field in facts)
        assert "interpreted" in row["device"]
    assert float(rows[1]["speedup"]) < 1  # the interpreter loses, and the table says so
    assert rows[1]["provider"] in capsys.readouterr().out


def test_conv_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--out", str(tmp_path / "c.csv"), "--tiny", "--device", "cpu", "--cases", "31b-stage1-n1"]
    with pytest.raises(SystemExit):
        conv.main([*arguments, "--providers", "cudnn"])
    monkeypatch.setitem(PROVIDERS, "wrong", Provider(wrong))
    assert conv.main([*arguments, "--providers", "torch", "wrong"]) == 1
    assert [row["gate"] for row in read(tmp_path / "c.csv")] == ["ok", "failed"]


def test_network_without_the_interpreter(tmp_path: Path, no_interpreter: None) -> None:
    file = tmp_path / "network.csv"
    arguments = ["--out", str(file), "--tiny", "--device", "cpu", "--dtype", "float32", "--rounds", "5"]
    assert network.main([*arguments, "--batch", "2", "1"]) == 0
    rows = read(file)
    assert [(r["provider"], r["n"]) for r in rows] == [("published", "2"), ("fused", "2"), ("published", "1"), ("fused", "1")]
    for row in rows:
        assert row["gate"] == "ok"
        assert float(row["images_per_s"]) == pytest.approx(int(row["n"]) * 1e6 / float(row["min_us"]), rel=1e-3)
    assert float(rows[1]["speedup"]) == pytest.approx(float(rows[0]["min_us"]) / float(rows[1]["min_us"]), rel=1e-3)
