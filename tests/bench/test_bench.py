"""The benchmark's own honesty: wrong results get no figure, losses are shown, timings are what they say."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lk_triton.algorithms import registry
from lk_triton.bench import conv, report
from lk_triton.bench.cases import layer
from lk_triton.bench.providers import PROVIDERS, Built, Provider
from lk_triton.bench.usage import UsageError
from lk_triton.ops.problem import ConvProblem, operands_of
from lk_triton.planning import timing
from lk_triton.planning.accuracy import Gate, draw, judge
from lk_triton.planning.timing import CpuTimer, Timing, buffers_for, calls_for, interleave

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SMALL = layer(1, 2, 6, 6, 3)
OF_A_GPU = [name for name in PROVIDERS if name.startswith(("torch_native", "torch_cudnn"))]


# Gate


def test_gate_accepts_torch_and_every_algorithm() -> None:
    gate = Gate(SMALL, CPU)
    for name, provider in PROVIDERS.items():
        # which are not interpreted, or for a GPU
        if name not in ("torch_compile", "lk_triton_toeplitz_hopper", "lk_triton_onednn", *OF_A_GPU):
            run, bank, _ = provider.build(SMALL, gate.operands["weight"], gate.operands["bias"])
            verdict = gate.check(lambda given, run=run, bank=bank: run(given["x"], bank))
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
    assert not gate.check(lambda operands: spoil(SMALL.reference(operands))).ok


def test_gate_refuses_wrong_shapes_and_dtypes() -> None:
    gate = Gate(SMALL, CPU)
    for spoil in (lambda y: y[..., 1:], lambda y: y.float()):
        with pytest.raises(ValueError, match="wrong output"):
            gate.check(lambda operands, s=spoil: s(SMALL.reference(operands)))


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
    first, second = (list(draw(SMALL, CPU).values()) for _ in range(2))
    assert len(first) == 3
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.count_nonzero(t) > 0 for t in first)


# Timing


def test_timing_figures() -> None:
    timing = Timing((4.0, 1.0, 2.0, 3.0, 5.0))
    assert (timing.quantile(0.2), timing.quantile(0.5), timing.quantile(0.8)) == pytest.approx((1.8, 3.0, 4.2))
    assert timing.spread == 5
    assert (timing.best(CPU), timing.best(torch.device("cuda"))) == (1.0, 3.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass only when something appends to it."""
    passed = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: sum(passed))
    return passed


def test_cpu_timer_measures_one_call(clock: list[float]) -> None:
    timer = CpuTimer(lambda _: clock.append(0.001))
    assert timer.calls == 5, "5 ms"
    assert [timer.round() for _ in range(3)] == pytest.approx([0.001] * 3)


def test_cpu_timer_rotates_buffers_and_keeps_their_results(clock: list[float]) -> None:
    seen: list[int] = []
    timer = CpuTimer(lambda i: (seen.append(i), clock.append(0.001)), buffers=3)
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
    assert all(float(str(row["floor_ratio"])) > 0.9 for row in rows)
    assert all(1 < float(str(row["p50_us"])) < 1e5 for row in rows)


def test_images_outputs_and_banks_rotate(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the copies together are larger than L2; their number comes from the bytes of one call."""
    asked: list[int] = []
    calls: list[tuple[int, int]] = []

    def three(bytes_per_call: int, device: torch.device) -> int:
        asked.append(bytes_per_call)
        return 3

    def build(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
        bank = torch.stack([weight, weight])

        def run(x: Tensor, bank: Tensor) -> Tensor:
            calls.append((x.data_ptr(), bank.data_ptr()))
            return problem.reference(operands_of(x=x, weight=bank[0], bias=bias))

        return Built(run, bank, "")

    monkeypatch.setattr(conv, "buffers_for", three)
    (row,) = conv.measure("small", SMALL, CPU, {"torch": Provider(build)}, 5)
    assert row["gate"] == "ok"
    assert asked == [2 * (2 * 2 * 6 * 6 + 2 * 2 * 3 * 3)]
    images, banks = (len(set(pointers)) for pointers in zip(*calls[1:], strict=True))  # the first call is the gate's
    assert (images, banks) == (3, 3)


def test_torch_compile_compiles_once_for_all_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, mode, **options: real(f, backend=backend, **options))
    monkeypatch.setattr(conv, "buffers_for", lambda *_: 3)
    (row,) = conv.measure("small", SMALL, CPU, {"torch_compile": PROVIDERS["torch_compile"]}, 5)
    assert row["gate"] == "ok"
    assert len(compiled) == 1


# Rows and files


def wrong(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
    return Built(lambda x, bank: x * 0, weight, "fast and wrong")


def crashing(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
    def run(x: Tensor, bank: Tensor) -> Tensor:
        raise RuntimeError("misaligned address\nstack trace")

    return Built(run, weight, "")


def test_a_wrong_provider_is_named_and_gets_no_figure() -> None:
    providers = {"torch": PROVIDERS["torch"], "wrong": Provider(wrong), "crashing": Provider(crashing)}
    rows = {row["provider"]: row for row in conv.measure("small", SMALL, CPU, providers, 5)}
    assert rows["torch"]["gate"] == "ok"
    assert rows["wrong"]["gate"] == rows["crashing"]["gate"] == "failed"
    assert "not timed" in str(rows["wrong"]["note"])
    assert rows["crashing"]["note"] == "RuntimeError: misaligned address"
    for name in ("wrong", "crashing"):
        assert not {"p50_us", "min_us", "useful_tflops", "speedup"} & rows[name].keys()
    assert rows["torch"]["speedup"] == 1


def test_a_provider_that_cannot_serve_says_why(no_interpreter: None) -> None:
    (row,) = conv.measure("small", SMALL, CPU, {"direct": PROVIDERS["lk_triton_direct"]}, 5)
    assert "need a CUDA or ROCm GPU" in str(row["note"])
    assert not {"gate", "p50_us"} & row.keys()
    assert str(row["note"]) in " ".join(report.table([row], conv.COLUMNS).split())


def test_channels_last_in_means_a_channels_last_problem() -> None:
    for name, layout in (("lk_triton_auto", "nchw"), ("lk_triton_auto_channels_last", "channels_last")):
        (row,) = conv.measure("small", SMALL, CPU, {name: PROVIDERS[name]}, 5)
        assert (row["gate"], row["layout"]) == ("ok", layout)


def test_every_algorithm_is_a_provider() -> None:
    assert {f"lk_triton_{name}" for name in (*registry.meant_for(ConvProblem), "auto")} <= PROVIDERS.keys()


def test_rates_and_ratios_by_hand() -> None:
    """1x2x4x4, 3x3, fp16: 130 bytes + 36 of weights, nominal 288 MACs, useful 200; peers of 4 and 2 us against 1 us."""
    problem = layer(1, 2, 4, 4, 3)
    cuda = torch.device("cuda")
    rows: dict[str, report.Row] = {name: {"floor_us": 0.5} for name in ("torch", "torch_compile", "lk_triton_auto")}
    times = {"torch": 4.0, "torch_compile": 2.0, "lk_triton_auto": 1.0}
    conv.add_figures(problem, cuda, rows, {name: Timing((us,) * 5) for name, us in times.items()})
    assert rows["lk_triton_auto"] == {
        "floor_us": 0.5, "p20_us": 1, "p50_us": 1, "p80_us": 1, "min_us": 1, "spread": 1, "gb_per_s": 0.164,
        "nominal_tflops": 0.000576, "useful_tflops": 0.0004, "floor_ratio": 2, "peer": "torch_compile", "speedup": 2,
    }  # fmt: skip
    assert [rows[name]["speedup"] for name in ("torch", "torch_compile")] == [0.5, 1]


def test_summary_counts_losses() -> None:
    rows: list[report.Row] = [
        {"kernel_name": case, "provider": provider, "peer": "torch", "speedup": speedup}
        for case, provider, speedup in (
            ("a", "lk_triton_auto", 0.5), ("a", "lk_triton_auto_channels_last", 0.8), ("a", "torch", 1.0),
            ("b", "lk_triton_auto", 3.0), ("c", "torch_native", 9.0),
        )
    ]  # fmt: skip
    text = conv.summary(rows)
    assert "faster in 1 of 2" in text
    assert "0.8000" in text
    assert "0.5000" not in text


def test_cells() -> None:
    values = (123456.7, 999.94, 1.0, 0.0123456, 7, "x")
    assert [report.cell(v) for v in values] == ["123457", "999.9", "1.000", "0.01235", "7", "x"]


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_conv_writes_csv_and_shows_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "conv.csv"
    arguments = ["--out", str(file), "--tiny", "--device", "cpu", "--rounds", "5", "--providers", "torch", "*_toeplitz"]
    for case in ("31b-224-stage4-n1", "31b-224-stage1-n1"):
        assert conv.main([*arguments, "--cases", case]) == 0
    rows = read(file)
    assert [(r["kernel_name"], r["provider"]) for r in rows] == [
        (case, provider) for case in ("31b-224-stage4-n1", "31b-224-stage1-n1") for provider in ("torch", "lk_triton_toeplitz")
    ]
    assert tuple(rows[0]) == report.FIELDS
    for row in rows:
        assert row["gate"] == "ok"
        assert 0 < float(row["min_us"]) <= float(row["p20_us"]) <= float(row["p50_us"]) <= float(row["p80_us"])
        facts = ("device", "torch_version", "triton_version", "lk_triton_version", "commit", "config", "timestamp")
        assert all(row[field] for field in facts)
        assert "interpreted" in row["device"]
    assert float(rows[1]["speedup"]) < 1  # the interpreter loses, and the table says so
    assert rows[1]["peer"] == "torch"
    assert float(rows[1]["speedup"]) == pytest.approx(float(rows[0]["min_us"]) / float(rows[1]["min_us"]), rel=1e-3)
    assert rows[1]["provider"] in capsys.readouterr().out


def test_list_prints_cases_and_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    choice = ["--cases", "wide-*", "convnext-stage1*", "--batch", "2", "--dtype", "bf16"]
    assert conv.main(["--list", "--device", "cpu", *choice]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*(f"wide-stage{i}-n2" for i in (1, 2, 3, 4)), "convnext-stage1-n2"]
    assert lines[0].endswith("(2, 128, 256, 512) 31x31 bfloat16 layout channel_major")


def test_conv_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--out", str(tmp_path / "c.csv"), "--tiny", "--device", "cpu", "--cases", "31b-224-stage1-n1"]
    with pytest.raises(SystemExit):
        conv.main([*arguments, "--providers", "cudnn"])
    monkeypatch.setitem(PROVIDERS, "wrong", Provider(wrong))
    assert conv.main([*arguments, "--providers", "torch", "wrong"]) == 1
    assert [row["gate"] for row in read(tmp_path / "c.csv")] == ["ok", "failed"]


def test_a_commit_that_is_named_wins_over_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the tree may lie in another repository."""
    monkeypatch.setenv("LK_TRITON_COMMIT", "0123456789ab")
    assert report.facts(CPU)["commit"] == "0123456789ab"
    monkeypatch.setenv("LK_TRITON_COMMIT", "")
    assert report.commit() != ""
    monkeypatch.setenv("PATH", "")
    assert report.commit() == "unknown"


def test_appending_to_a_file_of_another_version(tmp_path: Path) -> None:
    file = tmp_path / "old.csv"
    file.write_text("kernel_name,provider\n")
    with pytest.raises(UsageError, match="other columns"):
        report.append(file, [{"kernel_name": "x"}])
    assert file.read_text() == "kernel_name,provider\n"
    report.append(tmp_path / "new.csv", [])
    report.append(tmp_path / "new.csv", [{"kernel_name": "x"}])
    assert [row["kernel_name"] for row in read(tmp_path / "new.csv")] == ["x"]


def test_an_older_file_is_read_with_empty_columns(tmp_path: Path) -> None:
    file = tmp_path / "old.csv"
    file.write_text("kernel_name,p50_us\nx,1.0\n")
    (row,) = report.read([file])
    assert (row["kernel_name"], row["p50_us"], row["latency_p99_us"]) == ("x", "1.0", "")
