"""Programmatic dependent launch (LK_TRITON_PDL): where it is used, and that kernels wait before they touch memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

import lk_triton
from lk_triton import gpu as gpus
from lk_triton.algorithms import base
from lk_triton.models import RepLKNet

CUDA = torch.device("cuda", 0)

LISTINGS = """
from lk_triton.tools import inspector
from lk_triton.gpu import TABLE
from lk_triton.ops.problem import ConvProblem, DenseProblem, Epilogue, FfnProblem, StemProblem
from lk_triton.planning.plan import plan

rows = {"layout": "channel_major", "out_layout": "channel_major"}
residual = Epilogue(True, "relu", True)
for name, problem in (
    ("toeplitz", ConvProblem(1, 512, 14, 14, 27, 27, padding=(13, 13), epilogue=residual)),
    ("direct", ConvProblem(1, 512, 14, 14, 3, 3, padding=(1, 1), epilogue=residual)),
    ("pointwise", DenseProblem(1, 512, 14, 14, 512, **rows, epilogue=residual)),
    ("pointwise", DenseProblem(1, 20, 14, 15, 512, epilogue=residual)),
    ("implicit_gemm", DenseProblem(1, 3, 32, 32, 128, 3, 3, (2, 2), (1, 1), epilogue=Epilogue(True, "relu"))),
    ("convffn", FfnProblem(1, 128, 56, 56, 512, **rows)),
    ("convstem", StemProblem(1, 3, 224, 224, 128)),
    ("cublas", DenseProblem(1, 512, 14, 14, 512, **rows, epilogue=residual)),
):
    launch = inspector.meta_launch(problem, name, plan(problem, TABLE["h100"], name).config)
    launch.args["PDL"] = True
    print(f"== {name}", inspector.compile_launch(launch, "sm_90").disassembly, sep="\\n")
"""


def test_kernels_wait_before_they_touch_memory() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", LISTINGS], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    kernels = result.stdout.split("== ")[1:]
    assert len(kernels) == 8
    for kernel in kernels:
        order = re.findall(r"\b(ACQBULK|PREEXIT|(?:LDG|UTMALDG|STG|UTMASTG|LD|ST|RED|ATOMG)\b)", kernel)
        assert order[:2] == ["ACQBULK", "PREEXIT"], kernel.splitlines()[0]
        assert order.count("ACQBULK") == 1
        assert len(order) > 4, "loads and stores"


@pytest.mark.parametrize(
    ("value", "arch", "expected"),
    [("1", "sm_90", True), ("1", "sm_100", True), ("1", "sm_89", False), ("1", "gfx942", False), ("0", "sm_90", False)],
)
def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch, value: str, arch: str, expected: bool) -> None:
    monkeypatch.setenv(base.PDL, value)
    monkeypatch.setattr(gpus, "of", lambda device: gpus.for_arch(arch))
    assert base._dependent_launches(CUDA) == expected
    assert not base._dependent_launches(torch.device("cpu"))


@pytest.mark.parametrize("asked", [False, True])
def test_triton_is_told(asked: bool) -> None:
    calls: list[dict[str, Any]] = []

    class Kernel:
        arg_names = ("x", "PDL")

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda **options: calls.append(options)

    launch = base.KernelLaunch(Kernel(), (1,), {"x": 1}, 4, 3)
    assert launch.args == {"x": 1, "PDL": False}
    launch.args["PDL"] = asked
    launch.run(torch.device("cpu"))
    assert calls[0]["PDL"] == asked
    assert calls[0].get("launch_pdl", False) == asked


@pytest.mark.gpu
def test_the_same_answers_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel after kernel in graphs, where an overlap would show: bit by bit what they answer without it."""
    torch.manual_seed(0)
    model = RepLKNet((13, 7), (2, 2), (128, 256), num_classes=10, device=CUDA, dtype=torch.float16).eval().convert("fused")
    x = torch.randn(2, 3, 64, 64, device=CUDA, dtype=torch.float16)
    with torch.no_grad():
        expected = lk_triton.graph(model, x)(x).clone()
        monkeypatch.setenv(base.PDL, "1")
        early = lk_triton.graph(model, x)
        for _ in range(200):
            torch.testing.assert_close(early(x), expected, rtol=0, atol=0)
