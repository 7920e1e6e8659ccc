"""What a call does about a problem that nobody has measured: one warning, or tuning that cannot break the call.

No kernel runs here: an H100 that is not there is asked for plans.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from fakes import H100, LAYER, entry_of

from lk_triton import gpu as gpus
from lk_triton.ops.problem import ConvProblem
from lk_triton.planning import autotune as on_call
from lk_triton.planning import cache, tuner
from lk_triton.planning.plan import Plan, plan

GPU = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def h100(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(gpus, "of", lambda device: gpus.CPU if device.type == "cpu" else H100)
    monkeypatch.setattr(gpus, "interpreted", lambda: False)
    caplog.set_level(logging.WARNING, "lk_triton")


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(on_call.VARIABLE, "1")
    monkeypatch.setattr(tuner, "why_not", lambda device: None)


def ask(problem: ConvProblem = LAYER) -> Plan:
    return on_call.plan_for_call(problem, GPU, "auto", None)


def test_an_untuned_gpu_is_told_how_to_tune_once(caplog: pytest.LogCaptureFixture) -> None:
    for problem in (LAYER, LAYER, replace(LAYER, n=8)):
        assert ask(problem).source == "cost model"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"no measured plan for {LAYER} on h100: it comes from the cost model" in record.message
    for way in ("lk-triton tune", "lk_triton.tune(", f"{on_call.VARIABLE}=1"):
        assert way in record.message
    assert "\n" not in record.message


def test_a_measured_problem_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    cache.record(H100, [entry_of()])
    assert ask().source == "user cache"
    assert on_call.plan_for_call(replace(LAYER, n=8), GPU, "torch", None).source == "explicit"
    assert not caplog.records


def test_nothing_is_said_on_a_cpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Neither where torch serves, nor in the interpreter."""
    cpu = torch.device("cpu")
    assert on_call.plan_for_call(LAYER, cpu, "auto", None).algorithm == "torch"
    monkeypatch.setattr(gpus, "of", lambda device: H100)
    monkeypatch.setattr(gpus, "interpreted", lambda: True)
    assert on_call.plan_for_call(LAYER, cpu, "auto", None).algorithm == "toeplitz"
    assert not caplog.records


@pytest.mark.usefixtures("tuning")
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("Tried to allocate 2 GiB.\nGPU 0 has ..."), OSError("disk full")])
def test_a_failure_while_tuning_does_not_reach_the_call(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def failing(*arguments: object) -> None:
        tried.append(arguments)
        raise error

    monkeypatch.setattr(tuner, "tune_problems", failing)
    expected = plan(LAYER, H100)
    assert [ask(), ask()] == [expected, expected]
    assert len(tried) == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.endswith(f"{type(error).__name__}: {str(error).splitlines()[0]}")


@pytest.mark.usefixtures("tuning")
def test_an_interrupt_while_tuning_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tuner, "tune_problems", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask()
