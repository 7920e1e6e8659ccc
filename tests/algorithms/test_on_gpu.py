"""Random problems and legal configs, compiled and launched on a GPU: what the interpreter cannot see."""

from __future__ import annotations

import random
import zlib

import pytest
import test_convffn
import test_convstem
import test_dense
import test_direct
import test_toeplitz
import torch

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import with_prepacked
from lk_triton.ops.problem import ConvProblem, DenseProblem, Epilogue, FfnProblem, Problem, StemProblem
from lk_triton.planning.accuracy import Gate

pytestmark = pytest.mark.gpu
CONFIGS = 4


def draw_toeplitz_hopper(rng: random.Random) -> ConvProblem:
    """Batches that do and do not fill a tile block, odd sizes, every epilogue."""
    kh, kw = rng.choice([(7, 7), (13, 13), (31, 31), (51, 5), (5, 21), (27, 27)])
    h, w = rng.choice([(rng.randint(1, 40), rng.randint(1, 70)), (56, 56), (28, 28), (14, 14), (7, 7)])
    epilogue = Epilogue(rng.random() < 0.7, rng.choice([None, "relu", "gelu", "silu"]), rng.random() < 0.4)
    return ConvProblem(
        rng.choice([1, 3, 64, 100, 128]), rng.choice([1, 3, 40]), h, w, kh, kw,
        padding=(rng.choice([kh // 2, 0 if h >= kh else kh // 2]), kw // 2), dtype=rng.choice(["float16", "bfloat16"]),
        layout=rng.choice(["nchw", "channel_major"]), epilogue=epilogue,
    )  # fmt: skip


DRAW = {
    "toeplitz_hopper": draw_toeplitz_hopper,
    "toeplitz": test_toeplitz.random_problem,
    "direct": test_direct.draw,
    "pointwise": lambda rng: test_dense.random_problem(rng, True),
    "implicit_gemm": lambda rng: test_dense.random_problem(rng, False),
    "convffn": test_convffn.random_problem,
    "convstem": test_convstem.random_problem,
    "layerwise": lambda rng: rng.choice([test_convffn, test_convstem]).random_problem(rng),
}

LAYERS: dict[str, Problem] = {
    **{
        f"dw-{k}x{k}-on-{w}": ConvProblem(4, 64, w, w, k, k, padding=(k // 2, k // 2))
        for k, w in ((31, 56), (29, 28), (27, 14), (13, 7))
    },
    **{
        f"1x1-{c}-{o}-on-{w}": DenseProblem(4, c, w, w, o, layout="channel_major", out_layout="channel_major")
        for c, o, w in ((128, 512, 56), (1024, 256, 28), (512, 512, 14), (4096, 1024, 7))
    },
    **{
        f"ffn-{c}-on-{w}-n{n}": FfnProblem(n, c, w, w, 4 * c, layout="channel_major", out_layout="channel_major")
        for c, w in ((128, 56), (256, 28))
        for n in (1, 4)
    },
    **{
        f"stem-{c}-n{n}": StemProblem(n, 3, 224, 224, c, out_layout="channel_major")
        for c, n in ((128, 1), (128, 4), (192, 2), (256, 2))
    },
    "implicit_gemm": DenseProblem(2, 3, 224, 224, 128, 3, 3, (2, 2), (1, 1), out_layout="channel_major"),
}
"""The shapes of RepLKNet-31B with fewer images and channels."""


def check(problem: Problem, name: str, rng: random.Random) -> None:
    device = torch.device("cuda")
    here = gpus.of(device)
    algorithm = registry.get(name)
    if algorithm.why_not(problem, here) is not None:
        return
    gate = Gate(problem, device, torch.Generator(device).manual_seed(0))
    configs = algorithm.configs(problem, here)
    for config in rng.sample(configs, min(CONFIGS, len(configs))):
        operands = with_prepacked(algorithm, problem, config, gate.operands)
        verdict = gate.check(lambda _, c=config, o=operands: algorithm.launch(problem, c, o))
        assert verdict.ok, (problem, config, verdict)


@pytest.mark.parametrize("seed", range(14))
@pytest.mark.parametrize("name", DRAW)
def test_random_problems_and_configs(name: str, seed: int) -> None:
    rng = random.Random(zlib.crc32(f"{name} {seed}".encode()))
    check(DRAW[name](rng), name, rng)


@pytest.mark.parametrize("layer", LAYERS)
def test_configs_of_the_layers_of_31b(layer: str) -> None:
    problem = LAYERS[layer]
    for name in registry.meant_for(problem):
        if name != "torch":
            check(problem, name, random.Random(zlib.crc32(layer.encode())))
