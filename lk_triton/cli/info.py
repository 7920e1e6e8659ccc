"""``lk-triton info``: what is installed, what is missing, and which algorithm each layer would take."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sysconfig
from typing import Any

from tabulate import tabulate

from .. import gpu as gpus
from ..functional import Explanation, explain_problem
from ..gpu import Gpu
from . import options
from .networks import fused_problems
from .options import versions

MODEL = "replknet_31b"
INPUT = (64, 3, 224, 224)
DTYPES = ("float16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``run``."""
    parser.description = "Versions, compiler and device, and the algorithm that each layer of RepLKNet-31B takes."
    parser.add_argument("--arch", metavar="A", help="explain for this architecture, such as sm_90, instead of this machine's")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the report; returns the exit code."""
    gpu = gpus.of(options.here()) if arguments.arch is None else options.gpu_for(arguments.arch)
    n, _, size, _ = INPUT
    layers = [
        (count, explain_problem(problem, gpu))
        for counts in fused_problems(MODEL, [n], [size], DTYPES)
        for problem, count in counts.items()
    ]
    if arguments.json:
        print(json.dumps(report(gpu, layers), indent=2))
    else:
        print(text(gpu, layers))
    return 0


def c_compiler() -> str | None:
    """The C compiler that Triton will call at the first launch of a kernel, or None."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def python_headers() -> str | None:
    """The folder of Python.h, which Triton's launcher includes, or None."""
    folder = sysconfig.get_paths()["include"]
    return folder if os.path.exists(os.path.join(folder, "Python.h")) else None


def report(gpu: Gpu, layers: list[tuple[int, Explanation]]) -> dict[str, Any]:
    """The JSON object."""
    return {
        "versions": versions(),
        "c_compiler": c_compiler(),
        "python_headers": python_headers(),
        "device": {"name": gpu.name, "arch": gpu.arch},
        "model": MODEL,
        "input": INPUT,
        "layers": [
            {
                "problem": str(e.problem), "dtype": e.problem.dtype, "count": count, "algorithm": e.plan.algorithm,
                "source": e.plan.source, "config": str(e.plan.config),
                "estimate_us": {n: round(v * 1e6, 1) for n, v in e.algorithms.items() if not isinstance(v, str)},
                "refusals": {n: v for n, v in e.algorithms.items() if isinstance(v, str)},
            }
            for count, e in layers
        ],
    }  # fmt: skip


def text(gpu: Gpu, layers: list[tuple[int, Explanation]]) -> str:
    """The report for a terminal."""
    facts = [(name, version or "not installed") for name, version in versions().items()]
    facts.append(("C compiler", c_compiler() or "none: Triton needs one at its first launch: apt install gcc"))
    facts.append(
        ("Python headers", python_headers() or "none: Triton needs them at its first launch: apt install python3-dev")
    )
    facts.append(("device", f"{gpu.name} ({gpu.arch})"))
    rows = [(count, str(e.problem), e.plan.algorithm, others(e)) for count, e in layers]
    return "\n\n".join((
        tabulate(facts, tablefmt="plain"),
        f"layers of the fused {MODEL}, input {INPUT}; estimates come from the cost model, not from a measurement",
        tabulate(rows, headers=("layers", "problem", "algorithm", "why not the others"), tablefmt="simple"),
    ))  # fmt: skip


def others(explanation: Explanation) -> str:
    """Why the algorithms that were not chosen were not; those with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for name, verdict in explanation.algorithms.items():
        if name != explanation.plan.algorithm:
            reason = verdict if isinstance(verdict, str) else f"estimate {verdict * 1e6:.0f} us"
            reasons.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
