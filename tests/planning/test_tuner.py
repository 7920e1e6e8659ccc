"""The tuner by a clock that only work moves: the fastest right candidate is kept, and found by other processes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from fakes import H100, LAYER, Clock, Net, pretend_ranks
from torch import Tensor

import lk_triton
from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import TritonAlgorithm
from lk_triton.algorithms.cost.roofline import Estimate
from lk_triton.algorithms.torch_ import TorchAlgorithm
from lk_triton.gpu import Gpu
from lk_triton.ops.layout import layout_of
from lk_triton.ops.problem import ConvProblem, Epilogue, Operands
from lk_triton.planning import autotune as on_call
from lk_triton.planning import cache, timing, tuner
from lk_triton.planning.accuracy import Gate, draw
from lk_triton.planning.plan import Plan, plan

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
TINY = ConvProblem(1, 1, 5, 8, 3, 3, padding=(1, 1), epilogue=Epilogue(True, "relu", True))


def test_one_slow_round_does_not_change_the_figure() -> None:
    candidate = tuner.Candidate("torch", registry.get("torch").configs(TINY, gpus.CPU)[0], 1.0, "dram")
    trial = tuner.Trial(candidate, timing.Timing((10.0, 10.0, 10.0, 10.0, 10.0, 11.0, 500.0)))
    assert trial.microseconds == 10.0
    assert tuner._entry(TINY, trial).microseconds == 10.0


@dataclass(frozen=True)
class FakeConfig:
    """Takes ``us`` by the clock; ``fault`` spoils it."""

    us: float
    estimate_us: float
    bank: str | None = None
    fault: str | None = None


class FakeAlgorithm(TritonAlgorithm):
    """Computes by torch, and moves the clock."""

    name = "fake"
    versions: ClassVar = {"fake": 1}
    config_type = FakeConfig

    def __init__(self, clock: Clock, *configs: FakeConfig) -> None:
        self.clock, self.all = clock, list(configs)

    def configs(self, problem: ConvProblem, gpu: Gpu) -> list[FakeConfig]:
        return self.all

    def estimate(self, problem: ConvProblem, config: FakeConfig, gpu: Gpu) -> Estimate:
        return Estimate(config.estimate_us * 1e-6, "mma")

    def weight_format(self, config: FakeConfig) -> str | None:
        return config.bank

    def prepack(self, weight: Tensor, problem: ConvProblem, config: FakeConfig) -> Tensor:
        return weight

    def launch(self, problem: ConvProblem, config: FakeConfig, operands: Operands) -> Tensor:
        self.clock.now += config.us * 1e-6
        self.clock.calls += 1
        if config.fault == "raises":
            raise RuntimeError("out of resource: shared memory\nRequired: 1, limit: 0")
        y = problem.reference(operands)
        return {None: y, "wrong": y * 1.05, "unwritten": torch.full_like(y, float("nan")), "shape": y[..., 1:]}[config.fault]


def install(monkeypatch: pytest.MonkeyPatch, clock: Clock, *configs: FakeConfig) -> FakeAlgorithm:
    """Make the fake algorithm the only one besides torch."""
    fake = FakeAlgorithm(clock, *configs)
    monkeypatch.setattr(registry, "ALGORITHMS", {"fake": fake, "torch": TorchAlgorithm()})
    monkeypatch.setattr(timing, "timer", clock.timer)
    cache.reload()
    return fake


# Which candidates


@pytest.mark.parametrize("problem", [LAYER, replace(LAYER, n=1), replace(LAYER, kh=3, kw=3, padding=(1, 1)), TINY])
def test_candidates_are_the_best_estimates_and_one_of_each_kind(problem: ConvProblem) -> None:
    found = tuner.candidates(problem, H100)
    assert len(found) == 12
    assert found == sorted(found, key=lambda c: c.estimate_us)
    everything = tuner.candidates(problem, H100, top_k=10**6)
    assert len(everything) == len(set(everything)) > 12
    assert found[0].estimate_us == everything[0].estimate_us
    assert {tuner.kind(c) for c in found} == {tuner.kind(c) for c in everything}
    for candidate in found[:1]:
        algorithm = registry.get(candidate.algorithm)
        estimate = algorithm.estimate(problem, candidate.config, H100)
        assert (candidate.estimate_us, candidate.limiter) == (estimate.seconds * 1e6, estimate.limiter)
    assert len(tuner.candidates(problem, H100, top_k=1)) == 1


# What is kept


def test_the_fastest_right_one_is_kept(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    slow, fast, middle = FakeConfig(30, 1), FakeConfig(10, 3), FakeConfig(20, 2)
    faults = [FakeConfig(1, 4 + i, fault=fault) for i, fault in enumerate(("wrong", "unwritten", "shape", "raises"))]
    install(monkeypatch, clock, slow, fast, middle, *faults)
    gpu = gpus.of(CPU)
    assert plan(TINY, gpu) == Plan("fake", slow, "cost model")
    (result,) = lk_triton.tune([TINY])
    assert result.plan == plan(TINY, gpu) == Plan("fake", fast, "user cache")
    assert result.microseconds == pytest.approx(10)
    assert result.estimate_us == pytest.approx(3)
    assert [t.candidate.config for t in result.trials] == [slow, middle, fast, *faults]
    assert [t.microseconds for t in result.trials] == pytest.approx([30, 20, 10, *[None] * 4])
    reasons = [t.rejected for t in result.rejected]
    assert [t.candidate.config for t in result.rejected] == faults
    expected = ("wrong: error", "wrong: error nan", "wrong output", "out of resource")
    assert all(e in str(r) for r, e in zip(reasons, expected, strict=True))
    (saved,) = cache.user_entries(TINY, gpu)
    assert (saved.rounds, saved.spread) == (tuner.ROUNDS, 1.0)


def test_the_fastest_of_each_bank_format_is_saved(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    a, b, c, d = FakeConfig(30, 1, "v4"), FakeConfig(40, 2, "v4"), FakeConfig(60, 3, "v8"), FakeConfig(50, 4, "v8")
    install(monkeypatch, clock, a, b, c, d)
    lk_triton.tune([TINY])
    gpu = gpus.of(CPU)
    assert [e.config for e in cache.user_entries(TINY, gpu)] == [a, d]
    assert plan(TINY, gpu).config == plan(TINY, gpu, bank_format="v4").config == a
    assert plan(TINY, gpu, bank_format="v8") == Plan("fake", d, "user cache")


def test_pruned_candidates_are_not_run(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    install(monkeypatch, clock, *(FakeConfig(100 - i, i) for i in range(20)))
    (result,) = lk_triton.tune([TINY], top_k=3)
    assert [t.candidate.estimate_us for t in result.trials] == pytest.approx([0, 1, 2])
    assert result.microseconds == pytest.approx(98)


def test_nothing_right_nothing_saved(monkeypatch: pytest.MonkeyPatch, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    install(monkeypatch, clock, FakeConfig(1, 5, fault="wrong"))
    (result,) = lk_triton.tune([TINY])
    assert (result.microseconds, result.plan.source) == (None, "cost model")
    assert result.estimate_us == pytest.approx(5)
    assert cache.user_tables() == {}
    assert "please report" in caplog.text


def test_results_can_be_had_without_saving(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    install(monkeypatch, clock, FakeConfig(2, 1), FakeConfig(1, 2))
    (result,) = lk_triton.tune([TINY], save=False)
    assert result.plan == Plan("fake", FakeConfig(1, 2), "measured")
    assert cache.user_tables() == {}
    assert plan(TINY, gpus.of(CPU)).source == "cost model"


def test_results_are_saved_and_told_one_by_one(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    install(monkeypatch, clock, FakeConfig(1, 1))
    second = replace(TINY, h=6)
    seen = []

    def progress(done: int, total: int, result: tuner.Result) -> None:
        seen.append((done, total, result.problem))
        assert cache.user_entries(result.problem, gpus.of(CPU))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lk_triton.tune([TINY, second, TINY, replace(TINY, n=2)], progress=progress)
    assert seen == [(1, 3, TINY), (2, 3, second)]
    cache.reload()
    assert cache.user_entries(second, gpus.of(CPU))


def test_missing_leaves_out_what_is_measured(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    install(monkeypatch, clock, FakeConfig(1, 1))
    second = replace(TINY, h=6)
    lk_triton.tune([TINY])
    assert [r.problem for r in lk_triton.tune([TINY, second], missing=True)] == [second]
    assert lk_triton.tune([TINY, second], missing=True) == []
    assert len(lk_triton.tune([TINY, second])) == 2, "unless asked for"


def test_no_problem_is_started_behind_the_time(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    install(monkeypatch, clock, FakeConfig(1, 1))
    monkeypatch.setattr(tuner.time, "monotonic", lambda: clock.now)
    asked = [replace(TINY, h=h) for h in (5, 6, 7)]

    def an_hour(*_: object) -> None:
        clock.now += 3600

    assert [r.problem for r in lk_triton.tune(asked, seconds=5000, progress=an_hour)] == asked[:2]
    assert lk_triton.tune(asked, seconds=0) == []
    assert len(lk_triton.tune(asked, progress=an_hour)) == 3


def test_a_lost_gpu_ends_tuning_and_names_who_lost_it(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """What was measured before is saved; no other problem is tried, and none of its candidates is blamed."""
    install(monkeypatch, clock, FakeConfig(1, 1), FakeConfig(2, 2, fault="raises"))
    second = replace(TINY, h=6)
    lk_triton.tune([TINY])
    monkeypatch.setattr(tuner.context, "lost", lambda device: "AcceleratorError: CUDA error: an illegal memory access")
    seen: list[tuner.Result] = []
    with pytest.raises(tuner.ContextLost, match=r"lost while fake FakeConfig.*illegal memory access.*new process") as raised:
        lk_triton.tune([second, replace(TINY, n=2)], progress=lambda *result: seen.append(result[-1]))
    assert raised.value.candidate is not None
    assert raised.value.candidate.config.fault == "raises"
    assert seen == []
    assert cache.user_entries(TINY, gpus.of(CPU))
    assert not cache.user_entries(second, gpus.of(CPU))


def test_a_gate_that_does_not_fit_rejects_and_says_why(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    install(monkeypatch, clock, FakeConfig(1, 1))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 16 GiB.\nGPU 0 has ...")

    monkeypatch.setattr(tuner, "Gate", full)
    (result,) = lk_triton.tune([TINY])
    assert (result.microseconds, result.plan.source) == (None, "cost model")
    assert [t.rejected for t in result.trials] == ["OutOfMemoryError: Tried to allocate 16 GiB."]


def test_what_no_triton_algorithm_serves() -> None:
    (result,) = lk_triton.tune([replace(TINY, dtype="float64")])
    assert (result.plan.algorithm, result.microseconds, result.trials) == ("torch", None, ())
    assert set(result.notes) == {"toeplitz", "toeplitz_hopper", "direct", "onednn"}
    assert "float64" in result.notes["direct"]


def test_tuning_leaves_the_random_state_alone(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    install(monkeypatch, clock, FakeConfig(1, 1))
    before = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        (result,) = lk_triton.tune([replace(TINY, dtype="float32")])
    assert result.microseconds is not None
    assert torch.equal(torch.get_rng_state(), before)


# The real algorithms, interpreted


def move(monkeypatch: pytest.MonkeyPatch, clock: Clock, name: str, seconds: float, factor: float = 1.0) -> None:
    """Launches of the algorithm of that name move the clock, and their result is multiplied by ``factor``."""
    real = registry.get(name).launch

    def launch(*args: Any) -> Tensor:
        clock.now += seconds
        return real(*args).mul_(factor)

    monkeypatch.setattr(registry.get(name), "launch", launch)


def test_all_real_candidates_are_right_and_another_process_finds_the_fastest(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, folder: Path
) -> None:
    move(monkeypatch, clock, "toeplitz", 3e-6)
    move(monkeypatch, clock, "direct", 2e-6)
    (result,) = lk_triton.tune([TINY], top_k=6, timer=clock.timer)
    assert len(result.trials) == 6
    assert not result.rejected
    assert {t.candidate.algorithm for t in result.trials} == {"toeplitz", "direct"}
    assert (result.plan.algorithm, result.plan.source) == ("direct", "user cache")
    assert result.microseconds == pytest.approx(2)
    code = (
        "import torch, lk_triton\n"
        "x = torch.zeros(1, 1, 5, 8).half()\n"
        "y = lk_triton.explain(x, torch.zeros(1, 1, 3, 3).half(), torch.zeros(1).half(), activation='relu', residual=x)\n"
        "print(y.plan.algorithm, y.plan.source, y.plan.config)"
    )
    environment = {**os.environ, cache.VARIABLE: str(folder), "TRITON_INTERPRET": "1"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == f"direct user cache {result.plan.config}"


def test_a_real_algorithm_that_is_wrong_is_rejected(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    move(monkeypatch, clock, "toeplitz", 1e-6, factor=1.01)
    move(monkeypatch, clock, "direct", 2e-6)
    (result,) = lk_triton.tune([TINY], top_k=3, timer=clock.timer)
    assert result.plan.algorithm == "direct"
    assert {t.candidate.algorithm for t in result.rejected} == {"toeplitz"}


# Inputs


@pytest.mark.parametrize("layout", ["nchw", "channel_major", "channels_last"])
def test_inputs_have_the_layout_of_the_problem(layout: str) -> None:
    problem = ConvProblem(2, 3, 5, 4, 3, 3, padding=(1, 1), layout=layout, epilogue=Epilogue(False, None, True))
    operands = draw(problem, CPU)
    assert list(operands) == ["x", "weight", "residual"]
    assert layout_of(operands["x"]) == layout_of(operands["residual"]) == layout


def test_tf32_is_judged_on_values_that_tf32_holds() -> None:
    gate = Gate(replace(TINY, dtype="float32", precision="tf32"), CPU)
    for tensor in gate.operands.values():
        assert not (tensor.view(torch.int32) & 0x1FFF).any()
        assert tensor.abs().max() > 0


# A model


def test_tuning_a_model(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    install(monkeypatch, clock, FakeConfig(1, 1))
    results = lk_triton.tune(Net().eval(), (2, 4, 9, 7), dtype=torch.bfloat16)
    assert {r.problem.dtype for r in results} == {"bfloat16"}
    measured = {getattr(r.problem, "kh", None): r.microseconds is not None for r in results}
    assert measured == {5: True, 1: False, 3: True}, "the fake algorithm is for depthwise layers"
    assert all(plan(r.problem, gpus.of(CPU)).source == "user cache" for r in results if r.microseconds is not None)


def test_wrong_calls() -> None:
    with pytest.raises(RuntimeError, match=r"training|\.eval\(\)"):
        lk_triton.tune(Net(), (2, 4, 9, 7))
    with pytest.raises(ValueError, match="pass tensors or shapes"):
        lk_triton.tune(Net().eval())
    with pytest.raises(ValueError, match="examples are for a model"):
        lk_triton.tune([TINY], (2, 4, 9, 7))
    with pytest.raises(TypeError, match="got a tuple"):
        lk_triton.tune([(2, 4, 9, 7)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        lk_triton.tune([TINY], top_k=0)


# When not


def capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


@pytest.fixture
def deterministic() -> object:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_not_under_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    capture(monkeypatch)
    with pytest.raises(RuntimeError, match="tune before the capture"):
        lk_triton.tune([TINY])


@pytest.mark.usefixtures("deterministic")
def test_not_in_deterministic_mode() -> None:
    with pytest.raises(RuntimeError, match="deterministic mode"):
        lk_triton.tune([TINY])


@pytest.mark.usefixtures("no_interpreter")
def test_not_without_a_gpu() -> None:
    with pytest.raises(RuntimeError, match="nothing to tune on cpu: Triton kernels need a CUDA or ROCm GPU"):
        lk_triton.tune([TINY], device="cpu")


def test_not_in_vain_in_a_job(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    install(monkeypatch, clock, FakeConfig(1, 1))
    pretend_ranks(monkeypatch, 2)
    lk_triton.tune([TINY])
    monkeypatch.delenv(cache.VARIABLE)
    with pytest.raises(RuntimeError, match="set it to a directory that all ranks share"):
        lk_triton.tune([TINY])
    assert lk_triton.tune([TINY], save=False)[0].microseconds is not None


# At the first call


def call() -> None:
    x = torch.ones(1, 1, 5, 8).half()
    lk_triton.depthwise_conv2d(x, torch.ones(1, 1, 3, 3).half(), torch.ones(1).half(), activation="relu", residual=x)


def test_the_first_call_tunes_if_asked_to(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    install(monkeypatch, clock, FakeConfig(2, 1), FakeConfig(1, 2))
    call()
    assert clock.calls == 1
    monkeypatch.setenv(on_call.VARIABLE, "1")
    call()
    assert plan(TINY, gpus.of(CPU)) == Plan("fake", FakeConfig(1, 2), "user cache")
    tuned = clock.calls
    call()
    assert clock.calls == tuned + 1


def test_the_first_call_tries_once(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    install(monkeypatch, clock, FakeConfig(1, 1, fault="wrong"))
    monkeypatch.setenv(on_call.VARIABLE, "1")
    call()
    tuned = clock.calls
    call()
    assert clock.calls == tuned + 1


@pytest.mark.parametrize("why", ["capture", "deterministic", "job"])
def test_the_first_call_does_not_tune(
    why: str, monkeypatch: pytest.MonkeyPatch, clock: Clock, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, clock, FakeConfig(1, 1))
    monkeypatch.setenv(on_call.VARIABLE, "1")
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "lk_triton"):
        if why == "capture":
            capture(patch)
        elif why == "job":
            pretend_ranks(patch, 2)
        else:
            request.getfixturevalue("deterministic")
        call()
        call()
    assert clock.calls == 2
    assert len([r for r in caplog.records if "does nothing here" in r.message]) == 1
    torch.use_deterministic_algorithms(False)
    call()
    assert clock.calls > 3


@pytest.mark.gpu
def test_tuning_on_a_gpu() -> None:
    """Every candidate of a real layer compiles and is right; the plan is measured, and near its own estimate's order."""
    problem = replace(LAYER, n=8)
    (result,) = lk_triton.tune([problem])
    assert not result.rejected
    assert result.microseconds is not None
    assert plan(problem, gpus.of(torch.device("cuda"))) == result.plan
    assert 0.1 < result.microseconds / result.estimate_us < 10
