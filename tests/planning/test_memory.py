"""What tuning holds at once: the outputs of one candidate, and float64 in pieces; and who waits for whom."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import DENSE, FFN, LAYER, STEM
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.ops.problem import Convolution, ConvProblem, Epilogue, Problem
from lk_triton.planning import accuracy, timing, tuner
from lk_triton.planning.accuracy import doubled, draw, exactly, pieces

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
DEPTHWISE = ConvProblem(5, 6, 9, 8, 3, 5, (2, 1), (1, 2), multiplier=2, epilogue=Epilogue(True, "gelu", True))


# Outputs of all candidates


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """CUDA graphs that record nothing, and the pools that they were captured in."""
    pools: list[object] = []

    def graph(graph: object, pool: object, stream: object) -> Any:
        pools.append(pool)
        return nullcontext()

    def event(**_: object) -> Any:
        return SimpleNamespace(record=int, synchronize=int, elapsed_time=lambda _: 10.0)

    for name, fake in {
        "Stream": lambda _: SimpleNamespace(wait_stream=id, synchronize=int), "current_stream": id, "device": nullcontext,
        "stream": nullcontext, "Event": event, "CUDAGraph": lambda: SimpleNamespace(replay=int), "graph": graph,
        "graph_pool_handle": object,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    return pools


def test_timers_that_take_turns_share_one_pool_and_keep_no_output(pretended: list[object]) -> None:
    """Twelve candidates, two buffers each: never more than two outputs are alive, whatever came before."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    peak, buffers = 0, 2

    def call(i: int) -> Tensor:
        nonlocal peak
        y = torch.empty(4)
        alive.add(y)
        peak = max(peak, len(alive))
        return y

    pool = timing.Pool()
    timers = [timing.timer(call, buffers, CUDA, pool) for _ in range(12)]
    assert all(timer.calls > buffers for timer in timers if isinstance(timer, timing.GraphTimer))
    assert peak <= buffers + 1
    assert len(alive) == 0
    assert len(set(map(id, pretended))) == 1
    assert len(pool.graphs) == 12, "torch gives up a pool whose last graph is gone"
    timing.timer(call, buffers, CUDA)
    assert len(set(map(id, pretended))) == 2


def test_the_candidates_of_a_problem_share_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def timer(call: object, buffers: int, device: torch.device, pool: object) -> Any:
        given.append(pool)
        return SimpleNamespace(round=lambda: 1e-6)

    monkeypatch.setattr(timing, "timer", timer)
    problem = replace(DEPTHWISE, stride=(1, 1))
    found = [tuner.Candidate("torch", config, 1.0, "dram") for config in registry.get("torch").configs(problem, None)]  # type: ignore[arg-type]
    tuner.measure(problem, [*found, replace(found[0], limiter="fma")], CPU, 5)
    assert len(given) == 2
    assert given[0] is given[1]
    assert isinstance(given[0], timing.Pool)


# The gate


class Float64(TorchDispatchMode):
    """The most elements of float64 that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float64:
                storage = tensor.untyped_storage()
                if (key := storage._cdata) not in self.alive:
                    self.alive[key] = storage.nbytes() // 8
                    weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


PROBLEMS = [
    DEPTHWISE, replace(DEPTHWISE, dtype="float32", layout="channels_last"), replace(DEPTHWISE, n=1, epilogue=Epilogue()),
    replace(DENSE, n=5, c=6, h=5, w=7, out_channels=9, epilogue=Epilogue(True, "relu", True)),
    replace(FFN, n=5, c=6, h=5, w=7, hidden=9, epilogue=replace(FFN.epilogue, residual=True)),
    replace(STEM, n=5, h=8, w=8, channels=4),
]  # fmt: skip


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_pieces_together_are_the_whole(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    operands = draw(problem, CPU, torch.Generator().manual_seed(0))
    whole = problem.reference(doubled(operands))
    for piece in (1, 200, accuracy.PIECE):
        monkeypatch.setattr(accuracy, "PIECE", piece)
        found = exactly(problem, operands)
        assert found.dtype == (torch.float64 if problem.dtype == "float32" else torch.float32)
        torch.testing.assert_close(found, whole.to(found.dtype), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("problem", [replace(LAYER, n=2, c=48, h=14, w=14, kh=5, kw=5, padding=(2, 2)),
                                     replace(DENSE, n=48, c=4, h=7, w=7, out_channels=8)], ids=str)  # fmt: skip
def test_float64_is_held_in_pieces(problem: Convolution, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "PIECE", 1000)
    elements = problem.n * problem.c * problem.h * problem.w
    assert elements > 9 * accuracy.PIECE
    with Float64() as counted:
        gate = accuracy.Gate(problem, CPU, torch.Generator().manual_seed(0))
        verdict = gate.check(problem.reference)
    assert verdict.ok
    assert 0 < counted.peak < 6 * accuracy.PIECE


def test_verdicts_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    result, by_torch = exact.half(), (exact * 1.001).half()
    whole = accuracy.judge(result, by_torch, exact)
    broken = result.clone()
    broken[2, 3, 4, 5] = float("nan")
    for piece in (1, 7, 50):
        monkeypatch.setattr(accuracy, "PIECE", piece)
        assert accuracy.judge(result, by_torch, exact) == whole
        assert not accuracy.judge(broken, by_torch, exact).ok
        cut = [[t.numel() for t in some] for some in pieces(exact, result)]
        assert all(a == b <= piece for a, b in cut)
        assert sum(a for a, _ in cut) == exact.numel()


# Streams


def test_the_threads_wait_for_what_they_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are drawn on the caller's stream, and packed on those of the worker threads."""
    order: list[str] = []
    onednn = registry.get("onednn")
    monkeypatch.setattr(onednn, "prepack", lambda *_: order.append("pack"))
    monkeypatch.setattr(onednn, "launch", lambda *_: order.append("launch"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(synchronize=lambda: order.append("wait")))
    drawn = SimpleNamespace(operands={"x": SimpleNamespace(device=CUDA), "weight": None})
    candidate = tuner.Candidate("onednn", onednn.configs(LAYER, gpus.CPU)[0], 1.0, "dram")
    tuner._first_runs(LAYER, [candidate], drawn, {})  # type: ignore[arg-type]
    assert order == ["wait", "pack", "launch", "wait"]
