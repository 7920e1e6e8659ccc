"""Random problems and legal configs, compiled and launched on a GPU: what the interpreter cannot see."""

from __future__ import annotations

import random
import zlib

import pytest
import torch
from drawing import DRAW

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import with_prepacked
from lk_triton.ops.problem import ConvProblem, DenseProblem, FfnProblem, Problem, StemProblem
from lk_triton.planning.accuracy import Gate

pytestmark = pytest.mark.gpu
CONFIGS = 4

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
