"""What the tests of tuning share: problems, entries, ranks that are not there, and a clock that only work moves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lk_triton
from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.ops.problem import ConvProblem, DenseProblem, Epilogue, FfnProblem, Problem, StemProblem
from lk_triton.planning import cache, entry, timing
from lk_triton.planning.entry import Entry

H100 = gpus.for_arch("sm_90")
LAYER = ConvProblem(64, 128, 56, 56, 31, 31, padding=(15, 15), epilogue=Epilogue(True, "relu"))
LAST = ConvProblem(64, 96, 28, 28, 7, 7, padding=(3, 3), layout="channels_last", epilogue=Epilogue(True, "relu"))
DENSE = DenseProblem(64, 128, 56, 56, 512, layout="channel_major", out_layout="channel_major", epilogue=Epilogue(True, "gelu"))
STEM = StemProblem(64, 3, 224, 224, 128, out_layout="channel_major")
FFN = FfnProblem(64, 128, 56, 56, 512, layout="channel_major", out_layout="channel_major")
SMALL = ConvProblem(1, 2, 6, 6, 5, 5, padding=(2, 2))


def entry_of(problem: Problem = LAYER, algorithm: str = "toeplitz", index: int = 0, us: float = 100.0) -> Entry:
    config = registry.get(algorithm).configs(problem, H100)[index]
    return entry.of_measured(problem, algorithm, config, microseconds=us, rounds=7, spread=1.02)


def edit(file: Path, *changes: object) -> None:
    """Append entries to a table: dicts are changes to its first entry, anything else goes in as it is."""
    raw = json.loads(file.read_text())
    raw["entries"] += [{**raw["entries"][0], **c} if isinstance(c, dict) else c for c in changes]
    file.write_text(json.dumps(raw))
    cache.reload()


def pretend_ranks(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: count)


class Clock:
    """Seconds that pass only when something says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls = 0

    def timer(
        self, call: Callable[[int], object], buffers: int, device: torch.device, pool: timing.Pool | None = None
    ) -> Clock.Timer:
        """Stands in for ``timing.timer``."""
        return Clock.Timer(self, call)

    class Timer:
        """What the call moved the clock by, in every round."""

        def __init__(self, clock: Clock, call: Callable[[int], object]) -> None:
            before = clock.now
            call(0)
            self.seconds = clock.now - before

        def round(self) -> float:
            return self.seconds


class Net(nn.Module):
    """Two depthwise layers alike, one that is not, a functional call in float64, and a pointwise layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(*(lk_triton.nn.DepthwiseConv2d(4, 5, activation="relu") for _ in range(2)))
        self.mix = lk_triton.nn.PointwiseConv2d(4, 4)
        self.last = lk_triton.nn.DepthwiseConv2d(4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(self.first(x))
        lk_triton.depthwise_conv2d(y, self.last.weight, algorithm="torch")
        return self.norm(self.last(y, residual=x))
