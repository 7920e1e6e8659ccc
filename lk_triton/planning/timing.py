"""How candidates and contestants are measured, by the tuner and by ``bench``.

GPU: many calls in one CUDA graph, over rotating buffers that together are larger than L2, divided by the number of calls
(events around a single launch add 2 to 5 us). CPU: ``perf_counter``. In both, the contestants take turns round by round,
so that a slow spell of the machine hits all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any, Protocol

import torch

Call = Callable[[int], object]
"""One call on buffer i; what it returns is kept until buffer i comes round again, so that outputs rotate too."""

TARGET_SECONDS = {"cuda": 0.03, "cpu": 0.005}
"""How long one round of one contestant should last."""

MAX_CALLS = 512
MIN_ROUNDS = 5
WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call, one figure a round."""

    rounds: tuple[float, ...]

    def quantile(self, q: float) -> float:
        """The ``q`` quantile (0 to 1) over the rounds, interpolated."""
        return torch.tensor(self.rounds, dtype=torch.float64).quantile(q).item()

    def best(self, device: torch.device) -> float:
        """The figure that ratios are formed of: the median on a GPU, the minimum on a CPU that others use too."""
        return min(self.rounds) if device.type == "cpu" else self.quantile(0.5)

    @property
    def spread(self) -> float:
        """Slowest over fastest round: 1.0 on a quiet machine."""
        return max(self.rounds) / min(self.rounds)


class Timer(Protocol):
    """Runs a contestant for one round."""

    def round(self) -> float:
        """Seconds of one call."""
        ...


class CpuTimer:
    """``calls`` calls between two readings of the clock."""

    def __init__(self, call: Call, buffers: int = 1) -> None:
        call(0)
        start = time.perf_counter()
        call(0)
        self.call, self.buffers = call, buffers
        self.calls = calls_for(time.perf_counter() - start, buffers, "cpu")

    def round(self) -> float:
        """Seconds of one call."""
        kept: list[object] = [None] * self.buffers
        start = time.perf_counter()
        for i in range(self.calls):
            kept[i % self.buffers] = self.call(i % self.buffers)
        return (time.perf_counter() - start) / self.calls


class Pool:
    """Memory that the graphs of several timers share, as much as the hungriest takes: nobody reads the outputs of a replay.

    It holds the graphs, since torch gives up a pool whose last graph is gone.
    """

    def __init__(self) -> None:
        self.graphs: list[torch.cuda.CUDAGraph] = []

    @cached_property
    def handle(self) -> Any:
        """What ``torch.cuda.graph`` takes."""
        return torch.cuda.graph_pool_handle()


class GraphTimer:
    """``calls`` calls captured in one CUDA graph, after a warm-up on a side stream; a round is one replay."""

    def __init__(self, call: Call, buffers: int, device: torch.device, pool: Pool) -> None:
        self.call = call  # keeps alive the tensors that it reads: the graph holds their addresses only
        self.stream = torch.cuda.Stream(device)
        self.stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device), torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                call(0)
            start, end = self._events()
            start.record()
            call(0)
            end.record()
            end.synchronize()
            self.calls = calls_for(start.elapsed_time(end) / 1e3, buffers, "cuda")
            self.graph = torch.cuda.CUDAGraph()
            kept: list[object] = [None] * buffers
            with torch.cuda.graph(self.graph, pool=pool.handle, stream=self.stream):
                for i in range(self.calls):
                    kept[i % buffers] = call(i % buffers)
            pool.graphs.append(self.graph)
            self.graph.replay()
            self.stream.synchronize()

    def round(self) -> float:
        """Seconds of one call."""
        with torch.cuda.stream(self.stream):
            start, end = self._events()
            start.record()
            self.graph.replay()
            end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / self.calls

    @staticmethod
    def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
        return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


class EventTimer:
    """``calls`` calls between two events of the current stream, without a graph: the host's share counts."""

    def __init__(self, call: Call, device: torch.device) -> None:
        self.call, self.device = call, device
        for _ in range(WARM_UP):
            call(0)
        self.calls = 1
        self.calls = calls_for(self.round(), 1, "cuda")

    def round(self) -> float:
        """Seconds of one call."""
        with torch.cuda.device(self.device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(self.calls):
                self.call(0)
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1e3 / self.calls


def timer(call: Call, buffers: int, device: torch.device, pool: Pool | None = None) -> Timer:
    """The timer for ``device``; warms up (and thereby compiles) ``call``. Timers that take turns share a ``pool``."""
    return GraphTimer(call, buffers, device, pool or Pool()) if device.type == "cuda" else CpuTimer(call, buffers)


def calls_for(seconds: float, buffers: int, device_type: str) -> int:
    """How many calls make a round: enough to fill the target time, and every buffer once."""
    return max(buffers, min(MAX_CALLS, ceil(TARGET_SECONDS[device_type] / max(seconds, 1e-7))))


def buffers_for(bytes_per_call: int, device: torch.device) -> int:
    """How many buffers together are three times as large as L2; one on a CPU."""
    if device.type != "cuda":
        return 1
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, min(MAX_CALLS, ceil(3 * l2 / bytes_per_call)))


def interleave(timers: Mapping[str, Timer], rounds: int) -> dict[str, Timing]:
    """Every contestant once a round, ``rounds`` times (at least five), each round from another start."""
    names = list(timers)
    found: dict[str, list[float]] = {name: [] for name in names}
    for r in range(max(rounds, MIN_ROUNDS)):
        for i in range(len(names)):
            name = names[(r + i) % len(names)]
            found[name].append(timers[name].round() * 1e6)
    return {name: Timing(tuple(values)) for name, values in found.items()}
