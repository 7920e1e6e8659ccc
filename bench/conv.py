"""Depthwise layers: correctness first, then times in turns against every peer; losses are shown like wins."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import torch

from lk_triton import context
from lk_triton import gpu as gpus
from lk_triton.algorithms.cost.roofline import activation_bytes
from lk_triton.ops.layout import conform
from lk_triton.ops.problem import ConvProblem
from lk_triton.planning.accuracy import Gate
from lk_triton.planning.entry import problem_to_json
from lk_triton.planning.timing import Pool, Timer, Timing, buffers_for, interleave, timer

from . import report, usage
from .cases import cases, select, tiny
from .floor import compulsory_bytes, floor
from .providers import OURS, PROVIDERS, Built, Provider, Unavailable

COLUMNS = (
    "provider", "p20_us", "p50_us", "p80_us", "spread", "gb_per_s", "nominal_tflops", "useful_tflops", "floor_ratio",
    "speedup", "error", "gate", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Defaults:
    """What is measured unless the command line says otherwise; no batches means each case's own."""

    cases: tuple[str, ...]
    batches: tuple[int, ...]
    providers: tuple[str, ...]
    dtype: str
    rounds: int


GPU = Defaults(("*",), (), ("*",), "float16", 20)
CPU = Defaults(
    cases=("31b-224-*", "slak-51x5-*", "slak-5x51-*", "convnext-*"),
    batches=(1,),
    providers=("torch", "torch_channels_last", "torch_compile", "lk_triton_auto*", "lk_triton_torch"),
    dtype="float32",
    rounds=7,
)
"""What a CPU does in a minute or so; the Triton algorithms need a GPU."""


@torch.inference_mode()
def measure(
    name: str, problem: ConvProblem, device: torch.device, providers: Mapping[str, Provider], rounds: int
) -> list[report.Row]:
    """One row a provider: what it took, or why there is no figure. Wrong results are never timed.

    Where a provider ends the GPU's context, those that were not tried or not timed yet have no row.
    """
    gate, pool = cache(lambda: Gate(problem, device)), Pool()
    rows, timers = {}, {}
    for provider_name, provider in providers.items():
        posed = replace(problem, layout=provider.layout or problem.layout)
        row = rows[provider_name] = describe(name, provider_name, posed, device) | report.facts(device)
        try:
            built = provider.build(posed, gate().operands["weight"], gate().operands.get("bias"))
            row["config"] = built.config
            order = provider.layout or problem.layout
            verdict = gate().check(lambda given, b=built, o=order: b.run(conform(given["x"], o), b.bank))
            row |= {"error": f"{verdict.error:.2e}", "torch_error": f"{verdict.torch_error:.2e}"}
            row["gate"] = verdict.gate
            if verdict.ok:
                timers[provider_name] = prepared(problem, device, provider, built, pool)
            else:
                row["note"] = f"error above {verdict.allowed:.1e}: not timed"
        except Unavailable as reason:
            row["note"] = str(reason)
        except Exception as error:  # one provider's crash must not lose the others' figures
            row |= {"gate": row.get("gate", "failed"), "note": first_line(error)}
            if context.lost(device) is not None:
                return [row for provider_name, row in rows.items() if provider_name not in timers]
    try:
        add_figures(problem, device, rows, interleave(timers, rounds))
    except Exception as error:  # whose call it was is not known
        for provider_name in timers:
            rows[provider_name] |= {"gate": "failed", "note": f"while all were timed: {first_line(error)}"}
    return list(rows.values())


def first_line(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def describe(name: str, provider: str, problem: ConvProblem, device: torch.device) -> report.Row:
    """The columns that say what was asked of whom, and what it takes at least where the device's facts are known."""
    fields = ("n", "c", "h", "w", "kh", "kw", "dtype", "layout")
    row: report.Row = {"kernel_name": name, "provider": provider, **{f: getattr(problem, f) for f in fields}}
    row["problem"] = json.dumps(problem_to_json(problem))
    if device.type == "cuda":
        least = floor(problem, gpus.of(device))
        row |= {"floor_us": report.short(least.us), "floor_limiter": least.limiter}
    return row


def prepared(problem: ConvProblem, device: torch.device, provider: Provider, built: Built, pool: Pool) -> Timer:
    """A timer over rotating images, outputs and banks: in a network other layers flush L2 between two calls of this one.

    The images are random (zeros would run faster).
    """
    buffers = buffers_for(activation_bytes(problem) + built.bank.nbytes, device)
    shape, dtype = (problem.n, problem.c, problem.h, problem.w), getattr(torch, problem.dtype)
    layout = provider.layout or problem.layout
    images = [conform(torch.randn(shape, device=device, dtype=dtype), layout) for _ in range(buffers)]
    banks = [built.bank, *(built.bank.clone() for _ in range(buffers - 1))]
    return timer(lambda i: built.run(images[i], banks[i]), buffers, device, pool)


def add_figures(
    problem: ConvProblem, device: torch.device, rows: dict[str, report.Row], timings: Mapping[str, Timing]
) -> None:
    """Times, rates, and the ratios to the floor and to the fastest peer."""
    best = {provider: timing.best(device) for provider, timing in timings.items()}
    peer = min((p for p in best if not p.startswith(OURS)), key=lambda p: best[p], default=None)
    for provider, timing in timings.items():
        row, us = rows[provider], best[provider]
        row |= report.figures(timing)
        row["gb_per_s"] = report.short(compulsory_bytes(problem) / us / 1e3)
        row["nominal_tflops"] = report.short(2 * problem.nominal_macs / us / 1e6)
        row["useful_tflops"] = report.short(2 * problem.useful_macs / us / 1e6)
        if "floor_us" in row:
            row["floor_ratio"] = report.short(us / float(str(row["floor_us"])))
        if peer is not None:
            row |= {"peer": peer, "speedup": report.short(best[peer] / us)}


def title(name: str, problem: ConvProblem, rows: Sequence[report.Row]) -> str:
    """A table's heading: the case, and its floor."""
    text = f"\n{name}: {problem}"
    if rows and "floor_us" in rows[0]:
        text += f"; floor {rows[0]['floor_us']:.4g} us ({rows[0]['floor_limiter']})"
    return text


def summary(rows: Iterable[report.Row]) -> str:
    """One line a case: this library's own choice, in the better layout, against the fastest peer; and how often it won."""
    best: dict[object, report.Row] = {}
    for row in rows:
        if str(row["provider"]).startswith(OURS + "auto") and "speedup" in row:
            best[row["kernel_name"]] = max(best.get(row["kernel_name"], row), row, key=lambda r: float(str(r["speedup"])))
    if not best:
        return ""
    won = sum(float(str(row["speedup"])) >= 1 for row in best.values())
    columns = ("kernel_name", "provider", "p50_us", "floor_ratio", "peer", "speedup")
    return f"\nagainst the fastest peer: faster in {won} of {len(best)}\n{report.table(list(best.values()), columns)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    parser.description = __doc__
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="append the rows to this file")
    parser.add_argument("--list", action="store_true", help="list the cases that would be measured, and stop")
    parser.add_argument("--cases", nargs="+", metavar="PATTERN", help="shell patterns, measured in their order; see --list")
    parser.add_argument("--providers", nargs="+", metavar="PATTERN", help=f"shell patterns; there are {', '.join(PROVIDERS)}")
    parser.add_argument("--batch", nargs="+", type=usage.positive, metavar="N", help="instead of each case's own batches")
    usage.add_dtype(parser)
    usage.add_device(parser)
    parser.add_argument("--rounds", type=usage.positive, metavar="N", help="of each provider, at least 5; default: 20, CPU 7")
    parser.add_argument("--missing", action="store_true", help="leave out what has a row of this device and commit in --out")
    parser.add_argument("--tiny", action="store_true", help="shrink the GPU's cases to what Triton's interpreter can do")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Exit code 1 where a provider failed the gate or a case has no figure at all, 75 where one ended the
    GPU's context."""
    device = usage.torch_device(options.device)
    defaults = GPU if device.type == "cuda" or options.tiny else CPU
    named = cases(options.dtype or defaults.dtype, options.batch or defaults.batches)
    chosen = select(named, options.cases or defaults.cases)
    patterns = options.providers or defaults.providers
    providers = {n: p for n, p in PROVIDERS.items() if any(fnmatchcase(n, pattern) for pattern in patterns)}
    if not chosen or not providers:
        raise usage.UsageError(f"nothing to measure; cases: {', '.join(named)}; providers: {', '.join(PROVIDERS)}")
    if options.list:
        print("\n".join(f"{name:28}{problem}" for name, problem in chosen.items()))
        return 0
    report.start(options.out, options.missing)
    failed, measured = False, []
    for name, problem in chosen.items():
        problem = tiny(problem) if options.tiny else problem
        asked = providers
        if options.missing:
            done = report.done(options.out, describe(name, "", problem, device) | report.facts(device))
            asked = {n: p for n, p in providers.items() if (name, n) not in done}
            if not asked:
                continue
        rows = measure(name, problem, device, asked, options.rounds or defaults.rounds)
        failed |= not report.kept(options.out, rows)
        print(f"{title(name, problem, rows)}\n{report.table(rows, COLUMNS)}", flush=True)
        failed |= any(row.get("gate") == "failed" for row in rows) or not any("p50_us" in row for row in rows)
        measured += rows
        usage.leave_if_lost(device)
    print(summary(measured))
    return int(failed)


main = usage.as_program("conv", add_arguments, run)

if __name__ == "__main__":
    raise SystemExit(main())
