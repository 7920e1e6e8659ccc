"""``lk-triton kernels``: where the weight of a network's large kernels lies, before and after merging."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from ...models.analysis import kernel_maps as study
from ...models.analysis import pictures, report
from ...models.analysis.kernel_maps import Stage
from .. import output
from ..options import UsageError
from . import backbones

FIELDS = (
    "stage", "kernel", "channels", "layers", "centre_mass_before", "centre_mass_after", "centre_mass_flat",
    "effective_size_before", "effective_size_after",
)  # fmt: skip
FILES = ("kernels.csv", "maps.npz", "kernels.png", "report.html")
SIZE = 224
"""Of the images that a network of a fixed input size is built for; kernels have nothing to do with it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``run``."""
    parser.description = (
        "Mean |w| per tap of each stage's depthwise kernels, before and after the branches are merged: pictures, the share of "
        "the central 3x3, the effective size. Writes kernels.csv, maps.npz, kernels.png and report.html."
    )
    backbones.add_arguments(parser, count=1)
    output.add_out(parser, "kernels")
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def run(arguments: argparse.Namespace) -> int:
    """Look, write, print; returns the exit code."""
    (source,) = backbones.sources(arguments.models, arguments.checkpoint, arguments.pretrained)
    out = output.folder(arguments.out, FILES, arguments.overwrite)
    backbone = source.build(SIZE, torch.device("cpu"))
    untrained = backbone.weights == backbones.RANDOM
    try:
        stages = study.stages(backbone.module)
    except ValueError as error:
        raise UsageError(f"{source.name}: {error}") from None
    found = [facts(number, stage) for number, stage in enumerate(stages, 1)]
    page = output.written(lambda: write(source.name, backbone.weights, stages, found, untrained, out))
    print(json.dumps(found, indent=2) if arguments.json else text(source.name, backbone.weights, found, page))
    return int(page is None)


def facts(number: int, stage: Stage) -> dict[str, Any]:
    """The documented schema (docs/analysis.md): one row of the CSV, one object of the JSON list."""
    kh, kw = stage.after.shape
    both = (stage.before, stage.after)
    masses = [None if values is None else study.centre_mass(values) for values in both]
    sizes = [None if values is None else study.effective_size(values) for values in both]
    row = (number, f"{kh}x{kw}", stage.channels, len(stage.names), *masses, min(kh, 3) * min(kw, 3) / (kh * kw), *sizes)
    return dict(zip(FIELDS, row, strict=True))


def write_raw(found: list[dict[str, Any]], stages: list[Stage], out: Path) -> None:
    """kernels.csv, and maps.npz with an array a stage: ``stage1_before``, ``stage1_after``, ..."""
    with (out / "kernels.csv").open("w", newline="") as stream:
        writer: csv.DictWriter[str] = csv.DictWriter(stream, FIELDS)
        writer.writeheader()
        writer.writerows(found)
    maps = {f"stage{i}_after": stage.after for i, stage in enumerate(stages, 1)}
    maps |= {f"stage{i}_before": stage.before for i, stage in enumerate(stages, 1) if stage.before is not None}
    np.savez(out / "maps.npz", allow_pickle=False, **maps)


HEADERS = ("stage", "kernel", "channels", "layers", "central 3x3, before", "after", "of a flat kernel",
           "effective size, before", "after")  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text."""
    return [
        "" if value is None else f"{value:.1%}" if field.startswith("centre") else str(value) for field, value in row.items()
    ]


def write(
    name: str, weights: str, stages: list[Stage], found: list[dict[str, Any]], untrained: bool, out: Path
) -> Path:  # fmt: skip
    """The raw figures, kernels.png and the report; returns the report's file."""
    write_raw(found, stages, out)
    light, dark = pictures.two_inks(lambda ink: pictures.kernel_maps(stages, ink))
    (out / "kernels.png").write_bytes(pictures.on_white(light))
    caption = "Mean |w| of each tap over the layers and channels of a stage, BatchNorms folded in; each stage in its own range"
    layers = [(str(number), stage.title, stage.names[0], stage.names[-1]) for number, stage in enumerate(stages, 1)]
    page = report.Report(
        f"Kernels of {name}",
        "Where the weight of the depthwise kernels lies: in the large branch alone, before merging, and in the kernel that "
        "it becomes together with the small branch. Effective size: the side of the smallest centred square with 90 % of it.",
        [
            report.Section("Stages", pictures=[report.Picture(light, caption, dark)],
                           table=report.Table(HEADERS, [cells(row) for row in found]), wide=True),
            report.Section("Layers", table=report.Table(("stage", "shape", "first module", "last module"), layers, words=4)),
        ],
        [backbones.random_warning(name)] if untrained else [], [("weights", weights), *output.facts()],
    )  # fmt: skip
    page.write(out / "report.html")
    return out / "report.html"


def text(name: str, weights: str, found: list[dict[str, Any]], page: Path | None) -> str:
    """The table for a terminal."""
    table = tabulate([cells(row) for row in found], headers=HEADERS, tablefmt="simple", disable_numparse=True)
    return f"{name}, weights: {weights}\n\n{table}\n\n{output.last_line(page)}"
