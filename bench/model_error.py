"""How far the cost model is from the clock: measured over estimated time of the very configs that ran, by algorithm."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import log
from pathlib import Path
from statistics import median
from typing import Any

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.gpu import Gpu
from lk_triton.planning.entry import config_from_json, problem_from_json

from . import report, usage
from .providers import OURS

Row = Mapping[str, str]
CASE_COLUMNS = ("device", "kernel_name", "dtype", "algorithm", "measured_us", "estimate_us", "ratio", "limiter")
ALGORITHM_COLUMNS = ("device", "algorithm", "configs", "median_ratio", "worst_ratio", "worst_case")

ANOTHER_VERSION = "written by another version"


@dataclass(frozen=True)
class Comparison:
    """A config that was measured: the median in microseconds, and what the cost model of this version says of it."""

    device: str
    kernel_name: str
    dtype: str
    algorithm: str
    config: dict[str, Any]
    measured_us: float
    estimate_us: float
    limiter: str
    ratio: float


def compare(row: Row) -> Comparison:
    """The estimate for what a row of ``bench conv`` ran.

    Raises:
        ValueError: it cannot be compared; the text says why.
    """
    gpu = _facts(row["device"])
    try:
        problem, trial, sms = json.loads(row["problem"]), json.loads(row["config"]), int(row["sms"])
        trial["microseconds"] = float(row["p50_us"])
    except (TypeError, ValueError):
        raise ValueError(ANOTHER_VERSION) from None
    if sms != gpu.sms:
        raise ValueError(f"{sms} SMs, but the facts are of {gpu.name} with {gpu.sms}")
    return replace(compare_trial(row["device"], problem, trial), kernel_name=row["kernel_name"])


def compare_all(rows: Sequence[Row]) -> tuple[list[Comparison], dict[str, int]]:
    """Each config once, though ``auto`` may have run what a forced algorithm ran; and how many rows were left out, and why."""
    found: dict[tuple[str, ...], Comparison] = {}
    skipped: Counter[str] = Counter()
    for row in report.latest(rows):
        if row["provider"].startswith(OURS):
            try:
                c = compare(row)
                found[c.device, row["problem"], c.algorithm, str(c.config)] = c
            except ValueError as reason:
                skipped[str(reason)] += 1
    return list(found.values()), dict(skipped)


def compare_tuned(lines: Sequence[str]) -> tuple[list[Comparison], dict[str, int]]:
    """The same for every trial of the lines that ``lk-triton tune --json`` prints."""
    found: list[Comparison] = []
    skipped: Counter[str] = Counter()
    name = ""
    for line in map(json.loads, filter(str.strip, lines)):
        name = line["device"] if line["type"] == "device" else name
        for trial in line.get("trials", ()):
            if trial["microseconds"] is None:
                skipped["rejected"] += 1
                continue
            try:
                found.append(compare_trial(name, line["problem"], trial))
            except ValueError as reason:
                skipped[str(reason)] += 1
    return found, dict(skipped)


def compare_trial(device_name: str, problem_data: Any, trial: Mapping[str, Any]) -> Comparison:
    """The estimate of this version for what a trial of the tuner ran.

    Raises:
        ValueError: it cannot be compared; the text says why.
    """
    gpu = _facts(device_name)
    try:
        problem, algorithm = problem_from_json(problem_data), registry.get(trial["algorithm"])
        config = config_from_json(algorithm.config_type, trial["config"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(ANOTHER_VERSION) from None
    seconds, limiter = algorithm.estimate(problem, config, gpu)
    return Comparison(
        device_name, str(problem), problem.dtype, algorithm.name, trial["config"],
        trial["microseconds"], report.short(seconds * 1e6), limiter, report.short(trial["microseconds"] / seconds / 1e6),
    )  # fmt: skip


def _facts(device_name: str) -> Gpu:
    gpu = gpus.named(device_name)
    if gpu is None:
        raise ValueError(f"no device facts of {device_name}")
    return gpu


def by_algorithm(comparisons: Sequence[Comparison]) -> list[report.Row]:
    """Median and worst ratio of each device and algorithm; the worst is farthest from 1, as a factor."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault((comparison.device, comparison.algorithm), []).append(comparison)
    rows: list[report.Row] = []
    for (device, algorithm), group in groups.items():
        worst = max(group, key=lambda c: abs(log(c.ratio)))
        middle = report.short(median(c.ratio for c in group))
        values = (device, algorithm, len(group), middle, worst.ratio, worst.kernel_name)
        rows.append(dict(zip(ALGORITHM_COLUMNS, values, strict=True)))
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    parser.description = __doc__
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="what bench conv (.csv) or tune --json (.jsonl) wrote"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Compare and print."""
    tuned = [file for file in options.files if file.suffix == ".jsonl"]
    comparisons, skipped = compare_all(report.read([file for file in options.files if file not in tuned]))
    for file in tuned:
        try:
            found, left_out = compare_tuned(file.read_text(encoding="utf-8").splitlines())
        except OSError as error:
            raise usage.UsageError(f"{file}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise usage.UsageError(f"{file} is not what lk-triton tune --json prints") from None
        comparisons, skipped = comparisons + found, dict(Counter(skipped) + Counter(left_out))
    if not comparisons:
        reasons = "; ".join(skipped) or f"no measured row of a provider {OURS}*"
        raise usage.UsageError(f"nothing to compare: {reasons}")
    cases, algorithms = [asdict(c) for c in comparisons], by_algorithm(comparisons)
    if options.json:
        print(json.dumps({"cases": cases, "algorithms": algorithms, "skipped": skipped}))
        return 0
    print("ratio: measured over estimated time; above 1 the GPU was slower than the cost model says\n")
    print(report.table(cases, CASE_COLUMNS))
    print(f"\n{report.table(algorithms, ALGORITHM_COLUMNS)}")
    for reason, count in skipped.items():
        print(f"left out: {count} rows: {reason}")
    return 0


main = usage.as_program("model_error", add_arguments, run)

if __name__ == "__main__":
    raise SystemExit(main())
