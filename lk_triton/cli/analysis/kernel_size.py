"""``lk-triton study kernel-size``: what each step in kernel size costs, beside the accuracy that was published for it."""

from __future__ import annotations

import argparse
import csv
import json
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from ... import gpu as gpus
from ...gpu import Gpu
from ...models import published_form
from ...models.analysis import kernel_size as study
from ...models.analysis import pictures, published, report
from .. import networks, options, output, timing
from ..options import positive

FILES = ("kernel_size.csv", "kernel_size.png", "report.html")
FIELDS = (
    "kernels", "model", "parameters", "macs", "large_kernel_macs", "published_top1", "published_miou", "estimate_us",
    "estimate_torch_us", "measured_ms", "measured_torch_ms", "spread", "spread_torch",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``run``."""
    parser.description = (
        "Parameters, FLOPs, estimated and measured latency of RepLKNet-31B with kernels from 3x3 to 31x31, with our kernels "
        "and with torch's, beside the published accuracies. Writes kernel_size.csv, kernel_size.png and report.html."
    )
    parser.add_argument("--batch", type=positive, metavar="N", help="images measured at once; default: 64 on a GPU, else 1")
    parser.add_argument("--size", type=positive, default=224, metavar="N", help="height and width; default: %(default)s")
    options.add_dtype(parser)
    options.add_device(parser)
    parser.add_argument("--arch", metavar="A", help="estimate for it, such as sm_80 or h200; default: this GPU, else h100")
    parser.add_argument("--no-measure", action="store_true", help="count and estimate only")
    output.add_out(parser, "kernel-size")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Count, estimate, measure, write, print; returns the exit code."""
    device = options.torch_device(arguments.device)
    dtype = options.torch_dtype(arguments.dtype, device)
    target = estimated(arguments.arch, device)
    batch = arguments.batch or (64 if device.type == "cuda" else 1)
    estimate_batch, estimate_dtype = (batch, str(dtype).removeprefix("torch.")) if device.type == "cuda" else (64, "float16")
    out = output.folder(arguments.out, FILES, arguments.overwrite)
    rows = []
    with output.progress(len(study.VARIANTS), "networks", unit="network") as bar:
        for kernels, name in study.VARIANTS.items():
            cost, accuracy = study.cost(name, arguments.size), study.accuracies()[kernels]
            estimate = study.estimate(name, target, estimate_batch, arguments.size, estimate_dtype)
            measured = (None,) * 4 if arguments.no_measure else measure(name, batch, arguments.size, device, dtype)
            rows.append(dict(zip(FIELDS, (
                kernels, name, cost.parameters, cost.macs, cost.large_macs, float(accuracy["top-1"]), float(accuracy["mIoU"]),
                estimate.ours * 1e6, estimate.torch * 1e6, *measured,
            ), strict=True)))  # fmt: skip
            bar.update()
    how = {
        "estimated": f"{target.name}, batch {estimate_batch}, {estimate_dtype}, {arguments.size}x{arguments.size}",
        "measured": "not measured" if arguments.no_measure else f"{place_name(device)}, batch {batch}, "
        f"{str(dtype).removeprefix('torch.')}, {arguments.size}x{arguments.size}",
        "load average": ", ".join(f"{load:.1f}" for load in timing.load_average() or ()) or "unknown",
    }  # fmt: skip
    page = output.written(lambda: write(rows, how, out))
    print(json.dumps({"rows": rows, **how}, indent=2) if arguments.json else text(rows, how, page))
    return int(page is None)


def estimated(arch: str | None, device: torch.device) -> Gpu:
    """The GPU to estimate for: ``arch``, else this one, else an H100.

    Raises:
        UsageError: ``arch`` is no architecture.
    """
    return gpus.of(device) if arch is None and device.type == "cuda" else options.gpu_for(arch or "h100")


def place_name(device: torch.device) -> str:
    """The device that measured."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device}, {torch.get_num_threads()} threads"


@torch.inference_mode()
def measure(name: str, batch: int, size: int, device: torch.device, dtype: torch.dtype) -> tuple[float, float, float, float]:
    """Milliseconds of the whole network, fused on our kernels and as published on torch's, and the spread of each."""
    model = networks.load(name).eval().to(device)
    x = torch.randn(batch, 3, size, size, device=device, dtype=dtype)
    forms = {
        "fused": deepcopy(model).reparameterize().to(dtype).prepare(x.shape),
        "published": published_form(model.to(dtype)),
    }
    timings = timing.compare({form: partial(network, x) for form, network in forms.items()}, device)
    fused, theirs = timings["fused"], timings["published"]
    return min(fused.rounds) / 1e3, min(theirs.rounds) / 1e3, fused.spread, theirs.spread


def write(rows: list[dict[str, Any]], how: dict[str, str], out: Path) -> Path:
    """kernel_size.csv, kernel_size.png and the report; returns the report's file."""
    with (out / "kernel_size.csv").open("w", newline="") as stream:
        writer: csv.DictWriter[str] = csv.DictWriter(stream, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    light, dark = pictures.two_inks(lambda ink: pictures.kernel_size(rows, ink))
    (out / "kernel_size.png").write_bytes(pictures.on_white(light))
    theirs = published.table("kernel_size")
    counts = [
        (row["kernels"], mega(row["parameters"]), p["parameters, M"], giga(row["macs"]), p["GFLOPs"],
         f"{row['large_kernel_macs'] / row['macs']:.1%}", p["top-1"], p["mIoU"])
        for row, p in zip(rows, theirs.records(), strict=True)
    ]  # fmt: skip
    measured = rows[0]["measured_ms"] is not None
    sections = [
        report.Section(
            "Size, work, accuracy",
            "Counted here without the small branch, which merging removes; published counts and accuracies beside them "
            f"({theirs.source}: top-1 after 120 epochs on ImageNet, mIoU on ADE20K). A FLOP is a multiply-add, as published.",
            table=report.Table(("kernels", "parameters, M", "published", "GFLOPs", "published", "of it large kernels", "top-1",
                                "mIoU"), counts)),
        report.Section(
            "Estimated time of the depthwise layers", f"By the cost model, not measured: {how['estimated']}.",
            [report.Picture(light, "Against kernel size: time relative to 3x3 kernels, and published top-1", dark)],
            report.Table(LATENCY, latencies(rows, "estimate_us", "estimate_torch_us", "us")), wide=True),
        report.Section(
            "Measured time of the whole network", f"Fused on our kernels, as published on torch's: {how['measured']}.",
            table=report.Table((*LATENCY, "spread", "spread, torch"), [
                (*cells, f"{row['spread']:.2f}", f"{row['spread_torch']:.2f}")
                for cells, row in zip(latencies(rows, "measured_ms", "measured_torch_ms", "ms"), rows, strict=True)
            ]) if measured else None),
    ]  # fmt: skip
    page = report.Report(
        "What kernel size costs", "RepLKNet-31B with smaller and larger kernels: what each step costs, with our kernels and "
        "with torch's, beside the accuracies that its authors published.", sections, [], [*how.items(), *output.facts()],
    )  # fmt: skip
    page.write(out / "report.html")
    return out / "report.html"


LATENCY = ("kernels", "ours", "step", "torch", "step", "torch / ours")


def latencies(rows: list[dict[str, Any]], ours: str, theirs: str, unit: str) -> list[tuple[str, ...]]:
    """Two latencies of each row with what each adds to the row before, and their ratio."""
    found = []
    for before, row in zip([None, *rows], rows, strict=False):
        steps = ["" if before is None else f"{row[key] - before[key]:+.1f}" for key in (ours, theirs)]
        found.append((row["kernels"], f"{row[ours]:.1f} {unit}", steps[0], f"{row[theirs]:.1f} {unit}", steps[1],
                      f"{row[theirs] / row[ours]:.1f}"))  # fmt: skip
    return found


def mega(count: int) -> str:
    """A count in millions."""
    return f"{count / 1e6:.1f}"


def giga(count: int) -> str:
    """A count in thousands of millions."""
    return f"{count / 1e9:.1f}"


def text(rows: list[dict[str, Any]], how: dict[str, str], page: Path | None) -> str:
    """The tables for a terminal."""
    counts = [
        (r["kernels"], mega(r["parameters"]), giga(r["macs"]), r["published_top1"], r["published_miou"]) for r in rows
    ]  # fmt: skip
    parts = [
        tabulate(counts, headers=("kernels", "M parameters", "GFLOPs", "published top-1", "published mIoU")),
        f"depthwise layers, estimated, not measured: {how['estimated']}",
        tabulate(latencies(rows, "estimate_us", "estimate_torch_us", "us"), headers=LATENCY, disable_numparse=True),
        f"whole network, measured: {how['measured']}; load average {how['load average']}",
    ]
    if rows[0]["measured_ms"] is not None:
        table = latencies(rows, "measured_ms", "measured_torch_ms", "ms")
        parts.append(tabulate(table, headers=LATENCY, disable_numparse=True))
    return "\n\n".join((*parts, output.last_line(page)))
