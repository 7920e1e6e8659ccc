"""What the first call costs where nothing is cached and nothing is timed: choosing a config and compiling one kernel.

A kernel's seconds are CPU time of the process and its compilers, because the machine may be busy. Reading the result back
(cuobjdump, nvdisasm), which a call does not do, is part of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS_A_KERNEL = 3
SECONDS_IN_ALL = 60
"""Of wall time, start of the process included, one kernel after another."""

COMPILE = """
import json, os, time
import triton.compiler
from lk_triton import device, inspector
from lk_triton.commands.tune import problems
from lk_triton.tuning.plan import plan

h100 = device.for_arch("h100")
for problem in problems("replknet_31b", [64], [224], ["float16"]):
    before, start = sum(os.times()[:4]), time.perf_counter()
    chosen = plan(problem, h100)  # of cublas, its epilogue is compiled
    report = inspector.compile_launch(inspector.meta_launch(problem, chosen.algorithm, chosen.config), h100.name)
    print(json.dumps([str(problem), chosen.source, report.registers, sum(os.times()[:4]) - before]), flush=True)
"""


@pytest.mark.slow
def test_every_kernel_of_31b_compiles_in_seconds(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=SECONDS_IN_ALL)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 33, "large kernels, 3x3s, 1x1s by sizes and epilogue, two ConvFFNs, the stem, its first layer"
    assert any(tmp_path.rglob("*.cubin")), "compiled afresh, into the empty cache"
    for problem, source, registers, seconds in rows:
        assert source in ("cost model", "nearest shipped entry"), "nothing is timed"
        assert registers > 0
        assert seconds < SECONDS_A_KERNEL, problem
