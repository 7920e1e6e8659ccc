"""``lk-triton inspect``: compile the most promising configs for a GPU that need not be here, and say what came out."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from tabulate import tabulate

from ..algorithms import registry
from ..algorithms.base import TritonAlgorithm
from ..gpu import Gpu
from ..ops.problem import ACTIVATIONS, Chain, ConvProblem, Epilogue, Problem
from ..planning import tuner
from ..planning.entry import problem_to_json
from ..planning.plan import plan, why_not
from ..tools import inspector
from ..tools.inspector import Inspection
from . import options
from .networks import fused_problems
from .options import UsageError, dtype, positive
from .output import words

Inspected = list[tuple[Problem, int, list[Inspection]]]
"""(problem, layers that pose it, its configs, the best estimate first)."""

ONLY_WITH = {"shape": ("kernel", "stride", "activation", "residual", "sass"), "model": ("batch", "size")}
"""What describes a single problem, and what describes a network's input."""

TOP = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``run``."""
    parser.description = (
        "Compiles the configs with the best estimates for a target, and shows registers, spills, shared memory, occupancy, "
        "the main loop's matrix instructions and loads, and what the cost model predicts. Needs no GPU and no driver. Results "
        "go to stdout, progress to stderr."
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--device", metavar="D", help="h100, h200, a100, l4, rtx4090, rtx5090, b200 or mi300x")
    target.add_argument("--arch", metavar="A", help="such as sm_80, sm_90, sm_100 (for a100, h100, b200) or gfx942 (mi300x)")
    problem = parser.add_mutually_exclusive_group(required=True)
    problem.add_argument("--shape", type=sizes(4), metavar="N,C,H,W", help="one problem's input")
    problem.add_argument("--model", metavar="NAME", help="every layer of a fused network")
    parser.add_argument("--kernel", type=sizes(2), metavar="KH,KW", help="with --shape; padded by half of it")
    parser.add_argument("--stride", type=positive, metavar="S", help="with --shape; default: 1")
    parser.add_argument("--activation", choices=ACTIVATIONS, help="with --shape; fused behind the bias; default: none")
    parser.add_argument("--residual", action="store_true", help="with --shape; a fused residual")
    parser.add_argument("--batch", type=positive, metavar="N", help="with --model")
    parser.add_argument("--size", type=positive, metavar="N", help="with --model: input height and width")
    parser.add_argument("--dtype", type=dtype, default="float16", metavar="T", help="fp16, bf16 or fp32; default: fp16")
    parser.add_argument("--algorithm", metavar="A", help="toeplitz, toeplitz_hopper or direct; default: the best of them")
    parser.add_argument("--top", type=positive, metavar="K", help="configs a problem; default: 3; with --model 1")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--sass", metavar="FILE", help="with --shape: write the disassembly of the best config")


def sizes(count: int) -> Callable[[str], tuple[int, ...]]:
    """Reads ``count`` positive integers with commas between."""

    def read(text: str) -> tuple[int, ...]:
        numbers = text.split(",")
        if len(numbers) != count:
            raise argparse.ArgumentTypeError(f"expected {count} positive integers with commas between, got {text!r}")
        return tuple(map(positive, numbers))

    return read


def run(arguments: argparse.Namespace) -> int:
    """Compile and print; returns the exit code."""
    _check(arguments)
    gpu = options.gpu_for(arguments.device or arguments.arch)
    network = arguments.model is not None
    problems = _layers(arguments, gpu) if network else Counter([_problem(arguments)])
    algorithm = arguments.algorithm
    top = arguments.top or (1 if network else TOP)
    work = [(problem, count, _candidates(problem, gpu, algorithm, top, network)) for problem, count in problems.items()]
    total = sum(len(candidates) for _, _, candidates in work)
    done = 0
    inspected: Inspected = []
    for problem, count, candidates in work:
        results = []
        for candidate in candidates:
            done += 1
            print(f"compiling {done}/{total}: {problem}, {candidate.algorithm}", file=sys.stderr, flush=True)
            results.append(inspector.inspect(problem, candidate, gpu))
        inspected.append((problem, count, results))
    if arguments.json:
        print(json.dumps(_network(arguments, gpu, inspected) if network else [_json(i) for i in inspected[0][2]], indent=2))
    else:
        print(_text(arguments, gpu, inspected))
    if arguments.sass is not None:
        _write(arguments.sass, inspected[0][2][0].report.disassembly)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together, before anything is compiled."""
    given, other = ("shape", "model") if arguments.shape is not None else ("model", "shape")
    for name in ONLY_WITH[other]:
        if getattr(arguments, name) not in (None, False):
            raise UsageError(f"--{name} goes with --{other}, not with --{given}")
    if arguments.sass is not None:
        options.check_out(Path(arguments.sass))
    if arguments.algorithm == "torch":
        raise UsageError("--algorithm torch has no Triton kernel to compile")
    for name in ("kernel",) if given == "shape" else ("batch", "size"):
        if getattr(arguments, name) is None:
            raise UsageError(f"--{given} also needs --{name}")
    try:
        if arguments.algorithm is not None:
            registry.get(arguments.algorithm)
        inspector.require_compiler()
    except (ValueError, RuntimeError) as error:
        raise UsageError(str(error)) from None


def _problem(arguments: argparse.Namespace) -> ConvProblem:
    """The problem of --shape and --kernel, padded so that stride 1 keeps the size; with a bias, as fused layers have."""
    (n, c, h, w), (kh, kw), stride = arguments.shape, arguments.kernel, arguments.stride or 1
    return ConvProblem(
        n, c, h, w, kh, kw, (stride, stride), (kh // 2, kw // 2), dtype=arguments.dtype,
        epilogue=Epilogue(True, arguments.activation, arguments.residual),
    )  # fmt: skip


def _layers(arguments: argparse.Namespace, gpu: Gpu) -> Counter[Problem]:
    """The distinct problems of the fused network and how many layers pose each; nothing is computed.

    A ConvFFN or a stem that is planned as several kernels is listed as its layers.
    """
    (posed,) = fused_problems(arguments.model, [arguments.batch], [arguments.size], [arguments.dtype])
    found: Counter[Problem] = Counter()
    for problem, count in posed.items():
        if isinstance(problem, Chain) and not _has_kernel(_planned(problem, gpu, arguments.algorithm)):
            found.update(dict.fromkeys(problem.layers, count))
        else:
            found[problem] += count
    return found


def _planned(problem: Problem, gpu: Gpu, algorithm: str | None) -> str:
    """The algorithm that ``problem`` is planned with where ``algorithm`` is preferred."""
    if algorithm is None or why_not(problem, gpu, algorithm) is not None:
        algorithm = "auto"
    return plan(problem, gpu, algorithm).algorithm


def _has_kernel(algorithm: str) -> bool:
    return isinstance(registry.get(algorithm), TritonAlgorithm)


def _candidates(problem: Problem, gpu: Gpu, algorithm: str | None, top: int, prefer: bool) -> list[tuner.Candidate]:
    """The ``top`` best estimates of ``algorithm``; of all of them what the tuner would measure, which is of every kind.

    With ``prefer``, a problem that ``algorithm`` cannot serve takes all of them, as a layer under ``lk_triton.use`` does;
    a line on stderr says so.
    """
    reason = None if algorithm is None else why_not(problem, gpu, algorithm)
    if reason is not None:
        refused = f"{algorithm} cannot serve {problem} on {gpu.name}: {reason}"
        if not prefer:
            raise UsageError(refused)
        print(f"lk-triton: {refused}; the best of the others is shown", file=sys.stderr)
        algorithm = None
    if algorithm is not None:
        found = [c for c in tuner.candidates(problem, gpu, sys.maxsize) if c.algorithm == registry.get(algorithm).name][:top]
    elif isinstance(problem, Chain):  # what runs its layers in turn has no kernel of its own
        found = [c for c in tuner.candidates(problem, gpu, sys.maxsize) if _has_kernel(c.algorithm)][:top]
    else:
        found = tuner.candidates(problem, gpu, top)
    if not found:
        reasons = {n: why_not(problem, gpu, n) for n in registry.meant_for(problem) if n != "torch"}
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise UsageError(f"no Triton algorithm serves {problem} on {gpu.name}: {why}")
    return found


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def _total_us(inspected: Inspected) -> float:
    """All layers one after another, each by its best config."""
    return sum(count * found[0].candidate.estimate_us for _, count, found in inspected)


def _launches(inspected: Inspected) -> int:
    """Kernels of all layers, each by its best config."""
    best = [(problem, count, found[0].candidate) for problem, count, found in inspected]
    algorithms = {one.algorithm: cast("TritonAlgorithm", registry.get(one.algorithm)) for _, _, one in best}
    return sum(count * algorithms[one.algorithm].launches(problem, one.config) for problem, count, one in best)


def _network(arguments: argparse.Namespace, gpu: Gpu, inspected: Inspected) -> dict[str, Any]:
    layers = [
        {"count": count, "problem": problem_to_json(problem), **_json(one)}
        for problem, count, found in inspected
        for one in found
    ]
    return {
        "model": arguments.model, "batch": arguments.batch, "size": arguments.size, "device": gpu.name, "layers": layers,
        "launches": _launches(inspected), "total_estimate_us": round(_total_us(inspected), 2),
    }  # fmt: skip


def _json(one: Inspection) -> dict[str, Any]:
    """The documented schema (docs/cli.md)."""
    candidate, report = one.candidate, one.report
    return {
        "algorithm": candidate.algorithm,
        "config": asdict(candidate.config),
        "registers": report.registers,
        "spill_bytes": report.spill_bytes,
        "shared_bytes": report.shared_bytes,
        "occupancy": {"programs": one.programs, "warps": round(one.warps, 4)},
        "useful_share": round(one.useful_share, 4),
        "bank_bytes": one.bank_bytes,
        "main_loop": {
            "instructions": report.loop.instructions,
            "mma": report.loop.mma,
            "mma_kind": report.loop.mma_kind,
            "global_load_bytes": report.loop.load_counts,
        },
        "estimate_us": round(candidate.estimate_us, 2),
        "limiter": candidate.limiter,
    }


def _text(arguments: argparse.Namespace, gpu: Gpu, inspected: Inspected) -> str:
    """Numbers in a table, configs below it by number."""
    parts = [f"compiled for {gpu.name} ({gpu.arch}); estimates come from the cost model, nothing was measured"]
    listed = [(f"{count} x {problem}", one) for problem, count, found in inspected for one in found]
    rows = [(number, layers, *_row(one)) for number, (layers, one) in enumerate(listed, 1)]
    headers = ("", "layers", *HEADERS)
    if arguments.model is None:
        parts.append(str(inspected[0][0]))
        rows, headers = [(number, *row) for number, _, *row in rows], ("", *HEADERS)
    parts.append(tabulate(rows, headers=headers, tablefmt="simple"))
    parts.append("\n".join(f"{number}: {words(one.candidate.config)}" for number, (_, one) in enumerate(listed, 1)))
    if arguments.model is not None:
        layers = sum(count for _, count, _ in inspected)
        sums = f"{_launches(inspected)} kernels, sum of estimates: {_total_us(inspected):.1f} us"
        parts.append(f"{layers} layers of {arguments.model}, {sums}")
    return "\n\n".join(parts)


HEADERS = ("algorithm", "registers", "spilled", "shared", "programs per SM", "of its warps", "useful", "bank", "main loop",
           "matrix instructions", "global loads", "estimate", "limiter")  # fmt: skip


def _row(one: Inspection) -> tuple[Any, ...]:
    report, loop = one.report, one.report.loop
    return (
        one.candidate.algorithm, report.registers, f"{report.spill_bytes} B", f"{report.shared_bytes / 1024:.1f} KiB",
        one.programs, f"{one.warps:.0%}", f"{one.useful_share:.0%}", f"{one.bank_bytes / 1024:.0f} KiB",
        loop.instructions, f"{loop.mma} {loop.mma_kind}",
        ", ".join(f"{number} x {width} B" for width, number in loop.load_counts.items()),
        f"{one.candidate.estimate_us:.1f} us", one.candidate.limiter,
    )  # fmt: skip
