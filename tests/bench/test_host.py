"""What a call costs the host: what is compared with what, and how it is told. The times are made up."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from skips import STUB_MISSING

from lk_triton.bench import host, rounds, stub
from lk_triton.cli import main

pytestmark = pytest.mark.usefixtures("no_interpreter", "one_thread")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Every call of a comparison is made once, and takes 3 and 2 microseconds; returns what was computed."""
    results: list[tuple[object, ...]] = []

    def fastest(calls: Sequence[Callable[[], object]], _: int) -> list[float]:
        results.append(tuple(call() for call in calls))
        return [3e-6, 2e-6]

    monkeypatch.setattr(host, "fastest", fastest)
    return results


def test_both_sides_compute_the_same_kind_of_map(made_up: list[tuple[torch.Tensor, ...]]) -> None:
    figures = list(host.measure(["layers", "kernels"], 5))
    assert len(figures) == len(made_up) == 2 + len(host.MAPS) * len(host.KERNELS) * len(host.LAYOUTS)
    for figure, (ours, torchs) in zip(figures, made_up, strict=True):
        assert (ours.shape, ours.stride()) == (torchs.shape, torchs.stride()), figure.name
        assert ours.is_inference()
        assert figure.times == 1.5


def test_goals_and_misses_are_printed(made_up: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "host", "--parts", "layers"]) == 0
    out = capsys.readouterr().out
    assert out.count("met") == 2
    assert main(["bench", "host", "--parts", "kernels", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(row["part"], row["goal"], row["times"], row["us"], row["peer_us"]) for row in rows} == {
        ("kernels", 1.15, 1.5, 3.0, 2.0)
    }
    assert host.table([host.Figure("kernels", "3x3", 3.0, "nn.Conv2d", 2.0)]).endswith("missed")


def test_what_cannot_be_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "host", "--rounds", "4"]) == 2
    assert "--rounds must be at least 5, got 4" in capsys.readouterr().err
    monkeypatch.setattr(stub, "compiler", lambda: None)
    assert main(["bench", "host"]) == 2
    assert "no C compiler: apt-get install gcc" in capsys.readouterr().err


def test_every_call_has_its_turn_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is what the calls say that they took; every other turn is a slow one."""
    turns: list[str] = []
    now = [0.0]

    def call(name: str, seconds: float) -> Callable[[], None]:
        slow = itertools.cycle([3.0, 1.0])

        def run() -> None:
            turns.append(name)
            now[0] += seconds * next(slow)

        return run

    monkeypatch.setattr(rounds.time, "thread_time", lambda: now[0])
    assert rounds.fastest([call("a", 2.0), call("b", 4.0)], rounds=6) == [2.0, 4.0]
    assert "".join(turns[-12:]) == "ab" * 6


def test_a_network_on_the_stub_driver() -> None:
    if (reason := stub.missing()) is not None:
        pytest.skip(f"{STUB_MISSING}: {reason}")
    command = [sys.executable, "-m", "lk_triton.bench.host", "--parts", "network", "--tiny", "--rounds", "5", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (row,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert row["name"] == "tiny network, batch 2, 13 launches"
    assert 0 < row["peer_us"] < row["us"]
