"""``lk-triton info``: what is installed, what is missing, and which algorithm each layer would take."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sysconfig
from collections import Counter
from typing import Any

import torch
from tabulate import tabulate

from .. import gpu as gpus
from ..functional import Explanation, explain_problem
from ..models import create_model
from ..ops.problem import Problem
from ..ops.tracing import problems_of
from .options import CommandError, versions

MODEL = "replknet_31b"
INPUT = (64, 3, 224, 224)
DTYPES = ("float16", "float32")


def info(arguments: argparse.Namespace) -> int:
    """Print the report; returns the exit code."""
    device = target(arguments.arch)
    layers = [
        (count, explain_problem(problem, device)) for dtype in DTYPES for problem, count in fused_problems(dtype).items()
    ]
    if arguments.json:
        print(json.dumps(report(device, layers), indent=2))
    else:
        print(text(device, layers))
    return 0


def target(arch: str | None) -> gpus.Gpu:
    """The device to explain for: ``arch``, or this machine's first GPU, or its CPU.

    Raises:
        CommandError: ``arch`` is no architecture.
    """
    if arch is not None:
        try:
            return gpus.for_arch(arch)
        except ValueError as error:
            raise CommandError(str(error)) from None
    return gpus.of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def fused_problems(dtype: str) -> Counter[Problem]:
    """Every distinct problem of the fused network at batch 64, and how many layers pose it.

    The network runs on the meta device: nothing is allocated or computed.
    """
    network = create_model(MODEL, device="meta", dtype=getattr(torch, dtype)).eval().reparameterize()
    return problems_of(network, INPUT)


def c_compiler() -> str | None:
    """The C compiler that Triton will call at the first launch of a kernel, or None."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def python_headers() -> str | None:
    """The folder of Python.h, which Triton's launcher includes, or None."""
    folder = sysconfig.get_paths()["include"]
    return folder if os.path.exists(os.path.join(folder, "Python.h")) else None


def report(gpu: gpus.Gpu, layers: list[tuple[int, Explanation]]) -> dict[str, Any]:
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


def text(gpu: gpus.Gpu, layers: list[tuple[int, Explanation]]) -> str:
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
