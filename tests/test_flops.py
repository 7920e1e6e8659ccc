"""torch's FLOP counter: our ops count as torch's own convolutions do, whichever of the two modules is imported first."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from serving import call
from torch.utils.flop_counter import FlopCounterMode

from lk_triton.models import RepLKNet, published_form
from lk_triton.ops.problem import ConvProblem, DenseProblem, Epilogue, FfnProblem, Problem, StemProblem
from lk_triton.ops.registration import OPS
from lk_triton.planning.accuracy import draw

pytestmark = pytest.mark.usefixtures("one_thread", "no_interpreter")
PROBLEMS: tuple[Problem, ...] = (
    ConvProblem(2, 3, 9, 8, 5, 3, (2, 1), (0, 1), (1, 2), 2, epilogue=Epilogue(True, "relu")),
    DenseProblem(2, 4, 9, 8, 6, 3, 3, (2, 2), (1, 1)),
    FfnProblem(2, 4, 3, 5, 8),
    StemProblem(2, 3, 9, 8, 4),
)


def counted(function: object, *given: object) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*given)  # type: ignore[operator]
    return counter.get_total_flops()


@torch.no_grad()
def test_every_op_counts_its_multiply_adds() -> None:
    seen = set()
    for problem in PROBLEMS:
        posed = replace(problem, dtype="float32")
        with FlopCounterMode(display=False) as counter:
            call(posed, draw(posed, torch.device("cpu")))
        (by_op,) = [ops for name, ops in counter.get_flop_counts().items() if name == "Global"]
        assert list(by_op.values()) == [2 * posed.nominal_macs]
        seen |= by_op.keys()
    registered = {getattr(torch.ops.lk_triton, name) for name in dir(torch.ops.lk_triton) if not name.startswith("_")}
    assert seen == {op.overloadpacket for op in OPS}
    assert seen >= {op for op in registered if isinstance(op, torch._ops.OpOverloadPacket)}


def test_networks_count_as_the_published_form_does() -> None:
    model = RepLKNet((7, 5), (1, 1), (8, 16), num_classes=5).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = counted(published_form(model), x)
    assert expected > 100_000
    assert counted(model, x) == expected
    with torch.no_grad():
        assert counted(model, x) == expected
        fused = counted(model.convert("fused"), x)
    small = sum(2 * 25 * c * (64 // s) ** 2 for c, s in ((8, 4), (16, 8)))
    assert fused == expected - small, "the parallel 5x5 kernels are gone"


@pytest.mark.parametrize("first", ["lk_triton", "torch.utils.flop_counter"])
def test_either_module_may_be_imported_first(first: str) -> None:
    program = f"""
import {first}
import sys, torch, lk_triton
from importlib.util import find_spec
if "{first}" == "lk_triton":
    assert "triton" not in sys.modules
    assert find_spec("torch.utils.flop_counter") is not None  # asked for, and not imported
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    lk_triton.depthwise_conv2d(torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3))
assert counter.get_total_flops() == 2 * 2 * 25 * 9, counter.get_total_flops()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
