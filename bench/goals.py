"""docs/tuning.md's tables of estimates: the speed to reach beside what the cost model says; nobody types a figure.

Goals are wishes, written before there was a cost model, and no constant of it follows them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from lk_triton import device as devices
from lk_triton.algorithms import registry, resident
from lk_triton.device import Device
from lk_triton.problem import ConvProblem

from . import usage
from .cases import CONVNEXT, STAGES, TABLE1_KERNELS, TABLE1_MAPS, cases, layer
from .floor import compulsory_bytes
from .pages import markers, rewrite

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = markers("goals")

MICROSECONDS = {
    "31b-224-stage1-n64": 180,
    "31b-224-stage2-n64": 55,
    "31b-224-stage3-n64": 12,
    "31b-224-stage4-n64": 7,
    "wide-stage1-n1": 140,
}
"""Goals for an H100, float16, forward, epilogue fused."""

TIMES_THE_FLOOR = {3: 1.3, 5: 1.3, 7: 1.6}
"""Goals for small kernels, by kernel size: time over what DRAM needs for input and output."""

USEFUL_SHARE = {31: 0.33, 29: 0.38, 27: 0.40, 13: 0.29}
"""Least share of the issued multiply-adds that is wanted, by kernel size; taps that meet a pixel counted."""

BATCHES = (1, 8, 64)


class Best(NamedTuple):
    """What the cost model says of an algorithm's best config."""

    us: float
    limiter: str
    share: float


def best(problem: ConvProblem, device: Device, algorithm: str) -> Best:
    """The lowest estimate, which decides where nothing is measured, and the useful share of its config."""
    chosen = registry.get(algorithm)
    config = min(chosen.configs(problem, device), key=lambda c: chosen.estimate(problem, c, device).seconds)
    seconds, limiter = chosen.estimate(problem, config, device)
    return Best(seconds * 1e6, limiter, problem.useful_macs / chosen.issued_macs(problem, config))


def fastest(problem: ConvProblem, device: Device) -> tuple[str, Best]:
    """The algorithm with the lowest estimate, and that; ``resident`` counts whether the Triton here can compile it or not."""
    names = ["toeplitz", "direct"]
    if resident.refusal(problem, device) is None and registry.get("resident").configs(problem, device):
        names.insert(1, "resident")
    found = {name: best(problem, device, name) for name in names}
    name = min(found, key=lambda n: found[n].us)
    return name, found[name]


def floor_us(problem: ConvProblem, device: Device) -> float:
    """What DRAM needs for input, output and weight."""
    return compulsory_bytes(problem) / (device.dram_gbps * 1e3)


def wanted(device: Device) -> Iterable[tuple[str, ConvProblem, float]]:
    """(case, problem, microseconds to reach), the small kernels' from their floors; on dense planes, without conversions."""
    named = {name: replace(problem, layout="nchw") for name, problem in cases().items()}
    for name, goal in MICROSECONDS.items():
        yield name, named[name], goal
    small = [f"convnext-stage{stage}-n64" for stage in range(1, len(CONVNEXT) + 1)]
    small += [f"table1-r{size}-k{k}-n64" for size in TABLE1_MAPS for k in TIMES_THE_FLOOR]
    for name in small:
        yield name, named[name], TIMES_THE_FLOOR[named[name].kw] * floor_us(named[name], device)


def goals_table(device: Device) -> str:
    """Goal and estimate; what limits those that miss."""
    rows = []
    for name, problem, goal in wanted(device):
        algorithm, found = fastest(problem, device)
        times = f"{found.us / floor_us(problem, device):.2f}"
        verdict = "met" if found.us <= goal else f"missed by {found.us / goal - 1:.0%}: {found.limiter}"
        rows.append((f"`{name}`", f"{goal:.4g}", f"{found.us:.4g}", times, algorithm, f"{found.share:.0%}", verdict))
    heads = ("case", "goal, us", "estimate, us", "times the DRAM floor", "algorithm", "useful share", "verdict")
    return tabulate(rows, heads, "github", disable_numparse=True)


def grid_table(device: Device) -> str:
    """The paper's Table 1: a row a kernel size, a column a map size; estimate, times the DRAM floor, limiter."""
    named = cases()
    rows = []
    for k in TABLE1_KERNELS:
        cells = []
        for size in TABLE1_MAPS:
            problem = named[f"table1-r{size}-k{k}-n64"]
            _, found = fastest(problem, device)
            cells.append(f"{found.us:.4g} us, {found.us / floor_us(problem, device):.2f} x, {found.limiter}")
        rows.append((f"{k}x{k}", *cells))
    return tabulate(rows, ("kernel", *(f"{size}x{size}" for size in TABLE1_MAPS)), "github", disable_numparse=True)


def batches_table(named: Sequence[Device]) -> str:
    """31B's layers at every batch on each device: both algorithms."""
    rows = []
    for device in named:
        for (c, size, k), n in ((stage, n) for stage in STAGES for n in BATCHES):
            toeplitz, direct = (best(layer(n, c, size, size, k), device, name) for name in ("toeplitz", "direct"))
            share = f"{toeplitz.share:.0%}" + ("" if toeplitz.share >= USEFUL_SHARE[k] else f", below {USEFUL_SHARE[k]:.0%}")
            rows.append((device.name, f"{n}x{c}x{size}x{size}, {k}x{k}", f"{toeplitz.us:.4g}", toeplitz.limiter, share,
                         f"{direct.us:.4g}", direct.limiter))  # fmt: skip
    heads = ("device", "layer", "`toeplitz`, us", "limiter", "useful share", "`direct`, us", "limiter")
    return tabulate(rows, heads, "github", disable_numparse=True)


def block() -> str:
    """What stands between the markers."""
    h100, a100 = devices.for_arch("h100"), devices.for_arch("a100")
    return "\n\n".join((
        "Goals and estimates, H100, float16:", goals_table(h100),
        "The grid of the paper's Table 1 (64 images, 384 channels), H100, float16; estimate, times the DRAM floor, limiter:",
        grid_table(h100),
        "RepLKNet-31B's layers at small and large batch, float16; beside a useful share below the goal stands that goal:",
        batches_table((h100, a100)),
    ))  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    parser.description = __doc__
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where it is out of date")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "tuning.md", metavar="FILE", help="default: %(default)s")


def run(options: argparse.Namespace) -> int:
    """Write or check."""
    if not options.page.exists():
        raise usage.UsageError(f"no {options.page}: run it in a source tree, or pass --page")
    if not options.check:
        usage.check_out(options.page, [".md"])
    text = options.page.read_text()
    new = rewrite(text, "goals", block())
    if options.check:
        if text != new:
            print(f"{options.page} is out of date: lk-triton bench goals")
        return int(text != new)
    options.page.write_text(new)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lk_triton.bench.goals``."""
    return usage.main("goals", add_arguments, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
