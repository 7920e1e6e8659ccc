"""``python -m lk_triton.bench.conv --out FILE.csv``: depthwise layers, correctness first, losses shown like wins."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

import torch

from lk_triton.problem import ConvProblem

from . import report
from .cases import cases, tiny
from .gate import Gate
from .providers import PROVIDERS, Built, Provider
from .timing import Timer, Timing, buffers_for, interleave, timer

COLUMNS = ("kernel_name", "provider", "p50_us", "spread", "tflops", "speedup", "error", "gate", "note")


@torch.inference_mode()
def measure(
    name: str, problem: ConvProblem, device: torch.device, providers: Mapping[str, Provider], rounds: int
) -> list[report.Row]:
    """One row a provider: what it took, or why there is no figure. Wrong results are never timed."""
    gate = Gate(problem, device)
    rows, timers = {}, {}
    for provider_name, provider in providers.items():
        row = rows[provider_name] = describe(name, provider_name, problem) | report.facts(device)
        try:
            built = provider.build(problem, gate.weight, gate.bias)
        except ValueError as error:
            row["note"] = str(error)
            continue
        row["config"] = built.config
        try:
            verdict = gate.check(lambda x, b=built, p=provider: b.run(x.contiguous(memory_format=p.memory_format)))
            row |= {"error": f"{verdict.error:.2e}", "torch_error": f"{verdict.torch_error:.2e}"}
            row["gate"] = "ok" if verdict.ok else "failed"
            if verdict.ok:
                timers[provider_name] = prepared(problem, device, provider, built)
            else:
                row["note"] = f"error above {verdict.allowed:.1e}: not timed"
        except Exception as error:  # one provider's crash must not lose the others' figures
            row |= {"gate": row.get("gate", "failed"), "note": f"{type(error).__name__}: {error}".splitlines()[0]}
    add_figures(problem, device, rows, interleave(timers, rounds))
    return list(rows.values())


def describe(name: str, provider: str, problem: ConvProblem) -> report.Row:
    """The columns that say what was asked of whom."""
    fields = ("n", "c", "h", "w", "kh", "kw", "dtype", "layout")
    return {"kernel_name": name, "provider": provider, **{f: getattr(problem, f) for f in fields}}


def prepared(problem: ConvProblem, device: torch.device, provider: Provider, built: Built) -> Timer:
    """A timer over rotating inputs; random data in each (zeros would run faster)."""
    outputs = problem.n * problem.c * problem.oh * problem.ow
    buffers = buffers_for((problem.n * problem.c * problem.h * problem.w + outputs) * problem.itemsize, device)
    shape, dtype = (problem.n, problem.c, problem.h, problem.w), getattr(torch, problem.dtype)
    inputs = [
        torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=provider.memory_format) for _ in range(buffers)
    ]
    return timer(lambda i: built.run(inputs[i]), buffers, device)


def add_figures(
    problem: ConvProblem, device: torch.device, rows: dict[str, report.Row], timings: Mapping[str, Timing]
) -> None:
    """Times, rates, and the ratio to the fastest of torch's providers."""
    for provider, timing in timings.items():
        rows[provider] |= report.figures(timing)
        rows[provider]["tflops"] = report.short(2 * problem.nominal_macs / timing.best(device) / 1e6)
    torch_times = [t.best(device) for p, t in timings.items() if p.startswith("torch")]
    for provider, timing in timings.items() if torch_times else ():
        rows[provider]["speedup"] = report.short(min(torch_times) / timing.best(device))


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 where a provider failed the gate or nothing was measured."""
    parser = argparse.ArgumentParser(prog="python -m lk_triton.bench.conv", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="CSV file to append to")
    parser.add_argument("--cases", nargs="*", default=["*"], metavar="PATTERN", help="shell patterns; default: all")
    parser.add_argument("--providers", nargs="*", default=["*"], metavar="PATTERN", help="shell patterns; default: all")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="shrink every case to what the interpreter can do")
    options = parser.parse_args(arguments)

    chosen = {n: p for n, p in cases(options.dtype).items() if any(fnmatch(n, pattern) for pattern in options.cases)}
    providers = {n: p for n, p in PROVIDERS.items() if any(fnmatch(n, pattern) for pattern in options.providers)}
    if not chosen or not providers:
        parser.error(f"nothing to measure; cases: {', '.join(cases())}; providers: {', '.join(PROVIDERS)}")
    failed = False
    for name, problem in chosen.items():
        problem = tiny(problem) if options.tiny else problem
        rows = measure(name, problem, torch.device(options.device), providers, options.rounds)
        report.append(options.out, rows)
        print(report.table(rows, COLUMNS), flush=True)
        failed |= any(row.get("gate") == "failed" for row in rows) or not any("p50_us" in row for row in rows)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
