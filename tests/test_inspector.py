"""Kernels compiled for sm_80 and sm_90 without a GPU: tensor cores, load widths, spills, shared memory.

The suite interprets kernels, so they are compiled in a process of its own where TRITON_INTERPRET is unset.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lk_triton import device, inspector
from lk_triton.algorithms.toeplitz import ToeplitzAlgorithm
from lk_triton.algorithms.toeplitz_work import shared_bytes
from lk_triton.problem import ConvProblem, Epilogue
from lk_triton.tuning.plan import plan

COMPILE = """
import dataclasses, json, sys
from lk_triton import device, inspector
from lk_triton.problem import ConvProblem, Epilogue
from lk_triton.tuning.plan import plan

for line in sys.stdin:
    arch, algorithm, fields, epilogue = json.loads(line)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    problem = ConvProblem(**fields, epilogue=Epilogue(*epilogue))
    chosen = plan(problem, device.for_arch(arch), algorithm)
    report = dataclasses.asdict(inspector.compile_launch(inspector.meta_launch(problem, algorithm, chosen.config), arch))
    report.pop("sass")
    print(json.dumps(report), flush=True)
"""


def compile_all(cases: list[tuple[str, str, dict, tuple]]) -> list[dict]:
    """Compile the plan that each (arch, algorithm, problem fields, epilogue) would run."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    lines = "\n".join(map(json.dumps, cases))
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], input=lines, capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def fields(n, c, size, kernel, dtype, stride=1):
    return {"n": n, "c": c, "h": size, "w": size, "kh": kernel, "kw": kernel, "dtype": dtype, "stride": (stride, stride),
            "padding": (kernel // 2, kernel // 2)}  # fmt: skip


# map, kernel -> bytes of an image load: as wide as the row pitch allows
LAYERS = {(128, 56, 31): 16, (256, 28, 29): 8, (512, 14, 27): 4, (1024, 7, 13): 2}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_layers_of_31b(arch, dtype):
    cases = [(arch, "toeplitz", fields(64, c, size, k, dtype), (True, "relu", False)) for c, size, k in LAYERS]
    for (_, _, p, epilogue), image_bytes, report in zip(cases, LAYERS.values(), compile_all(cases), strict=True):
        assert report["mma"] > 0
        assert report["mma_kind"].startswith("HGMMA" if arch == "sm_90" else "HMMA")
        assert report["spills"] == 0
        assert report["stack_bytes"] == 0
        loads = {int(width): counts for width, counts in report["loads"].items()}
        asynchronous = {width for width, (count, _) in loads.items() if count}
        synchronous = {width for width, (_, count) in loads.items() if count}
        assert asynchronous - {image_bytes} <= {8, 16}, "the bank is read by 8- or 16-byte loads"
        assert asynchronous & {8, 16}
        assert image_bytes in (synchronous if image_bytes == 2 else asynchronous)
        assert synchronous <= {2}, "only 7 wide maps are too narrow for asynchronous loads"
        problem = ConvProblem(**p, epilogue=Epilogue(*epilogue))
        target = device.for_arch(arch)
        assert report["shared_bytes"] <= shared_bytes(problem, plan(problem, target, "toeplitz").config)
        assert report["shared_bytes"] <= target.shared_per_block


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_other_epilogues_and_precisions_do_not_spill(arch):
    cases = [
        (arch, "toeplitz", fields(64, 128, 56, 31, "float16"), (True, "gelu", True)),
        (arch, "toeplitz", fields(1, 128, 56, 31, "float16"), (True, "silu", False)),
        (arch, "toeplitz", fields(64, 128, 56, 31, "float32"), (True, "relu", False)),
        (arch, "direct", fields(64, 128, 56, 31, "float32"), (True, "relu", True)),
    ]
    for report in compile_all(cases):
        assert report["spills"] == 0
        assert report["stack_bytes"] == 0


@pytest.mark.slow
def test_direct_at_three_and_five():
    """No spills, 16-byte image loads at 3x3 (stride 1 and 2) and 5x5; at stride 1 all stays in registers."""
    cases = [
        ("sm_90", "direct", fields(64, 128, 56, k, "float16", stride), (True, "relu", False))
        for k, stride in ((3, 2), (3, 1), (5, 1))
    ]
    reports = compile_all(cases)
    assert all(report["spills"] == 0 and "16" in report["loads"] for report in reports)
    assert [report["shared_bytes"] for report in reports[1:]] == [0, 0]


def test_shared_memory_is_bounded_by_the_estimate():
    """One quick compilation in the fast suite."""
    case = ("sm_90", "toeplitz", fields(1, 8, 14, 13, "float16"), (True, "relu", False))
    (report,) = compile_all([case])
    p = ConvProblem(**case[2], epilogue=Epilogue(*case[3]))
    config = plan(p, device.for_arch("sm_90"), "toeplitz").config
    assert 0 < report["shared_bytes"] <= shared_bytes(p, config)
    assert report["mma"] > 0


def test_errors():
    p = ConvProblem(1, 8, 14, 14, 13, 13, padding=(6, 6))
    config = ToeplitzAlgorithm().configs(p, device.TABLE["h100"])[0]
    launch = inspector.meta_launch(p, "toeplitz", config)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        inspector.compile_launch(launch, "sm_90")
    with pytest.raises(ValueError, match="no Triton kernel"):
        inspector.meta_launch(p, "torch", None)


SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_1:
        /*0020*/                   LDGSTS.E.BYPASS.LTC128B.128 [R3], desc[UR4][R2.64] ;
        /*0030*/              @!P0 LDGSTS.E.64 [R3], desc[UR4][R2.64] ;
        /*0040*/                   HGMMA.64x64x16.F32 R24, gdesc[UR8], R24 ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/               @P2 BRA `(.L_x_0) ;
        /*0070*/                   EXIT ;
"""


def test_main_loop_is_the_innermost_loop_with_an_mma():
    loop = inspector.main_loop(SASS)
    assert [text.split()[0] for text in loop] == ["LDGSTS.E.BYPASS.LTC128B.128", "LDGSTS.E.64", "HGMMA.64x64x16.F32", "BRA"]
    assert len(inspector.main_loop(SASS.replace("HGMMA", "FFMA"))) == 8
