"""Stems (``convstem``, ``layerwise``): right whatever sizes, layouts and config; counted work; which plan is taken."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from compilation import compile_all

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.fused.stem.config import ConvstemConfig
from lk_triton.algorithms.fused.stem.cost import issued_macs, programs_per_sm, shared_bytes, tensor_columns, tiles_of
from lk_triton.algorithms.fused.stem.host import ConvstemAlgorithm
from lk_triton.ops.problem import Epilogue, StemProblem
from lk_triton.planning.accuracy import Gate
from lk_triton.planning.plan import plan

H100 = gpus.TABLE["h100"]
CPU = torch.device("cpu")
CONVSTEM, LAYERWISE = ConvstemAlgorithm(), registry.get("layerwise")
OF_31B = StemProblem(64, 3, 224, 224, 128, out_layout="channel_major")


@pytest.mark.parametrize(("h", "w"), [(1, 1), (9, 1), (2, 2), (7, 33), (11, 130)])
def test_edges(h: int, w: int) -> None:
    """Single rows and columns, sizes of either parity, tiles that hold several strips and images, and parts of a row."""
    problem = StemProblem(3, 3, h, w, 16, out_layout="channel_major")
    gate = Gate(problem, CPU)
    config = next(c for c in CONVSTEM.configs(problem, H100) if c.rows == 4)
    assert gate.check(lambda operands: CONVSTEM.launch(problem, config, operands)).ok


def test_zeros_stand_around_the_first_map() -> None:
    """Where its bias is all that it holds, the second layer's outputs at the edges have fewer taps."""
    x = torch.zeros(1, 3, 6, 6).half()
    w1, b1 = torch.zeros(16, 3, 3, 3).half(), torch.ones(16).half()
    w2, w3, zero = torch.ones(16, 1, 3, 3).half(), torch.eye(16).half()[:, :, None, None], torch.zeros(16).half()
    problem = StemProblem(1, 3, 6, 6, 16)
    operands = {"x": x, "w1": w1, "b1": b1, "w2": w2, "b2": zero, "w3": w3, "b3": zero}
    y = CONVSTEM.launch(problem, CONVSTEM.configs(problem, H100)[0], operands)
    assert y[0, 0].tolist() == y[0, 15].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


def test_slices_are_read_in_place() -> None:
    problem = StemProblem(2, 3, 8, 10, 16)
    gate = Gate(problem, CPU)
    wide = torch.full((2, 5, 8, 10), float("nan"), dtype=torch.float16)
    wide[:, 1:4] = gate.operands["x"]
    config = CONVSTEM.configs(problem, H100)[0]
    assert gate.check(lambda given: CONVSTEM.launch(problem, config, {**given, "x": wide[:, 1:4]})).ok


def test_counted_work_is_what_the_kernel_does(recorded) -> None:
    for problem in (StemProblem(2, 3, 9, 21, 24), StemProblem(1, 4, 12, 16, 64, out_layout="channel_major")):
        gate = Gate(problem, CPU)
        for config in CONVSTEM.configs(problem, H100)[::3]:
            recorded.clear()
            CONVSTEM.launch(problem, config, gate.operands)
            assert recorded.macs == issued_macs(problem, config)


def test_plans() -> None:
    """One kernel is taken where its estimate is below that of three; nothing of it was measured."""
    best = min(CONVSTEM.estimate(OF_31B, config, H100) for config in CONVSTEM.configs(OF_31B, H100))
    three = LAYERWISE.estimate(OF_31B, LAYERWISE.configs(OF_31B, H100)[0], H100)
    assert best.seconds < 0.7 * three.seconds
    assert plan(OF_31B, H100).algorithm == "convstem"
    assert plan(replace(OF_31B, dtype="float32"), H100).algorithm == "layerwise"
    assert plan(OF_31B, H100, "torch").source == "explicit"


def test_refusals() -> None:
    def reason(**changes: object) -> str:
        return str(CONVSTEM.why_not(replace(OF_31B, **changes), H100))  # pyright: ignore[reportArgumentType]

    assert "512 channels are more than 256" in reason(channels=512)
    assert "images of 8 channels" in reason(c=8)
    assert "float32" in reason(dtype="float32")
    assert "need a bias" in reason(epilogue=Epilogue(False, "relu"))
    assert "split the batch" in reason(n=2**20)
    assert "sm_80 or newer" in str(CONVSTEM.why_not(OF_31B, gpus.for_arch("sm_70")))
    assert "not for dense" in str(CONVSTEM.why_not(OF_31B.layers[0], H100))  # pyright: ignore[reportArgumentType]
    assert "layerwise is for chains" in str(LAYERWISE.why_not(OF_31B.layers[0], H100))
    assert "not for stems" in str(registry.get("direct").why_not(OF_31B, H100))


def drawn(arch: str, count: int) -> list[tuple]:
    """Problems like a network's, each with one of its legal configs, drawn with a fixed seed."""
    rng, target, found = random.Random(arch), gpus.for_arch(arch), []
    while len(found) < count:
        size = rng.choice([224, 224, 97])
        fields = {
            "n": rng.choice([1, 64]), "c": 3, "h": size, "w": size, "channels": rng.choice([128, 128, 64, 192, 256]),
            "dtype": rng.choice(["float16", "bfloat16"]), "out_layout": rng.choice(["channel_major", "nchw"]),
        }  # fmt: skip
        epilogue = (True, rng.choice(["relu", "relu", "gelu", "silu"]))
        configs = CONVSTEM.configs(StemProblem(**fields, epilogue=Epilogue(*epilogue)), target)
        if configs:
            found.append((arch, "convstem", fields, epilogue, rng.randrange(len(configs))))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_a_sample_of_legal_configs_compiles(arch: str) -> None:
    """Nothing spills; shared and tensor memory keep to their bounds; matrix units multiply."""
    cases, target = drawn(arch, 10), gpus.for_arch(arch)
    for (_, _, fields, epilogue, number), report in zip(cases, compile_all(cases), strict=True):
        problem = StemProblem(**fields, epilogue=Epilogue(*epilogue))
        config = CONVSTEM.configs(problem, target)[number]
        assert report["spill_bytes"] == 0, (problem, config)
        assert report["shared_bytes"] <= shared_bytes(problem, config) <= target.shared_per_block, (problem, config)
        assert report["tensor_columns"] <= tensor_columns(problem, config, target), (problem, config)
        assert report["loop"]["mma"] > 0, (problem, config)


@pytest.mark.slow
def test_two_programs_share_an_sm() -> None:
    fields = {"n": 64, "c": 3, "h": 224, "w": 224, "channels": 128, "out_layout": "channel_major"}
    config = ConvstemConfig(32, 28, 8)
    number = CONVSTEM.configs(OF_31B, H100).index(config)
    (report,) = compile_all([("sm_90", "convstem", fields, (True, "relu"), number)])
    assert report["spill_bytes"] == 0
    assert report["registers"] <= 128
    assert programs_per_sm(OF_31B, config, H100) == 2
    assert report["loop"]["mma_kind"].startswith("HGMMA")
    assert tiles_of(OF_31B, config) == 64 * 4 * 112 // 32
