"""``lk-triton tune``: measure the layers of a network, or list what would be measured.

With --json every line on stdout is one object with a ``type``, printed as soon as it is known: ``device`` first, then one
``result``, ``error`` or ``candidates`` a problem, ``summary`` last.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from .. import context
from .. import gpu as gpus
from ..algorithms import registry
from ..files import why_not_written
from ..functional import tune as tune_problems
from ..gpu import Gpu
from ..ops.problem import Problem
from ..planning import agenda, cache, tuner
from ..planning.entry import problem_to_json
from . import options
from .networks import fused_problems
from .options import UsageError, dtype, positive, versions
from .output import words

DRY_ARCH = "sm_90"
"""What a dry run estimates for where there is no GPU and no architecture is named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``run``."""
    parser.description = (
        "Measures the most promising configs of every layer of a fused network on this machine's GPU, and saves the "
        "fastest right ones for all processes to come. Results go to stdout, progress to stderr."
    )
    parser.add_argument("--model", default="replknet_31b", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 8, 64], metavar="N", help="default: 1 8 64")
    parser.add_argument("--size", type=positive, nargs="+", default=[224], metavar="N", help="default: 224")
    parser.add_argument("--dtype", type=dtype, nargs="+", default=["float16"], metavar="T", help="default: fp16")
    parser.add_argument("--device", metavar="D", help="such as cuda:1; default: the current GPU")
    parser.add_argument("--top", type=positive, default=12, metavar="K", help="candidates a problem; default: %(default)s")
    parser.add_argument("--missing", action="store_true", help="leave out what is measured already")
    parser.add_argument("--seconds", type=positive, metavar="S", help="start no other problem after so many seconds")
    parser.add_argument("--dry-run", action="store_true", help="list the candidates with their estimates; needs no GPU")
    parser.add_argument("--arch", metavar="A", help="with --dry-run: for this architecture or GPU, such as sm_90 or h200")
    parser.add_argument("--json", action="store_true", help="print JSON objects, one a line, as results come")


def run(arguments: argparse.Namespace) -> int:
    """Measure or list; returns the exit code."""
    if arguments.arch is not None and not arguments.dry_run:
        raise UsageError("--arch is for --dry-run: measuring takes the GPU itself (--device)")
    if arguments.arch is not None and arguments.device is not None:
        raise UsageError("--arch and --device both name what to estimate for: pass one of them")
    if arguments.dry_run and (arguments.missing or arguments.seconds is not None):
        raise UsageError("--missing and --seconds are for measuring: a dry run lists every problem")
    return _dry_run(arguments) if arguments.dry_run else _measure(arguments)


def problems(model: str, batches: list[int], sizes: list[int], dtypes: list[str]) -> list[Problem]:
    """The distinct problems of the fused network, in the order of its layers."""
    return tuner.with_layers(problem for counts in fused_problems(model, batches, sizes, dtypes) for problem in counts)


def _measure(arguments: argparse.Namespace) -> int:
    start = time.monotonic()
    device = options.torch_device(arguments.device)
    reason = tuner.why_not(device)
    if reason is not None:
        raise UsageError(f"{reason}; --dry-run lists the candidates without one")

    gpu = gpus.of(device)
    file = cache.directory() / cache.file_name(gpu.name)
    unwritable = why_not_written(file, makes_folders=True)
    if unwritable is not None:
        raise UsageError(f"{unwritable}; set {cache.VARIABLE} to a directory to write to")
    posed = fused_problems(arguments.model, arguments.batch, arguments.size, arguments.dtype)
    asked = agenda.heaviest_first(posed, gpu)
    wanted = agenda.missing(asked, gpu) if arguments.missing else asked
    if arguments.json:
        _print_line(_header(gpu, asked) | {"file": str(file)})
    results: list[tuner.Result] = []
    errors: dict[Problem, str] = {}
    lost = False
    for number, problem in enumerate(wanted, 1):
        if lost or (arguments.seconds is not None and time.monotonic() - start >= arguments.seconds):
            break
        try:
            (result,) = tune_problems([problem], device=device, top_k=arguments.top)
        except Exception as error:  # such as out of memory: what the other problems find must not be lost
            errors[problem] = said = f"{type(error).__name__}: {error}".splitlines()[0]
            line = {"type": "error", "problem": problem_to_json(problem), "error": said}
            if isinstance(error, tuner.ContextLost):
                lost = True
                line |= {"lost": True, "algorithm": error.candidate and error.candidate.algorithm}
        else:
            results.append(result)
            us = result.microseconds
            said = "nothing measured" if us is None else f"{result.plan.algorithm}, {us:.1f} us"
            line = _json(result)
        print(f"{number}/{len(wanted)} {problem}: {said}", file=sys.stderr, flush=True)
        if arguments.json:
            _print_line(line)
    measured = sum(result.microseconds is not None for result in results)
    failed = len(errors) + sum(bool(result.trials) and result.microseconds is None for result in results)
    left = len(wanted) - len(results) - len(errors)
    if arguments.json:
        _print_line(_summary(asked, measured, failed) | {"skipped": len(asked) - len(wanted), "left": left})
    else:
        print(_table(results, errors))
        print(f"\nsaved in {file}" if measured else "\nnothing to save")
    if left:
        print(f"{left} of {len(wanted)} problems left: the same command with --missing measures them", file=sys.stderr)
    if lost:
        context.abandon()
    return int(failed > 0)


def _header(gpu: Gpu, asked: list[Problem]) -> dict[str, Any]:
    return {"type": "device", "device": gpu.name, "arch": gpu.arch, "versions": versions(), "problems": len(asked)}


def _summary(asked: list[Problem], measured: int, failed: int) -> dict[str, Any]:
    return {"type": "summary", "problems": len(asked), "measured": measured, "failed": failed}


def _print_line(line: dict[str, Any]) -> None:
    print(json.dumps(line | ({"rehearsal": True} if gpus.rehearsal() else {})), flush=True)


def _dry_run(arguments: argparse.Namespace) -> int:
    gpu = _estimated(arguments)
    asked = problems(arguments.model, arguments.batch, arguments.size, arguments.dtype)
    if arguments.json:
        _print_line(_header(gpu, asked))
        for problem in asked:
            found = [asdict(candidate) for candidate in tuner.candidates(problem, gpu, arguments.top)]
            _print_line({"type": "candidates", "problem": problem_to_json(problem), "candidates": found})
        _print_line(_summary(asked, 0, 0))
        return 0
    print(f"candidates for {gpu.name} ({gpu.arch}); estimates come from the cost model, nothing was measured")
    for problem in asked:
        found = tuner.candidates(problem, gpu, arguments.top)
        rows = [(c.algorithm, words(c.config), c.estimate_us, c.limiter) for c in found]
        print(f"\n{problem}")
        print(tabulate(rows, headers=("algorithm", "config", "estimate us", "limiter"), tablefmt="simple", floatfmt=".1f"))
    return 0


def _estimated(arguments: argparse.Namespace) -> Gpu:
    if arguments.arch is not None:
        return options.gpu_for(arguments.arch)
    gpu = gpus.of(options.torch_device(arguments.device))
    return gpu if gpu.backend in ("cuda", "hip") else gpus.for_arch(DRY_ARCH)


def _table(results: list[tuner.Result], errors: dict[Problem, str]) -> str:
    headers = ("problem", "algorithm", "config", "us", "estimate us", "tried", "rejected")
    rows = [
        (r.problem, r.plan.algorithm, words(r.plan.config), r.microseconds, r.estimate_us, len(r.trials), len(r.rejected))
        for r in results
    ]
    reasons = [f"{t.candidate.algorithm} {words(t.candidate.config)}: {t.rejected}" for r in results for t in r.rejected]
    reasons += [f"{problem}: {error}" for problem, error in errors.items()]
    return "\n".join((tabulate(rows, headers=headers, tablefmt="simple", floatfmt=".1f"), *reasons))


def _version(candidate: tuner.Candidate) -> dict[str, Any]:
    """The kernel form that runs, and its version."""
    algorithm = registry.get(candidate.algorithm)
    return {"form": algorithm.form(candidate.config), "version": algorithm.version(candidate.config)}


def _json(result: tuner.Result) -> dict[str, Any]:
    trials = [
        asdict(t.candidate)
        | _version(t.candidate)
        | {"microseconds": t.microseconds, "spread": t.timing and t.timing.spread, "rejected": t.rejected}
        for t in result.trials
    ]
    return {
        "type": "result", "problem": problem_to_json(result.problem),
        "algorithm": result.plan.algorithm, "config": asdict(result.plan.config),
        "microseconds": result.microseconds, "estimate_us": result.estimate_us, "trials": trials,
    }  # fmt: skip
