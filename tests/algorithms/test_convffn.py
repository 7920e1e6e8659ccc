"""ConvFFNs (``convffn``, ``layerwise``): right whatever sizes, layouts and config; counted work."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from compilation import compile_all

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.fused.ffn.cost import issued_macs, shared_bytes, tensor_columns, weight_bytes
from lk_triton.algorithms.fused.ffn.host import ConvffnAlgorithm
from lk_triton.ops.problem import Epilogue, FfnProblem
from lk_triton.planning.accuracy import Gate
from lk_triton.planning.plan import plan

H100 = gpus.TABLE["h100"]
CPU = torch.device("cpu")
CONVFFN, LAYERWISE = ConvffnAlgorithm(), registry.get("layerwise")
CHANNEL_MAJOR: dict[str, Any] = {"layout": "channel_major", "out_layout": "channel_major"}
STAGE1 = FfnProblem(64, 128, 56, 56, 512, **CHANNEL_MAJOR)
STAGE2 = FfnProblem(64, 256, 28, 28, 1024, **CHANNEL_MAJOR)


def test_pointers_are_as_right_as_descriptors() -> None:
    problem = FfnProblem(2, 64, 5, 7, 128, **CHANNEL_MAJOR)
    gate = Gate(problem, CPU)
    for tma in (True, False):
        config = next(c for c in CONVFFN.configs(problem, H100) if c.tma == tma)
        verdict = gate.check(lambda operands, c=config: CONVFFN.launch(problem, c, operands))
        assert verdict.ok, verdict


def test_counted_work_is_what_the_kernel_does(recorded) -> None:
    for problem in (FfnProblem(2, 64, 5, 7, 96, **CHANNEL_MAJOR), FfnProblem(1, 128, 8, 9, 64, layout="nchw")):
        gate = Gate(problem, CPU)
        for config in CONVFFN.configs(problem, H100):
            if config.tma or config.num_stages > 2:
                continue
            recorded.clear()
            CONVFFN.launch(problem, config, gate.operands)
            tiles = -(-problem.n * problem.h * problem.w // config.pixels)
            assert recorded.macs == issued_macs(problem, config)
            assert sum(recorded.bytes_of(gate.operands[role]) for role in ("w1", "w2")) == tiles * weight_bytes(problem)


def test_the_plans_are_those_that_were_fastest() -> None:
    assert {p: plan(p, H100).algorithm for p in (STAGE1, STAGE2, replace(STAGE2, n=1))} == {
        STAGE1: "convffn", STAGE2: "convffn", replace(STAGE2, n=1): "layerwise",
    }  # fmt: skip
    assert plan(replace(STAGE1, dtype="float32"), H100).algorithm == "layerwise"
    assert plan(STAGE1, H100, "torch").source == "explicit"


def test_refusals() -> None:
    def reason(**changes: object) -> str:
        return str(CONVFFN.why_not(replace(STAGE1, **changes), H100))  # pyright: ignore[reportArgumentType]

    assert "512 channels are not one of 64, 128, 256" in reason(c=512)
    assert "float32" in reason(dtype="float32")
    assert "no multiple of 32" in reason(hidden=80)
    assert "not one row" in reason(layout="nchw")
    assert "only a channel-major output" in reason(out_layout="nchw", h=7, w=7)
    assert "need a bias" in reason(epilogue=Epilogue(False, "gelu"))
    assert "split the batch" in reason(n=2**20)
    assert "sm_80 or newer" in str(CONVFFN.why_not(STAGE1, gpus.for_arch("sm_70")))
    assert "not for dense" in str(registry.get("convffn").why_not(STAGE1.layers[0], H100))
    assert "for chains" in str(LAYERWISE.why_not(STAGE1.layers[0], H100))
    assert "ConvFFNs" in str(registry.get("direct").why_not(STAGE1, H100))


def drawn(arch: str, count: int) -> list[tuple]:
    """Problems like a network's, each with one of its legal configs, drawn with a fixed seed."""
    rng, target, found = random.Random(arch), gpus.for_arch(arch), []
    while len(found) < count:
        size = rng.choice([28, 7])
        fields = {
            "n": rng.choice([1, 3, 16]), "c": rng.choice([64, 128, 256]), "h": size, "w": size,
            "hidden": rng.choice([256, 1024]), "dtype": rng.choice(["float16", "bfloat16"]), "layout": "channel_major",
            "out_layout": rng.choice(["channel_major", "channel_major", "nchw"]),
        }  # fmt: skip
        epilogue = (True, rng.choice(["gelu", "relu", "silu"]), rng.random() < 0.7)
        problem = FfnProblem(**fields, epilogue=Epilogue(*epilogue))
        configs = CONVFFN.configs(problem, target)
        if configs and CONVFFN.why_not(problem, target) is None:
            found.append((arch, "convffn", fields, epilogue, rng.randrange(len(configs))))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_a_sample_of_legal_configs_compiles(arch: str) -> None:
    """Shared and tensor memory keep to their bounds; nothing spills, on sm_100 but for a few registers."""
    cases, target = drawn(arch, 10), gpus.for_arch(arch)
    for (_, _, fields, epilogue, number), report in zip(cases, compile_all(cases), strict=True):
        problem = FfnProblem(**fields, epilogue=Epilogue(*epilogue))
        config = CONVFFN.configs(problem, target)[number]
        assert report["spill_bytes"] <= (128 if arch == "sm_100" else 0), (problem, config)
        assert report["shared_bytes"] <= shared_bytes(problem, config) <= target.shared_per_block, (problem, config)
        assert report["tensor_columns"] <= tensor_columns(problem, config, target), (problem, config)
        assert report["loop"]["mma"] > 0, (problem, config)


@pytest.mark.slow
def test_the_plan_of_stage_1_compiles() -> None:
    """The registers and the shared memory that let two programs share an SM."""
    order = {"n": 64, "c": 128, "h": 56, "w": 56, "hidden": 512, **CHANNEL_MAJOR}
    (report,) = compile_all([("sm_90", "convffn", order, (True, "gelu", True))])
    assert report["spill_bytes"] == 0
    assert report["registers"] <= 128
    assert report["loop"]["mma_kind"].startswith("HGMMA")
