"""Whole networks measured: wrong and crashing forms get no figure, peers need no gate, rows are there as they are known."""

from __future__ import annotations

import csv
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sabotage import SABOTAGES, sabotaged
from torch import nn

from lk_triton import context
from lk_triton.bench import contest, forms, look, network, network_gate, report
from lk_triton.bench.forms import FORMS, Form
from lk_triton.bench.network_gate import gate
from lk_triton.models import RepLKNet, randomize_
from lk_triton.models.reference import torch_form
from lk_triton.planning.timing import Timing

graphs = importlib.import_module("lk_triton.graph")  # the package's name is the function's
pytestmark = pytest.mark.usefixtures("one_thread", "no_interpreter")
CPU = torch.device("cpu")
TINY = ["--tiny", "--device", "cpu", "--dtype", "float32", "--rounds", "5"]
SHARES = ("depthwise_share", "pointwise_share", "rest_share")


@pytest.fixture(autouse=True)
def few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "LATENCY_SECONDS", 0.0)


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def measured(*chosen: str, peers: tuple[str, ...] = (), size: int = 32) -> dict[str, report.Row]:
    case = network.Case("tiny", torch.randn(1, 3, size, size), 5)
    torch.manual_seed(0)
    model = randomize_(network.tiny_network()).eval()
    return {str(row["provider"]): row for row in network.measure(case, model, chosen, peers)}


def test_command(tmp_path: Path) -> None:
    file = tmp_path / "network.csv"
    assert network.main([*TINY, "--out", str(file), "--batch", "2", "1"]) == 0
    rows = read(file)
    assert [(r["provider"], r["n"]) for r in rows] == [(f, n) for n in "21" for f in network.CPU_FORMS]
    for row in rows:
        assert row["gate"] == "ok"
        assert float(row["images_per_s"]) == pytest.approx(int(row["n"]) * 1e6 / float(row["min_us"]), rel=1e-3)
        assert 0 < float(row["latency_p50_us"]) <= float(row["latency_p99_us"])
        assert look.CALLS[0] <= int(row["calls"]) <= look.CALLS[1]
        assert float(row["weight_mb"]) > float(row["bank_mb"]) >= 0
        assert sum(float(row[share]) for share in SHARES) == pytest.approx(1, abs=1e-3)
        assert row["config"] == "eager"
        assert not row["note"]
    assert [row["layout"] for row in rows[:3]] == ["nchw", "channels_last", "nchw"]
    assert float(rows[2]["bank_mb"]) > 0
    assert [float(row["speedup"]) > 0 for row in rows[:3]] == [True] * 3
    assert float(rows[0]["speedup"]) == 1


@pytest.mark.parametrize("form", ["training", "merged", "fused"])
def test_torch_form_computes_the_network_with_torch_alone(form: str) -> None:
    model = randomize_(network.tiny_network()).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = model(x)
        by_torch = torch_form(model.convert(form))
        torch.testing.assert_close(by_torch(x), expected)
    assert {type(m) for m in by_torch.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
    assert {p.data_ptr() for p in by_torch.parameters()} == {p.data_ptr() for p in model.parameters()}


@pytest.mark.slow
def test_compiled_forms() -> None:
    names = [name for name in FORMS if name.endswith("_compile")]
    rows = measured("published", *names)
    assert list(rows) == ["published", *names]
    for name in names:
        assert (rows[name]["gate"], rows[name].get("note")) == ("ok", None)
        assert not rows[name].keys() & set(SHARES)  # nobody knows what is in the code that torch.compile wrote
        assert float(str(rows[name]["speedup"])) > 0
    assert rows["lk_triton_compile"]["config"] == "torch.compile, reduce-overhead"
    assert rows["folded_compile"]["config"] == "torch.compile, max-autotune"


def failing(error: Exception) -> Callable[..., Form]:
    def build(*_: object, **__: object) -> Form:
        raise error

    return build


def test_a_form_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(model: object, dtype: object, shape: object) -> Form:
        return Form(lambda x: torch.ones(len(x), 10), torch.contiguous_format, network.tiny_network().eval())

    monkeypatch.setitem(FORMS, "merged", failing(RuntimeError("does not build\nsecond line")))
    monkeypatch.setitem(FORMS, "folded", failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")))
    monkeypatch.setitem(FORMS, "published", wrong)
    file = tmp_path / "network.csv"
    assert network.main([*TINY, "--out", str(file), "--forms", "published", "merged", "folded", "lk_triton"]) == 1
    rows = {row["provider"]: row for row in read(file)}
    assert rows["merged"]["note"] == "RuntimeError: does not build"
    assert (rows["folded"]["note"], rows["folded"]["gate"]) == ("out of memory", "")
    assert (rows["published"]["gate"], rows["published"]["p50_us"]) == ("failed", "")
    assert "not timed" in rows["published"]["note"]
    assert float(rows["lk_triton"]["images_per_s"]) > 0
    assert not rows["lk_triton"]["speedup"], "what it would be a ratio to has no figure"
    with pytest.raises(SystemExit, match="2"):
        network.main([*TINY, "--forms", "lk_triton_graph"])
    assert "need a GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        network.main(["--device", "cpu", "--model", "replknet_99"])
    assert "replknet_31b" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_a_network_that_is_wrong_in_one_place_is_not_timed(sabotage: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "num_classes": 10}
    model = randomize_(RepLKNet((9, 9, 7, 7), small_kernel=3, **sizes)).eval()
    check = gate(network.Case("small", torch.randn(2, 3, 64, 64, dtype=dtype), 1), model)
    with torch.inference_mode():
        for wrong in (None, sabotage):
            module = sabotaged(wrong, model, dtype)
            row = check(Form(module, torch.contiguous_format, module))
            assert row["gate"] == ("failed" if wrong else "ok"), row
            assert str(row.get("note", ": not timed")).endswith(": not timed")


def test_what_does_not_fit_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMS, "merged", failing(torch.OutOfMemoryError("CUDA out of memory")))
    assert network.main([*TINY, "--forms", "published", "merged"]) == 0
    real = contest.interleave

    def one_at_a_time(timers: dict[str, object], rounds: int) -> object:
        if len(timers) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(timers, rounds)  # type: ignore[arg-type]

    monkeypatch.setattr(contest, "interleave", one_at_a_time)
    rows = measured("published", "lk_triton")
    assert float(str(rows["published"]["images_per_s"])) > 0
    assert rows["lk_triton"]["note"] == "out of memory beside published"
    assert (rows["lk_triton"]["gate"], "p50_us" in rows["lk_triton"]) == ("ok", False)


def test_a_profiler_that_fails_costs_the_shares_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "shares", failing(RuntimeError("CUPTI is busy")))
    row = measured("published")["published"]
    assert row["note"] == "no shares: RuntimeError: CUPTI is busy"
    assert float(str(row["images_per_s"])) > 0


def test_peers_need_no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(forms.PEERS, 32, ("test_convnext",))
    eager = tuple(name for name, _ in forms.peer_forms(32) if "_compile" not in name)
    rows = measured("lk_triton", peers=eager)
    assert list(rows) == ["lk_triton", "timm/test_convnext", "timm_channels_last/test_convnext"]
    for row in list(rows.values())[1:]:
        assert row["gate"] == "peer"
        assert float(str(row["images_per_s"])) > 0
        assert "timm" in str(row["config"])
        assert 0 < float(str(row["depthwise_share"])) < 1


def test_peers_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(forms.PEERS, 32, ("swin_base_patch4_window7_224",))
    peers = ("timm/swin_base_patch4_window7_224", "timm_compile/swin_base_patch4_window7_224")
    rows = measured(peers=peers)
    assert tuple(rows) == peers
    for row in rows.values():
        assert row["note"] == "timm is not installed: pip install 'lk-triton[timm]'"
        assert not row.keys() & {"gate", "p50_us"}


def test_peers_are_chosen_by_either_name() -> None:
    names = [name for name, _ in forms.peer_forms(224)]
    assert len(names) == 6

    def chosen(*patterns: str) -> list[str]:
        return [name for name in names if any(network.matches(name, pattern) for pattern in patterns)]

    assert chosen("*") == names
    assert chosen("swin*") == ["timm/swin_base_patch4_window7_224", "timm_compile/swin_base_patch4_window7_224"]
    assert chosen("timm*compile/convnext*") == ["timm_channels_last_compile/convnext_base", "timm_compile/convnext_base"]
    assert not any("_compile" in name for name in chosen(*network.EAGER_PEERS))
    assert not list(forms.peer_forms(320))


def test_the_peers_are_timms() -> None:
    timm = pytest.importorskip("timm")
    assert {name for names in forms.PEERS.values() for name in names} <= set(timm.list_models())


def test_finished_rows_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is stopped while it compiles has written what it knew."""

    def stopped(*_: object) -> Form:
        raise KeyboardInterrupt

    monkeypatch.setitem(FORMS, "lk_triton", stopped)
    file = tmp_path / "network.csv"
    chosen = ["--forms", "published", "merged", "lk_triton", "--out", str(file)]
    assert network.main([*TINY, *chosen]) == 130
    assert [row["provider"] for row in read(file)] == ["published", "merged"]


def test_each_form_takes_turns_with_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ratio is of rounds that alternate; that as a CUDA graph has a ratio of its own."""
    turns: list[list[str]] = []
    microseconds = {"published": 9.0, "published_graph": 8.0, "merged": 3.0, "folded": 2.0}

    def interleave(timers: dict[str, object], rounds: int) -> dict[str, Timing]:
        turns.append(list(timers))
        return {name: Timing((microseconds[name],) * 5) for name in timers}

    monkeypatch.setattr(contest, "interleave", interleave)
    monkeypatch.setitem(FORMS, "published_graph", FORMS["published"])
    rows = measured("published", "merged", "published_graph", "folded")
    first = ["published", "published_graph"]
    assert turns == [["published"], ["published", "merged"], first, [*first, "folded"]]
    assert [(row["speedup"], row.get("graph_speedup")) for row in rows.values()] == [
        (1, None),
        (3, None),
        (1.125, 1),
        (4.5, 4),
    ]


def test_the_published_form_as_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[object] = []

    def graph(module: nn.Module, shape: Sequence[int]) -> nn.Module:
        captured.append(shape)
        assert {type(m) for m in module.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
        assert any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
        graphs.prepare(module, [torch.zeros(*shape)])
        return module

    monkeypatch.setattr(forms.lk_triton, "graph", graph)
    row = measured("published_graph")["published_graph"]
    assert (row["gate"], row["config"], captured) == ("ok", "eager, lk_triton.graph", [(1, 3, 32, 32)])


def test_missing_leaves_out_what_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same device, commit, network, batch and dtype; what failed counts too, so that it is not met twice."""
    monkeypatch.setenv("LK_TRITON_COMMIT", "one")
    monkeypatch.setitem(FORMS, "merged", failing(RuntimeError("does not build")))
    file = tmp_path / "network.csv"
    command = [*TINY, "--out", str(file), "--forms", "published", "merged", "lk_triton"]

    def added(*more: str) -> list[tuple[str, str]]:
        before = len(read(file)) if file.exists() else 0
        network.main([*command, *more])
        return [(row["provider"], row["speedup"] and "ratio") for row in read(file)[before:]]

    assert added("--forms", "published", "merged") == [("published", "ratio"), ("merged", "")]
    assert added("--missing") == [("lk_triton", "ratio")], "beside the published form, which is timed again for that"
    assert added("--missing") == []
    assert len(added("--missing", "--batch", "2")) == len(added("--missing", "--dtype", "bf16")) == 3
    assert len(added()) == 3
    monkeypatch.setenv("LK_TRITON_COMMIT", "two")
    assert len(added("--missing")) == 3
    with pytest.raises(SystemExit, match="2"):
        network.main([*TINY, "--missing"])


def test_a_lost_gpu_is_exit_code_75(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was finished is written, the form that lost it too; nothing else is tried, and nothing is asked of that GPU."""
    lost: list[str] = []

    def build(*_: object) -> Form:
        lost.append("CUDA error: an illegal memory access")
        raise RuntimeError(lost[0])

    def free(device: torch.device) -> None:
        assert not lost

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setitem(FORMS, "merged", build)
    monkeypatch.setattr(context, "lost", lambda device: lost[0] if lost else None)
    monkeypatch.setattr(contest, "free", free)
    monkeypatch.setattr(os, "_exit", leave)
    file = tmp_path / "network.csv"
    with pytest.raises(SystemExit, match="75"):
        network.main([*TINY, "--out", str(file), "--batch", "2", "1", "--forms", "published", "merged", "lk_triton"])
    assert [(row["provider"], row["n"], row["gate"]) for row in read(file)] == [
        ("published", "2", "ok"),
        ("merged", "2", "failed"),
    ]
    assert read(file)[1]["note"] == "RuntimeError: CUDA error: an illegal memory access"
    assert "only a new process can measure the rest, with --missing" in capsys.readouterr().err


def test_references_that_do_not_fit_cost_no_other_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_gate, "published_form", failing(torch.OutOfMemoryError("CUDA out of memory")))
    monkeypatch.setitem(forms.PEERS, 32, ("test_convnext",))
    rows = measured("lk_triton", peers=("timm/test_convnext",))
    assert rows["lk_triton"]["note"] == "out of memory"
    assert float(str(rows["timm/test_convnext"]["images_per_s"])) > 0


def test_rows_of_a_rehearsal_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, mark in (("1", "true"), ("", "")):
        monkeypatch.setenv("LK_TRITON_REHEARSAL", value)
        assert report.facts(CPU)["rehearsal"] == mark


def test_an_old_file_is_refused_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "measure", failing(AssertionError("measured")))
    (tmp_path / "old.csv").write_text("kernel_name,p50_us\n")
    with pytest.raises(SystemExit, match="2"):
        network.main([*TINY, "--out", str(tmp_path / "old.csv")])


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """Every form has figures, memory and shares; a graph runs the kernels that the network runs without it."""
    device = torch.device("cuda")
    model = RepLKNet((31, 29, 27, 13), (1, 1, 1, 1), (64, 64, 64, 64), num_classes=10, device=device)
    case = network.Case("small", torch.randn(1, 3, 64, 64, dtype=torch.float16, device=device), 5)
    chosen = [*network.GPU_FORMS, "lk_triton_compile"]
    found = network.measure(case, randomize_(model).eval(), chosen, ())
    rows = {str(row["provider"]): row for row in found}
    for row in rows.values():
        assert min(float(str(row["speedup"])), float(str(row.get("graph_speedup", 1)))) > 0
        assert (row["gate"], row.get("note")) == ("ok", None)
        assert sum(float(str(row[share])) for share in SHARES) == pytest.approx(1, abs=0.01)
        assert min(float(str(row[share])) for share in SHARES) > 0.01
        assert int(str(row["kernels"])) > 10
        assert float(str(row["activation_mb"])) > 0.05
        assert int(str(row["calls"])) >= look.CALLS_OF_ONE_IMAGE
    eager, graph, published = (int(str(rows[name]["kernels"])) for name in ("lk_triton", "lk_triton_graph", "published"))
    assert abs(eager - graph) <= 1  # the copy into the graph's buffer
    assert graph < published
    assert all(float(str(row["estimate_us"])) > 0 for name, row in rows.items() if name.startswith("lk_triton"))


def test_a_form_that_crashes_behind_the_gate_fails(
    tmp_path: Path, no_interpreter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> list[float]:
        raise RuntimeError("lost")

    monkeypatch.setattr(look, "latencies", crash)
    file = tmp_path / "network.csv"
    assert network.main([*TINY, "--out", str(file), "--forms", "lk_triton"]) == 1
    (row,) = read(file)
    assert (row["gate"], row["note"]) == ("failed", "RuntimeError: lost")
