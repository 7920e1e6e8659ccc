"""Compile kernels for a GPU that need not be here. The suite interprets kernels, so this happens in a process of its own where
TRITON_INTERPRET is unset."""

from __future__ import annotations

import json
import os
import subprocess
import sys

COMPILE = """
import dataclasses, json, sys
from lk_triton import gpu
from lk_triton.tools import inspector
from lk_triton.algorithms import registry
from lk_triton.ops.problem import ConvProblem, DenseProblem, Epilogue, FfnProblem, StemProblem
from lk_triton.planning.plan import plan

for line in sys.stdin:
    arch, algorithm, fields, epilogue, number, offset = json.loads(line)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    kinds = {"hidden": FfnProblem, "channels": StemProblem, "out_channels": DenseProblem}
    kind = next((kind for name, kind in kinds.items() if name in fields), ConvProblem)
    problem = kind(**fields, epilogue=Epilogue(*epilogue))
    if number is None:
        config = plan(problem, gpu.for_arch(arch), algorithm).config
    else:
        config = registry.get(algorithm).configs(problem, gpu.for_arch(arch))[number]
    launch = inspector.meta_launch(problem, algorithm, config)
    if offset:
        launch.args["x"] = launch.args["x"].flatten()[offset:]
    report = dataclasses.asdict(inspector.compile_launch(launch, arch))
    report.pop("disassembly")
    print(json.dumps(report), flush=True)
"""


def compile_all(cases: list[tuple], folder: str | None = None) -> list[dict]:
    """Compile what each (arch, algorithm, problem fields, epilogue) would run; a fifth item numbers another legal config
    (None: the planned one), a sixth is the offset of x in its memory, in elements.

    ``folder``: where another Triton lies than the one installed.
    """
    cases = [(*case, None, 0)[:6] if len(case) == 4 else (*case, 0)[:6] for case in cases]
    lines = "\n".join(map(json.dumps, cases))
    return [json.loads(line) for line in run_compiling(["-c", COMPILE], folder, lines).splitlines()]


def run_compiling(arguments: list[str], folder: str | None = None, stdin: str = "") -> str:
    """What Python prints with these arguments where TRITON_INTERPRET is unset; ``folder`` as above."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if folder is not None:
        environment["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, [environment.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, *arguments], input=stdin, capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
