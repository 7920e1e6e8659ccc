"""Plans: explicit argument > preference > cost model; banks restrict the choice."""

from __future__ import annotations

import ast
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lk_triton
from lk_triton import environment
from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.cost.roofline import Estimate
from lk_triton.algorithms.dense.pointwise.host import PointwiseAlgorithm
from lk_triton.algorithms.layerwise import LayerwiseAlgorithm
from lk_triton.functional import explain_problem
from lk_triton.ops.problem import ConvProblem, DenseProblem, Epilogue, FfnProblem, StemProblem
from lk_triton.planning import cache, tuner
from lk_triton.planning.plan import excluded, plan, preferred, why_not

H100, A100 = gpus.for_arch("sm_90"), gpus.for_arch("sm_80")
LARGE = ConvProblem(64, 128, 56, 56, 31, 31, padding=(15, 15))
STRIDED = ConvProblem(64, 128, 56, 56, 3, 3, (2, 2), (1, 1))
DILATED = replace(LARGE, padding=(30, 30), dilation=(2, 2))


@pytest.fixture(autouse=True)
def nothing_ships(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The tables' part is tested in tests/planning."""
    monkeypatch.setattr(cache, "TABLES", tmp_path)
    cache.reload()
    yield
    cache.reload()


def test_order() -> None:
    assert (plan(LARGE, H100).algorithm, plan(LARGE, H100).source) == ("toeplitz", "cost model")
    with lk_triton.use("direct"):
        assert (plan(LARGE, H100).algorithm, plan(LARGE, H100).source) == ("direct", "preference")
        chosen = plan(LARGE, H100, "torch")
        assert (chosen.algorithm, chosen.source) == ("torch", "explicit")


def test_preference_falls_back_to_the_triton_algorithms() -> None:
    with lk_triton.use("toeplitz"):
        assert (plan(STRIDED, H100).algorithm, plan(STRIDED, H100).source) == ("direct", "cost model")
        assert plan(DILATED, H100).algorithm == "direct"
        assert plan(replace(DILATED, dtype="float64"), H100).algorithm == "torch"
    with lk_triton.use("torch"):
        assert plan(LARGE, H100).source == "preference"


def test_use_is_of_this_thread() -> None:
    seen: list[str] = []
    with lk_triton.use("torch"):
        thread = threading.Thread(target=lambda: seen.append(preferred()))
        thread.start()
        thread.join()
        assert preferred() == "torch"
    assert seen == ["auto"]


def test_cost_model_takes_the_cheapest_config() -> None:
    for problem in (LARGE, STRIDED, replace(LARGE, n=1), replace(LARGE, dtype="float32")):
        chosen = plan(problem, H100)
        mine = registry.get(chosen.algorithm).estimate(problem, chosen.config, H100).seconds
        for algorithm in registry.ALGORITHMS.values():
            if algorithm.name != "torch" and algorithm.why_not(problem, H100) is None:
                assert all(mine <= algorithm.estimate(problem, c, H100).seconds for c in algorithm.configs(problem, H100))


def test_a_bank_restricts_the_plan_to_its_format() -> None:
    toeplitz = registry.get("toeplitz")
    formats = {toeplitz.weight_format(c) for c in toeplitz.configs(LARGE, H100)}
    assert len(formats) > 1
    for bank_format in formats:
        for problem in (LARGE, replace(LARGE, n=1), replace(LARGE, h=512, w=256)):
            chosen = plan(problem, H100, bank_format=bank_format)
            assert registry.get(chosen.algorithm).weight_format(chosen.config) in (None, bank_format)
    assert plan(LARGE, H100, bank_format="of another version").algorithm == "toeplitz"  # nothing reads it: packed anew


def test_forced_refusals_and_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"algorithm='toeplitz' cannot serve.*stride.*pass algorithm='auto'"):
        plan(STRIDED, H100, "toeplitz")
    for call in (lambda: plan(LARGE, H100, "fft"), lambda: why_not(LARGE, H100, "fft"), lambda: registry.get("fft")):
        with pytest.raises(ValueError, match="unknown algorithm 'fft': expected 'auto' or one of 'toeplitz', "):
            call()


@pytest.mark.parametrize(("old", "name"), registry.RENAMED.items())
def test_former_names_mean_the_algorithms_of_today(old: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    posed = (replace(LARGE, dtype="float16"), CHAINS[1].layers[0], CHAINS[0])
    problem = next(p for p in posed if why_not(p, H100, name) is None)
    forced = plan(problem, H100, name)
    assert plan(problem, H100, old) == forced
    assert forced.algorithm == name
    with lk_triton.use(old):
        assert preferred() == name
        assert plan(problem, H100) == replace(forced, source="preference")
    monkeypatch.setenv("LK_TRITON_ALGORITHM", old)
    assert preferred() == name
    monkeypatch.delenv("LK_TRITON_ALGORITHM")
    monkeypatch.setenv("LK_TRITON_WITHOUT", old)
    assert excluded() == {name}


def test_old_gpus_and_other_devices() -> None:
    old = gpus.for_arch("sm_75")
    assert "sm_75 has no usable tensor cores: sm_80 or newer" in str(why_not(LARGE, old, "toeplitz"))
    assert plan(LARGE, old).algorithm == "direct"
    for name in ("mps", "xpu", "meta"):
        assert plan(LARGE, gpus.of(torch.device(name))).algorithm == "torch"
    assert plan(LARGE, gpus.CPU).algorithm == "torch"


@pytest.mark.parametrize("variable", environment.VARIABLES)
def test_a_variable_takes_effect_at_the_next_plan(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No plan is reused that was made under another value."""
    problem = DenseProblem(63, 128, 56, 56, 512, layout="channel_major", out_layout="channel_major")
    monkeypatch.setattr(
        PointwiseAlgorithm, "estimate",
        lambda self, p, config, d: Estimate(2.0 - (config.num_warps == len(os.environ[variable])), "mma"),
    )  # fmt: skip
    for warps in (4, 8, 4):
        monkeypatch.setenv(variable, "-" * warps)
        assert plan(problem, H100, "pointwise").config.num_warps == warps


def test_algorithms_read_the_environment_in_one_place() -> None:
    """Where a plan's key comes from. ``base.py`` reads one more, which launches depend on and configs do not."""
    package = Path(environment.__file__).parent
    for file in [*package.glob("algorithms/**/*.py"), package / "ops/layout.py"]:
        nodes = list(ast.walk(ast.parse(file.read_text())))
        reads = [n for n in nodes if {"environ", "getenv"} & {getattr(n, "attr", None), getattr(n, "id", None)}]
        assert len(reads) == (file == package / "algorithms/base.py"), file
    with pytest.raises(ValueError, match="HOME is not one of TRITON_INTERPRET: "):
        environment.value("HOME")


def test_empty_batch_is_planned_as_one_image() -> None:
    assert plan(replace(LARGE, n=0), H100) == plan(replace(LARGE, n=1), H100)
    assert explain_problem(replace(LARGE, n=0), H100).problem.n == 0


def test_explain_problem_of_a_device_that_is_not_here() -> None:
    verdict = explain_problem(LARGE, A100)
    assert (verdict.device, verdict.plan) == ("a100", plan(LARGE, A100))
    serving = verdict.algorithms.keys() - {"toeplitz_hopper", "onednn"}
    assert all(isinstance(v := verdict.algorithms[name], float) and v > 0 for name in serving)
    assert verdict.algorithms["onednn"] == "it runs on CPUs, got a100"
    assert verdict.algorithms["toeplitz_hopper"] == "sm_80 has no wgmma: sm_90 is needed"
    for needs_grad, expected in ((True, "torch"), (False, "toeplitz")):
        assert explain_problem(LARGE, H100, needs_grad=needs_grad).plan.algorithm == expected


def test_plans_follow_the_switch_of_onednn() -> None:
    """Plans are remembered, but not beyond it."""
    problem, cpu = ConvProblem(1, 8, 9, 9, 5, 5, padding=(2, 2), dtype="float32"), gpus.CPU
    assert plan(problem, cpu).algorithm == "onednn"
    with torch.backends.mkldnn.flags(enabled=False):
        assert plan(problem, cpu).algorithm == "torch"
    assert plan(problem, cpu).algorithm == "onednn"


# LK_TRITON_WITHOUT

CHAINS = (
    FfnProblem(64, 128, 56, 56, 512, layout="channel_major", out_layout="channel_major"),
    StemProblem(64, 3, 224, 224, 128, out_layout="channel_major"),
)


@pytest.mark.parametrize("name", [name for name in registry.ALGORITHMS if name != "torch"])
def test_an_algorithm_left_out_is_chosen_for_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    dense = DenseProblem(1, 64, 28, 28, 64, epilogue=Epilogue(True, "relu"))
    for problem in (LARGE, STRIDED, replace(LARGE, n=1, dtype="float32"), dense, *CHAINS):
        for device in (H100, gpus.CPU):
            before = plan(problem, device)
            monkeypatch.setenv("LK_TRITON_WITHOUT", f" {name},")
            after = plan(problem, device)
            assert after.algorithm != name
            assert after == before or before.algorithm in (name, "layerwise")
            with lk_triton.use(name):
                assert plan(problem, device).algorithm != name
            assert name not in {c.algorithm for c in tuner.candidates(problem, device)}
            if name in registry.meant_for(problem):
                assert explain_problem(problem, device).algorithms[name] == "LK_TRITON_WITHOUT leaves it out"
            monkeypatch.delenv("LK_TRITON_WITHOUT")
            assert plan(problem, device) == before


def test_layers_of_a_chain_leave_it_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """And take no plan that packs instead."""
    layerwise = registry.get("layerwise")
    assert isinstance(layerwise, LayerwiseAlgorithm)
    monkeypatch.setenv("LK_TRITON_WITHOUT", "pointwise,direct")
    assert [layerwise.plan(layer, H100).algorithm for layer in CHAINS[0].layers] == ["cublas", "cublas"]
    assert [layerwise.plan(layer, H100).algorithm for layer in CHAINS[1].layers] == ["implicit_gemm", "torch", "cublas"]
    monkeypatch.delenv("LK_TRITON_WITHOUT")
    with lk_triton.use("toeplitz"):
        assert layerwise.plan(CHAINS[1].layers[1], H100).algorithm == "direct"


def test_what_is_left_out_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LK_TRITON_WITHOUT", "toeplitz")
    assert plan(LARGE, H100, "toeplitz").source == "explicit"


@pytest.mark.parametrize(("value", "text"), [("fft", "unknown algorithm 'fft'"), ("direct,torch", "torch cannot be excluded")])
def test_names_that_cannot_be_left_out(monkeypatch: pytest.MonkeyPatch, value: str, text: str) -> None:
    monkeypatch.setenv("LK_TRITON_WITHOUT", value)
    with pytest.raises(ValueError, match=f"LK_TRITON_WITHOUT={value}: {text}"):
        plan(LARGE, H100)
