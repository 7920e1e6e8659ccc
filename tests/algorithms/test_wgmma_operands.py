"""No kernel of RepLKNet-31B writes to registers that a wgmma in flight still reads; and what the scan sees."""

from __future__ import annotations

import json
import os

import pytest
import torch
from compilation import run_compiling
from wgmma_operands import faults

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.models import create_model
from lk_triton.ops.problem import Chain, Problem
from lk_triton.ops.tracing import problems_of
from lk_triton.planning.entry import problem_to_json
from lk_triton.planning.plan import why_not

FOLDERS = "LK_TRITON_TEST_TRITON"
"""Folders with other versions of Triton, joined by the path separator."""

LOOP = """
        /*0000*/                   MOV R24, RZ ;
.L_x_0:
        /*0010*/                   LDSM.16.M88.4 R88, [R3] ;
        /*0020*/                   WARPGROUP.ARRIVE ;
        /*0030*/                   HGMMA.64x64x16.F32 R24, R88, gdesc[UR8], R24 ;
        /*0040*/                   HGMMA.64x64x16.F32 R24, R92, gdesc[UR12], R24, gsb0 ;
        /*0050*/                   IADD3 R2, P0, R2, 0x1, RZ ;
        /*0060*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0070*/               @P0 BRA `(.L_x_0) ;
        /*0080*/                   MOV R92, R1 ;
        /*0090*/                   EXIT ;
"""


def test_a_loop_that_waits_has_no_fault() -> None:
    assert faults(LOOP) == (2, [])


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("IADD3 R2, P0, R2, 0x1, RZ", "MOV R88, R1", "MOV R88, R1"),
        ("IADD3 R2, P0, R2, 0x1, RZ", "SHFL.BFLY PT, R95, R1, 0x1, 0x1f", "SHFL.BFLY PT, R95, R1, 0x1, 0x1f"),
        ("IADD3 R2, P0, R2, 0x1, RZ", "LDS.128 R84, [R3]", None),
        ("IADD3 R2, P0, R2, 0x1, RZ", "LDS.128 R85, [R3]", "LDS.128 R85, [R3]"),
        ("IADD3 R2, P0, R2, 0x1, RZ", "STS.128 [R3], R88", None),
        ("R24, R92, gdesc[UR12], R24, gsb0", "R64, R92, gdesc[UR12], R64, gsb0", "HGMMA.64x64x16.F32 R64"),
        # a group more in flight: over the back edge the next step's operand is loaded too early
        ("gsb0, 0x0", "gsb0, 0x1", "LDSM.16.M88.4 R88, [R3]"),
        ("WARPGROUP.DEPBAR.LE gsb0, 0x0", "NOP", None),
    ],
)  # fmt: skip
def test_faults_that_the_scan_sees(old: str, new: str, fault: str | None) -> None:
    listing = LOOP.replace(old, new)
    if new == "NOP":
        with pytest.raises(ValueError, match="in flight"):
            faults(listing)
        return
    found = faults(listing)[1]
    assert bool(found) == (fault is not None)
    assert fault is None or found[0].startswith(fault)


def test_waits_of_a_pipeline() -> None:
    """One group may be in flight while the registers of the one before are written."""
    steps = [
        ("HGMMA.64x64x16.F32 R24, R88, gdesc[UR8], R24, gsb0", "HGMMA.64x64x16.F32 R24, R92, gdesc[UR8], R24, gsb0"),
        ("WARPGROUP.DEPBAR.LE gsb0, 0x1", "LDSM.16.M88.4 R88, [R3]", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "EXIT"),
    ]
    text = "\n".join(f"        /*{i:04x}*/                   {s} ;" for i, s in enumerate(steps[0] + steps[1]))
    assert faults(text) == (2, [])
    assert faults(text.replace("R88, [R3]", "R92, [R3]"))[1] == ["LDSM.16.M88.4 R92, [R3]"]


def kernels() -> list[tuple[str, Problem]]:
    """Of every algorithm with a kernel that serves parts of a 31B of 64 images on an H100: three of these parts, or all."""
    h100 = gpus.for_arch("sm_90")
    model = create_model("replknet_31b", device="meta", dtype=torch.float16).eval().convert("fused")
    posed = set(problems_of(model, (64, 3, 224, 224)))
    posed |= {layer for problem in posed if isinstance(problem, Chain) for layer in problem.layers}
    serving = {p: [n for n in registry.meant_for(p) if inspectable(n) and why_not(p, h100, n) is None] for p in posed}
    parts = {name: sorted((p for p, names in serving.items() if name in names), key=repr) for name in registry.ALGORITHMS}
    return [(name, problem) for name, problems in parts.items() for problem in problems[:3]]


def inspectable(algorithm: str) -> bool:
    """Whether it has a kernel of its own."""
    return hasattr(registry.get(algorithm), "kernel_launch")


@pytest.mark.slow
@pytest.mark.parametrize("folder", [None, *filter(None, os.environ.get(FOLDERS, "").split(os.pathsep))], ids=str)
def test_kernels_of_31b_have_no_fault(folder: str | None) -> None:
    """By the Triton that is installed (None), and by every other that there is a folder of."""
    compiled = kernels()
    lines = "\n".join(json.dumps([name, problem_to_json(problem)]) for name, problem in compiled)
    found = map(json.loads, run_compiling(["-m", "tests.algorithms.wgmma_operands"], folder, lines).splitlines())
    reading = set()
    for (name, problem), (count, faulty) in zip(compiled, found, strict=True):
        assert not faulty, (name, str(problem))
        if count:
            reading.add(name)
    assert reading >= {"convffn", "convstem"}
