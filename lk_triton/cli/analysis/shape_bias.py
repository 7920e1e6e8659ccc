"""``lk-triton shape-bias``: do networks decide by shape or by texture, on cue-conflict images."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from ...models.analysis import pictures, report
from ...models.analysis import shape_bias as study
from ...models.analysis.shape_bias import Tally, Trial
from .. import images, options, output
from ..options import UsageError, positive
from . import backbones
from .backbones import Source

FILES = ("decisions.csv", "shape_bias.png", "report.html")


@dataclass
class Result:
    """The decisions of one network."""

    name: str
    weights: str
    trials: list[Trial]

    @property
    def overall(self) -> Tally:
        return study.tally(self.trials)

    @property
    def classes(self) -> dict[str, Tally]:
        return study.by_class(self.trials)


@dataclass(frozen=True)
class Stimulus:
    """A file with its cues."""

    path: Path
    shape: str
    texture: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``run``."""
    parser.description = (
        "Of the decisions on images with the shape of one class and the texture of another, the share that goes by shape. "
        "Writes the plot, the decisions as CSV, and report.html."
    )
    backbones.add_arguments(parser)
    parser.add_argument("--stimuli", required=True, metavar="DIR", help="images named such as cat7-elephant1.png")
    parser.add_argument("--size", type=positive, default=224, metavar="N", help="height and width; default: %(default)s")
    parser.add_argument("--batch", type=positive, default=16, metavar="N", help="images a batch; default: %(default)s")
    output.add_out(parser, "shape-bias")
    options.add_device(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def run(arguments: argparse.Namespace) -> int:
    """Decide, count, write, print; returns the exit code."""
    sources = backbones.sources(arguments.models, arguments.checkpoint, arguments.pretrained)
    device = options.torch_device(arguments.device)
    skipped: dict[str, None] = {}
    stimuli = find(arguments.stimuli, skipped)
    out = output.folder(arguments.out, FILES, arguments.overwrite)
    results, failed = backbones.each(
        sources, lambda source: measure(source, stimuli, arguments.size, arguments.batch, device, skipped)
    )
    reasons = [*skipped, *(f"{name}: {reason}" for name, reason in failed.items())]
    for reason in reasons:
        print(f"lk-triton: skipped {reason}", file=sys.stderr)
    page = None
    if results:
        page = output.written(lambda: write(results, reasons, out))
        print(json.dumps([as_json(r) for r in results], indent=2) if arguments.json else text(results, page))
    return 1 if reasons or page is None else 0


def find(folder: str, skipped: dict[str, None]) -> list[Stimulus]:
    """The stimuli in ``folder``; files whose names tell no two of the 16 classes are ``skipped``.

    Raises:
        UsageError: there is none with a conflict.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"cannot read {folder}: there is no such directory")
    found = []
    for path in images.find([folder]):
        try:
            found.append(Stimulus(path, *study.cues(path.stem)))
        except ValueError as error:
            skipped[f"{path}: {error}"] = None
    if all(stimulus.shape == stimulus.texture for stimulus in found):
        example = next(iter(skipped), "shape and texture are of the same class in every name")
        raise UsageError(f"no cue-conflict image in {folder}: {example}")
    return found


@torch.inference_mode()
def measure(
    source: Source, stimuli: list[Stimulus], size: int, batch: int, device: torch.device, skipped: dict[str, None]
) -> Result:
    """What one network takes the stimuli for."""
    backbone = source.build(size, device)
    by_name = {str(stimulus.path): stimulus for stimulus in stimuli}
    trials: list[Trial] = []

    def inputs() -> Any:
        for name, stimulus in by_name.items():
            try:
                yield name, images.warped(images.load(stimulus.path), size, backbone.normalization)
            except images.Failure as failure:
                skipped[f"{name}: {failure}"] = None

    with output.progress(len(by_name), source.name) as bar:
        for names, x in images.batched(inputs(), batch):
            decisions = study.decide(study.probabilities(backbone.module(x.to(device))))
            for name, decision in zip(names, decisions, strict=True):
                stimulus = by_name[name]
                trials.append(Trial(stimulus.path.name, stimulus.shape, stimulus.texture, decision))
            bar.update(len(names))
    if not study.tally(trials).trials:
        raise UsageError("no stimulus could be read")
    return Result(source.name, backbone.weights, trials)


def write(results: list[Result], skipped: list[str], out: Path) -> Path:
    """Decisions as CSV, the plot, and the report; returns the report's file."""
    with (out / "decisions.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("model", "image", "shape", "texture", "decision"))
        writer.writerows((r.name, t.image, t.shape, t.texture, t.decision) for r in results for t in r.trials)
    tallies = {result.name: (result.overall, result.classes) for result in results}
    light, dark = pictures.two_inks(lambda ink: pictures.shape_bias(tallies, ink))
    (out / "shape_bias.png").write_bytes(pictures.on_white(light))
    caption = "A row is the class of the shape, a mark a model; a line is a model's overall bias, the bar its 95 % interval"
    counts = {name: tally.trials for result in results for name, tally in result.classes.items()}
    classes = [
        (name, str(count), *(share(result.classes[name].bias) if name in result.classes else "" for result in results))
        for name, count in counts.items()
    ]
    overall = [row(result.name, result.overall) for result in results]
    untrained = [result.name for result in results if result.weights == backbones.RANDOM]
    notes = [backbones.random_warning(*untrained)] if untrained else []
    page = report.Report(
        "Shape bias",
        "On images with the shape of one class and the texture of another: of the decisions for either, the share that goes "
        "by shape. 0 is all texture, 1 all shape.",
        [
            report.Section("Overall", table=report.Table(("network", *HEADERS), overall)),
            report.Section("By class of the shape", pictures=[report.Picture(light, caption, dark)],
                           table=report.Table(("class", "stimuli", *(r.name for r in results)), classes), wide=True),
            *(report.Section(f"{result.name} by class of the shape", table=report.Table(("class", *HEADERS), [
                row(name, tally) for name, tally in result.classes.items()])) for result in results),
        ],
        [*notes, *(f"Skipped: {reason}" for reason in skipped)],
        [*((f"weights, {result.name}", result.weights) for result in results), *output.facts()],
    )  # fmt: skip
    page.write(out / "report.html")
    return out / "report.html"


HEADERS = ("shape bias", "95 % interval", "shape accuracy", "texture accuracy", "stimuli")


def row(name: str, tally: Tally) -> tuple[str, ...]:
    """The figures of a network, or of one of its classes."""
    interval = tally.interval()
    bounds = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "none"
    by_shape, by_texture = tally.accuracy
    return (name, share(tally.bias), bounds, f"{by_shape:.1%}", f"{by_texture:.1%}", str(tally.trials))


def share(bias: float | None) -> str:
    """A bias as text; there is none where no decision was for either cue."""
    return "none" if bias is None else f"{bias:.3f}"


def as_json(result: Result) -> dict[str, Any]:
    """The documented schema (docs/analysis.md)."""
    return {
        "model": result.name, **counted(result.overall),
        "classes": {name: counted(tally) for name, tally in result.classes.items()},
    }  # fmt: skip


def counted(tally: Tally) -> dict[str, Any]:
    """A tally's part of the schema."""
    by_shape, by_texture = tally.accuracy
    return {
        "num": tally.trials, "shape_bias": tally.bias, "interval": tally.interval(),
        "shape_accuracy": by_shape, "texture_accuracy": by_texture,
    }  # fmt: skip


def text(results: list[Result], page: Path | None) -> str:
    """The table for a terminal."""
    rows = [row(r.name, r.overall) for r in results]
    table = tabulate(rows, headers=("network", *HEADERS), tablefmt="simple", disable_numparse=True)
    return f"{table}\n\n{output.last_line(page)}"
