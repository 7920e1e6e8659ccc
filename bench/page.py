"""What CSV files of ``bench conv`` and ``bench network`` hold, as one HTML page: a roofline and every figure, losses too."""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from lk_triton.models.analysis.report import Picture, Report, Section, Table

from . import plot, report, usage

LAYERS = {
    "kernel_name": "case", "provider": "provider", "p50_us": "us", "spread": "spread", "useful_tflops": "useful TFLOP/s",
    "floor_ratio": "time / floor", "speedup": "speed-up", "peer": "peer",
}  # fmt: skip
NETWORKS = {
    "kernel_name": "network", "provider": "form", "n": "batch", "p50_us": "us", "spread": "spread", "images_per_s": "images/s",
    "speedup": "speed-up", "latency_p99_us": "latency p99, us", "activation_mb": "activations, MB",
    "depthwise_share": "depthwise share",
}  # fmt: skip
"""Columns of the CSV, and what the page calls them."""

Row = Mapping[str, str]


def page(rows: Sequence[Row]) -> Report:
    """The page of some rows: a section for each device and dtype, and a note for what is wrong or did not run.

    Raises:
        UsageError: no row has a figure, or a package is missing.
    """
    measured = [row for row in rows if row["p50_us"]]
    if not measured:
        raise usage.UsageError("nothing to show: no row has a figure")
    sections = []
    for device, dtype in dict.fromkeys((row["device"], row["dtype"]) for row in measured):
        mine = [row for row in measured if (row["device"], row["dtype"]) == (device, dtype)]
        layers, networks = report.latest(mine), _latest([row for row in mine if row["images_per_s"]])
        if layers:
            stream = io.BytesIO()
            plot.roofline(layers).savefig(stream, format="png")
            caption = "Useful FLOP per byte that must move against useful TFLOP/s, under the roofs of the device if known"
            sections.append(Section(
                f"Layers on {device}, {dtype}", "Floor: the least time that DRAM and MMA allow. Speed-up: over the fastest "
                "peer; below 1 it is a loss.", [Picture(stream.getvalue(), caption)], _table(layers, LAYERS), wide=True,
            ))  # fmt: skip
        if networks:
            text = "Speed-up: over the published form. Shares: of the kernels' time."
            sections.append(Section(f"Networks on {device}, {dtype}", text, table=_table(networks, NETWORKS)))
    notes = [f"{row['kernel_name']}, {row['provider']}: {row['note']}" for row in _latest(rows) if row["gate"] == "failed"]
    facts = {key: ", ".join(sorted({row[key] for row in measured if row[key]})) for key in
             ("device", "torch_version", "triton_version", "lk_triton_version", "commit")}  # fmt: skip
    return Report(
        "Large-kernel depthwise convolution, measured",
        "Medians over rounds in which all take turns; what is wrong is not timed.", sections, notes, list(facts.items()),
    )  # fmt: skip


def _latest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each provider for each case, batch, dtype and device."""
    return list({tuple(row[k] for k in ("device", "dtype", "kernel_name", "n", "provider")): row for row in rows}.values())


def _table(rows: Sequence[Row], columns: Mapping[str, str]) -> Table:
    return Table(list(columns.values()), [[_cell(row[column]) for column in columns] for row in rows], words=2)


def _cell(text: str) -> str:
    return report.cell(float(text)) if "." in text and text.replace(".", "").isdigit() else text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    parser.description = __doc__
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.csv", help="what bench conv and bench network wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="the page")


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    if find_spec("jinja2") is None:
        raise usage.missing_extra("jinja2", "analysis")
    usage.check_out(options.out, [".html", ".htm"])
    made = page(report.read(options.files))
    try:
        made.write(options.out)
    except OSError as error:
        raise usage.UsageError(f"{error.filename}: {error.strerror}") from None
    print(options.out)
    return 0
