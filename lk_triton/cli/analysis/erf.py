"""``lk-triton erf``: effective receptive fields of networks, as heat maps, numbers and a report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from ...models.analysis import erf as study
from ...models.analysis import pictures, published, report
from ...models.analysis.erf import Accumulation, Area, Map
from .. import images, options, output
from ..options import UsageError, positive
from . import backbones
from .backbones import Backbone, Source


@dataclass
class Result:
    """The field of one network: how its weights came about, its images, its scores (H, W) and its areas by percentage."""

    name: str
    weights: str
    num: int
    scores: Map
    areas: dict[int, Area]


@dataclass
class Inputs:
    """The images to take, in order, and the reasons why some could not be used."""

    sample: bool
    paths: list[Path]
    num: int
    size: int
    skipped: dict[str, None]

    @property
    def names(self) -> list[str]:
        """All candidates; those that cannot be read are replaced by later ones."""
        return (["sample"] if self.sample else []) + [str(path.absolute()) for path in self.paths]

    @property
    def wanted(self) -> int:
        """How many are to be taken."""
        return min(self.num, len(self.names))

    def read(self, name: str, normalization: images.Normalization) -> torch.Tensor | None:
        """(1, 3, size, size); None, with the reason kept, where the image cannot be read."""
        try:
            image = images.sample() if name == "sample" else images.load(Path(name))
            return images.warped(image, self.size, normalization)[None]
        except images.Failure as failure:
            self.skipped[f"{name}: {failure}"] = None
            return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``run``."""
    parser.description = (
        "How much each pixel contributes to the centre of the last feature map, by the authors' published method. Writes heat "
        "maps, arrays and report.html; a run that was cut off goes on where it stopped."
    )
    backbones.add_arguments(parser)
    parser.add_argument("--images", nargs="+", default=[], metavar="DIR", help="directories of images, and image files")
    parser.add_argument("--sample", action="store_true", help="add the photograph that scikit-image ships")
    parser.add_argument("--size", type=positive, default=1024, metavar="N", help="height and width; default: %(default)s")
    parser.add_argument("--num", type=positive, default=50, metavar="N", help="images at most; default: %(default)s")
    output.add_out(parser, "erf")
    options.add_device(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write, print; returns the exit code."""
    if not arguments.images and not arguments.sample:
        raise UsageError("nothing to look at: name a directory with --images DIR, or pass --sample")
    sources = backbones.sources(arguments.models, arguments.checkpoint, arguments.pretrained)
    device = options.torch_device(arguments.device)
    inputs = Inputs(arguments.sample, images.find(arguments.images), arguments.num, arguments.size, {})
    out = output.folder(arguments.out, [], arguments.overwrite)
    if not arguments.overwrite:
        check(out, sources, inputs)
    results, failed = backbones.each(
        sources, lambda source: measure(source, inputs, device, file_of(source, out), arguments.overwrite)
    )
    for reason in (*inputs.skipped, *(f"{name}: {reason}" for name, reason in failed.items())):
        print(f"lk-triton: skipped {reason}", file=sys.stderr)
    page = None
    if results:
        page = output.written(lambda: write(results, list(inputs.skipped), failed, arguments.size, out))
        if arguments.json:
            print(json.dumps([as_json(result, arguments.size) for result in results], indent=2))
        else:
            print(text(results, arguments.size, page))
    return 1 if inputs.skipped or failed or page is None else 0


def file_of(source: Source, out: Path) -> Path:
    """Where the contributions of a network lie."""
    return out / f"{source.file_name}.npz"


def check(out: Path, sources: list[Source], inputs: Inputs) -> None:
    """Before anything is computed: whether this run goes on with what lies in ``out``, and replaces nothing else.

    Raises:
        UsageError: it would replace contributions made otherwise, or a report of other networks.
    """
    own = {file_of(source, out) for source in sources}
    others = sorted(file.stem for file in set(out.glob("*.npz")) - own)
    if others:
        raise UsageError(
            f"{out} holds results of other networks ({', '.join(others)}): name them too, or take another --out; --overwrite "
            "makes a report without them"
        )
    if (out / "report.html").exists() and not any(file.exists() for file in own):
        raise UsageError(f"{out} holds report.html of another study: pass --overwrite to replace it, or another --out")
    for source in sources:
        if source.kind != "callable":  # what these depend on is known only when they are built
            resume(file_of(source, out), settings_of(source, inputs.size), inputs, overwrite=False)


def settings_of(source: Source, size: int, content: str | None = None) -> dict[str, Any]:
    """What the contributions of a network depend on besides the images; ``content`` is the fingerprint of a callable's."""
    return {**source.identity, "content": content, "size": size}


def measure(source: Source, inputs: Inputs, device: torch.device, file: Path, overwrite: bool) -> Result:
    """The field of one network over ``inputs.num`` readable images; ``file`` keeps it, and is continued where it fits.

    Raises:
        UsageError, ValueError: ``file`` does not fit and may not be replaced, no image can be used, or the network has no
            feature map for images of this size.
    """
    backbone = source.build(inputs.size, device)
    content = backbone.fingerprint if source.kind == "callable" else None
    accumulation = resume(file, settings_of(source, inputs.size, content), inputs, overwrite)
    with output.progress(inputs.wanted, source.name, done=len(accumulation.images)) as bar:
        for _ in taken(backbone, accumulation, inputs, device):
            accumulation.save(file)
            bar.update()
    if accumulation.mean is None:
        raise UsageError("no image could be used")
    scores = study.scores(accumulation.mean)
    areas = {percent: study.area(scores, percent) for percent in study.THRESHOLDS}
    return Result(source.name, backbone.weights, len(accumulation.images), scores, areas)


def resume(file: Path, settings: dict[str, Any], inputs: Inputs, overwrite: bool) -> Accumulation:
    """What ``file`` holds if it was made with the same settings from images among these, else nothing yet.

    Raises:
        UsageError: it was made otherwise, and there is no ``overwrite``.
    """
    try:
        found = Accumulation.load(file)
    except FileNotFoundError:
        return Accumulation(settings)
    except ValueError as error:
        reason = str(error)
    else:
        if found.settings == settings and set(found.images) <= set(inputs.names) and len(found.images) <= inputs.num:
            return found
        reason = f"{file} was made from other images or with other settings"
    if not overwrite:
        raise UsageError(f"{reason}: pass --overwrite to start over, or another --out")
    print(f"lk-triton: starting over: {reason}", file=sys.stderr)
    return Accumulation(settings)


def taken(backbone: Backbone, accumulation: Accumulation, inputs: Inputs, device: torch.device) -> Iterator[str]:
    """Add images until ``accumulation`` has as many as are wanted; the name of each behind it."""
    before = set(accumulation.images)
    for name in inputs.names:
        complete = len(accumulation.images) == inputs.wanted
        if complete and not before:
            return
        if name in before:
            before.remove(name)
        elif complete:  # passed over by the run before: say again why
            inputs.read(name, backbone.normalization)
        elif take(name, backbone, accumulation, inputs, device):
            yield name


def take(name: str, backbone: Backbone, accumulation: Accumulation, inputs: Inputs, device: torch.device) -> bool:
    """Add one image; False, with the reason kept, where it cannot be read or its gradient is not finite."""
    x = inputs.read(name, backbone.normalization)
    if x is None:
        return False
    contribution = study.contribution(backbone.module, x.to(device))
    try:
        accumulation.add(name, contribution)
    except ValueError as error:
        inputs.skipped[f"{error}, of {accumulation.settings['model']}"] = None
        return False
    return True


def write(results: list[Result], skipped: list[str], failed: dict[str, str], size: int, out: Path) -> Path:
    """Heat maps, one a network and all side by side, and the report; returns the report's file."""
    sections = []
    for result in results:
        heat_map = pictures.heat_map(result.scores, result.areas)
        (out / f"{backbones.Source(result.name).file_name}.png").write_bytes(heat_map)
        caption = f"{result.name}: log10(contribution + 1) of each pixel, and the smallest centred squares that hold so much"
        rows = [(f"{p} %", f"{a.side} x {a.side}", f"{a.ratio:.1%}") for p, a in result.areas.items()]
        sections.append(report.Section(
            result.name, f"Weights: {result.weights}. Images: {result.num}.", [report.Picture(heat_map, caption)],
            report.Table(("contribution", "square, pixels", "of the image"), rows),
        ))  # fmt: skip
    rows = [(result.name, *(f"{area.ratio:.1%}" for area in result.areas.values())) for result in results]
    light, dark = pictures.two_inks(lambda ink: pictures.side_by_side({r.name: (r.scores, r.areas) for r in results}, ink))
    (out / "erf.png").write_bytes(pictures.on_white(light))
    theirs = published.table("erf")
    sections = [
        report.Section(
            "High-contribution area ratio", pictures=[report.Picture(light, "All networks, in the same colours", dark)],
            table=report.Table(("network", *(f"{p} %" for p in study.THRESHOLDS)), rows), wide=True,
        ),
        *sections,
        report.Section("Published by the authors", f"{theirs.title} ({theirs.source}).",
                       table=report.Table(theirs.columns, theirs.rows)),
    ]  # fmt: skip
    untrained = [result.name for result in results if result.weights == backbones.RANDOM]
    notes = [backbones.random_warning(*untrained)] if untrained else []
    notes += [f"Skipped: {reason}" for reason in (*skipped, *(f"{name}: {reason}" for name, reason in failed.items()))]
    page = report.Report(
        "Effective receptive fields",
        f"How much each pixel of {size}x{size} images counts for the centre of the last feature map, averaged over images. "
        "The smallest centred square that holds 20, 30, 50 or 99 % of it covers so much of the image:",
        sections, notes, output.facts(),
    )  # fmt: skip
    page.write(out / "report.html")
    return out / "report.html"


def as_json(result: Result, size: int) -> dict[str, Any]:
    """The documented schema (docs/analysis.md)."""
    return {
        "model": result.name, "size": size, "num": result.num,
        "area_ratio": {str(p): area.ratio for p, area in result.areas.items()},
        "side": {str(p): area.side for p, area in result.areas.items()},
    }  # fmt: skip


def text(results: list[Result], size: int, page: Path | None) -> str:
    """The table for a terminal."""
    rows = [
        (r.name, r.weights, r.num, *(f"{a.ratio:.1%} ({a.side})" for a in r.areas.values())) for r in results
    ]  # fmt: skip
    headers = ("network", "weights", "images", *(f"{p} %" for p in study.THRESHOLDS))
    return (
        f"high-contribution area ratio, and side of the square in pixels, of {size}x{size} images\n\n"
        f"{tabulate(rows, headers=headers, tablefmt='simple')}\n\n{output.last_line(page)}"
    )
