"""Random problems and configs of every algorithm, in the interpreter: what they compute, and how many products that takes."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any

import pytest
import torch
from drawing import DRAW
from serving import serving
from torch import Tensor

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import TritonAlgorithm, WithoutChoices, with_prepacked
from lk_triton.ops import layout
from lk_triton.ops.problem import Chain, Operands, Problem
from lk_triton.planning.accuracy import Gate

pytestmark = pytest.mark.usefixtures("one_thread")

H100 = gpus.TABLE["h100"]
CPU = torch.device("cpu")
COUNT = {"large_kernels": 8, "depthwise": 32, "pointwise": 40, "few_channels": 25, "ffn": 24, "stem": 16}
"""How many problems of a kind, by the name of the function that draws them."""

KINDS = {draw.__name__: draw for draw in DRAW.values() if draw.__name__ in COUNT}
NOWHERE_HERE = {"toeplitz_hopper", "onednn"}
"""Gluon has no interpreter (``test_on_gpu.py``); oneDNN serves a user's CPU and not the interpreter (``test_onednn.py``)."""

KERNELS = {
    name for name, a in registry.ALGORITHMS.items() if isinstance(a, TritonAlgorithm) and not isinstance(a, WithoutChoices)
}
"""Algorithms of one kernel of ours, whose products the interpreter sees."""


def pick(rng: random.Random, algorithm: Any, problem: Problem) -> Any:
    """A config, by pointers or by tensor descriptors where there are both."""
    configs, tma = algorithm.configs(problem, H100), rng.random() < 0.5
    return rng.choice([c for c in configs if getattr(c, "tma", tma) == tma] or configs)


@pytest.mark.parametrize("kind", KINDS)
def test_random_problems_and_configs(kind: str, recorded: Any) -> None:
    """Outputs start as NaN; every algorithm that serves a problem computes it, by one of its configs."""
    rng = random.Random(5)
    torch.manual_seed(0)
    meant = ["torch", *(name for name, draw in DRAW.items() if draw is KINDS[kind])]
    dtypes, offered, seen = set(), set(), set()
    for _ in range(COUNT[kind]):
        problem: Any = KINDS[kind](rng)
        dtypes.add(problem.dtype)
        gate, serves = Gate(problem, CPU), serving(problem)
        # nothing refuses a chain
        assert set(registry.meant_for(problem) if issubclass(type(problem), Chain) else meant) <= set(serves), problem
        for name in serves:
            algorithm: Any = registry.get(name)
            config = pick(rng, algorithm, problem)
            operands = with_prepacked(algorithm, problem, config, gate.operands)
            if algorithm.weight_format(config) is not None:
                assert operands["weight"].nbytes == algorithm.prepacked_bytes(problem, config), (problem, name, config)

            def run(_: Operands, a: Any = algorithm, p: Any = problem, c: Any = config, o: Operands = operands) -> Tensor:
                recorded.clear()
                out = a.launch(p, c, o)
                assert out.stride() == layout.strides(p.out_shape, p.out_layout)
                return out

            verdict = gate.check(run)
            assert verdict.ok, (problem, name, config, verdict)
            if name in KERNELS and problem.epilogue.activation in (None, "relu"):  # the other activations multiply too
                issued = recorded.macs + recorded.products
                assert issued == algorithm.issued_macs(problem, config), (problem, name, config)
            offered |= {(name, problem.dtype, getattr(c, "tma", None)) for c in algorithm.configs(problem, H100)}
            seen.add((name, problem.dtype, getattr(config, "tma", None)))
    for name in meant:
        assert {dtype for other, dtype, _ in seen if other == name} == dtypes, f"{name} saw every dtype"
        described = any(field.name == "tma" for field in fields(registry.get(name).config_type))
        assert {tma for other, _, tma in seen if other == name} == ({True, False} if described else {None}), name
        assert {way for way in offered if way[0] == name} <= seen, f"{name} ran all dtypes by all that is offered for them"


def test_every_algorithm_is_drawn_for() -> None:
    rng = random.Random(0)
    served = {name for kind, draw in KINDS.items() for _ in range(COUNT[kind]) for name in serving(draw(rng))}
    assert served == set(registry.ALGORITHMS) - NOWHERE_HERE
