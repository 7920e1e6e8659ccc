"""``lk-triton tune``: measure the depthwise layers of a network, or list what would be measured."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import torch
from tabulate import tabulate

from .. import device as devices
from ..functional import tune as tune_problems
from ..models import create_model
from ..problem import ConvProblem
from ..recorder import problems_of
from ..tuning import cache, tuner
from ..tuning.entry import problem_to_json
from . import CommandError, versions, words

DRY_ARCH = "sm_90"
"""What a dry run estimates for where there is no GPU and no architecture is named."""


def tune(arguments: argparse.Namespace) -> int:
    """Measure or list; returns the exit code."""
    if arguments.arch is not None and not arguments.dry_run:
        raise CommandError("--arch is for --dry-run: measuring takes the GPU itself (--device)")
    if arguments.arch is not None and arguments.device is not None:
        raise CommandError("--arch and --device both name what to estimate for: pass one of them")
    return _dry_run(arguments) if arguments.dry_run else _measure(arguments)


def problems(model: str, batches: list[int], sizes: list[int], dtypes: list[str]) -> list[ConvProblem]:
    """The distinct depthwise problems of the fused network; it runs on the meta device, where nothing is computed.

    Raises:
        CommandError: there is no such model.
    """
    try:
        network = create_model(model, device="meta").eval().reparameterize()
    except ValueError as error:
        raise CommandError(str(error)) from None
    found = [
        replace(problem, dtype=dtype)
        for dtype, size, batch in product(dtypes, sizes, batches)
        for problem in problems_of(network, (batch, 3, size, size))
    ]
    return list(dict.fromkeys(found))


def _measure(arguments: argparse.Namespace) -> int:
    place = _place(arguments.device)
    reason = tuner.why_not(place)
    if reason is not None:
        raise CommandError(f"{reason}; --dry-run lists the candidates without one")

    def progress(done: int, total: int, result: tuner.Result) -> None:
        us = "nothing measured" if result.microseconds is None else f"{result.plan.algorithm}, {result.microseconds:.1f} us"
        print(f"{done}/{total} {result.problem}: {us}", file=sys.stderr, flush=True)

    asked = problems(arguments.model, arguments.batch, arguments.size, arguments.dtype)
    results = tune_problems(asked, device=place, top_k=arguments.top, progress=progress)
    device = devices.of(place)
    file = cache.directory() / cache.file_name(device.name)
    if arguments.json:
        report = {"device": device.name, "file": str(file), "versions": versions(), "results": [_json(r) for r in results]}
        print(json.dumps(report))
    else:
        print(_table(results))
        print(f"\nsaved in {file}")
    return int(any(result.trials and result.microseconds is None for result in results))


def _place(name: str | None) -> torch.device:
    try:
        place = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise CommandError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise CommandError(f"device {str(place)!r} cannot be used: this machine has {torch.cuda.device_count()} GPUs")
    return place


def _dry_run(arguments: argparse.Namespace) -> int:
    device = _estimated_device(arguments)
    listed = [
        (problem, tuner.candidates(problem, device, arguments.top))
        for problem in problems(arguments.model, arguments.batch, arguments.size, arguments.dtype)
    ]
    if arguments.json:
        found = [{"problem": problem_to_json(p), "candidates": [asdict(c) for c in candidates]} for p, candidates in listed]
        print(json.dumps({"device": device.name, "arch": device.arch, "versions": versions(), "problems": found}))
        return 0
    print(f"candidates for {device.name} ({device.arch}); estimates come from the cost model, nothing was measured")
    for problem, candidates in listed:
        rows = [(c.algorithm, words(c.config), c.estimate_us, c.limiter) for c in candidates]
        print(f"\n{problem}")
        print(tabulate(rows, headers=("algorithm", "config", "estimate us", "limiter"), tablefmt="simple", floatfmt=".1f"))
    return 0


def _estimated_device(arguments: argparse.Namespace) -> devices.Device:
    if arguments.arch is None:
        device = devices.of(_place(arguments.device))
        return device if device.backend in ("cuda", "hip") else devices.for_arch(DRY_ARCH)
    try:
        return devices.for_arch(arguments.arch)
    except ValueError as error:
        raise CommandError(str(error)) from None


def _table(results: list[tuner.Result]) -> str:
    headers = ("problem", "algorithm", "config", "us", "estimate us", "tried", "rejected")
    rows = [
        (r.problem, r.plan.algorithm, words(r.plan.config), r.microseconds, r.estimate_us, len(r.trials), len(r.rejected))
        for r in results
    ]
    reasons = [f"{t.candidate.algorithm} {words(t.candidate.config)}: {t.rejected}" for r in results for t in r.rejected]
    return "\n".join((tabulate(rows, headers=headers, tablefmt="simple", floatfmt=".1f"), *reasons))


def _json(result: tuner.Result) -> dict[str, Any]:
    trials = [
        {**asdict(t.candidate), "microseconds": t.microseconds, "spread": t.timing and t.timing.spread, "rejected": t.rejected}
        for t in result.trials
    ]
    return {
        "problem": problem_to_json(result.problem), "algorithm": result.plan.algorithm, "config": asdict(result.plan.config),
        "microseconds": result.microseconds, "estimate_us": result.estimate_us, "trials": trials,
    }  # fmt: skip
