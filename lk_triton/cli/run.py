"""``lk-triton run``: a network on images. The first batch also checks the fused form and times three forms."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from ..log import logger
from ..models import CheckpointMismatch, RepLKNet, published_form
from ..models.gate import Gate, failures, maps_and_logits
from ..planning.timing import Timing
from . import classes, images, networks, options, output, timing
from .options import UsageError, missing_extra, positive, versions

CHECKED = 1
"""Images of the first batch that the fused form is checked on."""

LONGEST = 400
"""Characters of an error that lists the keys of a checkpoint."""

FORMS = ("published", "training_form", "fused")


@dataclass
class Forms:
    """One network, fused and in the forms that it is compared with, all in eval mode on one device.

    ``reference`` is in float32, in the form of the weights. ``timed`` always holds ``fused``, and ``published`` and
    ``training_form`` where the weights are in the training form.
    """

    reference: RepLKNet
    fused: RepLKNet
    timed: dict[str, RepLKNet]


@dataclass
class Comparison:
    """What the first batch shows: the largest difference, relative to what another image changes; what the gate does not let
    pass, in words; and the time of each form."""

    batch: int
    max_rel_diff: float
    failures: list[str]
    timings: dict[str, Timing]
    load_average: tuple[float, float, float] | None

    @property
    def latency(self) -> dict[str, float]:
        """The fastest round of each form, in milliseconds."""
        return {name: min(measured.rounds) / 1e3 for name, measured in self.timings.items()}

    @property
    def speedup(self) -> float | None:
        """Published over fused, fastest round over fastest round; None where there is no published form."""
        return self.latency["published"] / self.latency["fused"] if "published" in self.timings else None


@dataclass
class Outcome:
    """What the fused form gives for all images."""

    names: list[str] = field(default_factory=list)
    shapes: dict[str, list[int]] = field(default_factory=dict)
    maps: dict[str, list[Tensor]] = field(default_factory=dict)
    topk: list[list[classes.Class]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, names: list[str], found: dict[str, Tensor], topk: int, keep: bool) -> None:
        """What a batch gave: its maps and logits by name. The maps are kept if ``keep`` says so; their shapes are always."""
        self.names += names
        if "logits" in found:
            self.topk += classes.top(found["logits"], topk)
        for name, value in found.items():
            self.shapes[name] = [len(self.names), *value.shape[1:]]
            if keep:
                self.maps.setdefault(name, []).append(value.cpu())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``run``."""
    parser.description = (
        "Runs a RepLKNet in its fused form on images. On the first batch it also checks the fused form against the training "
        "form and times both and the published form. Results go to stdout, progress to stderr."
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE|DIR", help="image files, and directories of them")
    parser.add_argument("--sample", action="store_true", help="add the photograph that scikit-image ships")
    parser.add_argument("--model", default="replknet_31b", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights; without it they are random, seeded")
    parser.add_argument(
        "--size", type=positive, default=224, metavar="N", help="input height and width; default: %(default)s"
    )
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="images a batch; default: %(default)s")
    options.add_device(parser)
    options.add_dtype(parser)
    parser.add_argument("--features", metavar="OUT.safetensors", help="write the feature maps and logits of all images")
    parser.add_argument("--topk", type=positive, default=5, metavar="K", help="classes an image; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Run, print, write; returns the exit code."""
    device = options.torch_device(arguments.device)
    dtype = options.torch_dtype(arguments.dtype, device)
    if not arguments.images and not arguments.sample:
        raise UsageError("nothing to run on: name images or directories, or pass --sample")
    paths = images.find(arguments.images)
    total = len(paths) + arguments.sample
    batch = min(arguments.batch, total)
    writer = feature_writer(arguments.features)
    forms = build(arguments.model, arguments.checkpoint, device, dtype, (batch, 3, arguments.size, arguments.size))

    outcome, comparison = Outcome(), None
    inputs = read(paths, arguments.sample, arguments.model, arguments.size, outcome.skipped)
    bar = output.progress(total, extra="demo") if total > 1 else None
    with torch.inference_mode(), bar or nullcontext():
        for names, x in images.batched(inputs, batch):
            x = x.to(device)
            comparison = comparison or compare(forms, x, dtype)
            outcome.add(names, maps_and_logits(forms.fused, x.to(dtype)), arguments.topk, keep=writer is not None)
            if bar is not None:
                bar.update(len(names))
    for reason in outcome.skipped:
        print(f"lk-triton: skipped {reason}", file=sys.stderr)
    if comparison is None:
        print("lk-triton: error: no image could be read", file=sys.stderr)
        return 1
    written = writer is None or writer(outcome)
    if comparison.failures:
        first, *others = comparison.failures
        print(f"lk-triton: error: the fused form does not compute what the {forms.reference.form} form does: "
              f"{first}{f'; and {len(others)} more' if others else ''}", file=sys.stderr)  # fmt: skip
    result = report(arguments, device, dtype, forms.reference.form, outcome, comparison)
    print(json.dumps(result) if arguments.json else text(result))
    return int(bool(comparison.failures or outcome.skipped) or not written)


def build(name: str, checkpoint: str | None, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Forms:
    """The network called ``name`` in every form, prepared for inputs of ``shape``.

    Raises:
        UsageError: unknown name, or a checkpoint that cannot be loaded.
    """
    try:
        if checkpoint is None:
            random = "weights, BatchNorm statistics and affine parameters are random"
            logger.info("no checkpoint: %s, seed %d", random, networks.SEED)
        reference = networks.load(name, checkpoint)
    except OSError as error:
        raise UsageError(f"cannot read {checkpoint}: {error.strerror or error}") from None
    except CheckpointMismatch as error:
        better = f"{checkpoint} does not fit {name}: it looks like {error.looks_like}: --model {error.looks_like}"
        raise UsageError(better if error.looks_like else shorten(error.text, LONGEST)) from None
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    reference = reference.eval().to(device)
    fused = deepcopy(reference).reparameterize().to(dtype).prepare(shape)
    timed = {"fused": fused}
    if reference.form == "training":
        training = reference if dtype == torch.float32 else deepcopy(reference).to(dtype)
        timed = {"published": published_form(training), "training_form": training, **timed}
    return Forms(reference, fused, timed)


def read(paths: list[Path], sample: bool, model: str, size: int, skipped: list[str]) -> Iterator[tuple[str, Tensor]]:
    """(name, (3, size, size)) of every image that can be read; the reasons of the others go to ``skipped``."""
    normalization = images.NORMALIZATION.get(model, images.IMAGENET)
    if sample:
        yield "sample", images.preprocess(images.sample(), size, normalization)
    for path in paths:
        try:
            x = images.preprocess(images.load(path), size, normalization)
        except images.Failure as failure:
            skipped.append(f"{path}: {failure}")
            continue
        yield str(path), x


def compare(forms: Forms, x: Tensor, dtype: torch.dtype) -> Comparison:
    """Check the fused form against the reference on the first of ``x``, and time the three forms."""
    # a GPU may compute float32 in TF32
    reference = deepcopy(forms.reference).double() if x.device.type == "cuda" else forms.reference
    gate = Gate(reference, x[:CHECKED], dtype, len(x))
    x = x.to(dtype)
    ends = gate.outputs(maps_and_logits(forms.fused, x))
    failed = failures(ends | gate.blocks(forms.fused) | gate.taps(forms.fused))
    differences = torch.tensor([verdict.error for verdict in ends.values()])
    load = timing.load_average()
    timings = timing.compare({name: partial(model, x) for name, model in forms.timed.items()}, x.device)
    return Comparison(len(x), differences.max().item(), failed, timings, load)


def feature_writer(file: str | None) -> Callable[[Outcome], bool] | None:
    """Writes the maps of an outcome, one tensor a name, and the images' names as JSON in the metadata; None for no file.

    False, said on stderr, where writing fails after all.

    Raises:
        UsageError: the file cannot be written, or safetensors is missing; said before anything is computed.
    """
    if file is None:
        return None
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError:
        raise missing_extra("safetensors", "demo") from None
    options.check_out(Path(file), [".safetensors"])

    def write(outcome: Outcome) -> bool:
        tensors = {name: torch.cat(parts) for name, parts in outcome.maps.items()}
        try:
            save_file(tensors, file, metadata={"images": json.dumps(outcome.names)})
        except (OSError, SafetensorError) as error:
            print(f"lk-triton: error: cannot write {file}: {error}", file=sys.stderr)
            return False
        return True

    return write


def report(
    arguments: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
    form: str,
    outcome: Outcome,
    comparison: Comparison,
) -> dict[str, Any]:
    """The JSON object."""
    difference, none = comparison.max_rel_diff, dict.fromkeys(FORMS)
    return {
        "model": arguments.model,
        "weights": arguments.checkpoint or "random",
        "form": form,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "size": arguments.size,
        "batch": comparison.batch,
        "images": outcome.names,
        "skipped": outcome.skipped,
        "max_rel_diff": difference if math.isfinite(difference) else None,
        "failures": comparison.failures,
        "features": outcome.shapes,
        "latency_ms": none | comparison.latency,
        "latency_spread": none | {name: measured.spread for name, measured in comparison.timings.items()},
        "speedup": comparison.speedup,
        "rounds": len(comparison.timings["fused"].rounds),
        "load_average": comparison.load_average,
        "threads": torch.get_num_threads(),
        "topk": [{"image": n, "classes": c} for n, c in zip(outcome.names, outcome.topk, strict=bool(outcome.topk))],
        "versions": versions(),
    }


def text(result: dict[str, Any]) -> str:
    """The report for a terminal."""
    random = result["weights"] == "random"
    weights = result["weights"]
    difference = "is not finite" if result["max_rel_diff"] is None else f"{result['max_rel_diff']:.2g}"
    agreement = "; ".join(result["failures"][:3]) or "every block and every tap of the depthwise kernels agrees"
    if random:
        weights = f"RANDOM (seed {networks.SEED}), so the features mean nothing; pass --checkpoint FILE"
    parts = [
        f"{result['model']} on {result['device']}, {result['dtype']}, {result['size']}x{result['size']}, "
        f"{len(result['images'])} image(s)\nweights: {weights}",
        tabulate(result["features"].items(), headers=("output of the fused form", "shape"), tablefmt="simple"),
        f"fused against the float32 {result['form']} form, first image: largest difference {difference}, relative to what "
        f"another image changes; {agreement}",
        latencies(result),
    ]
    for entry in () if random else result["topk"]:
        rows = [(f"{c['probability']:.1%}", c["index"], c["name"] or "") for c in entry["classes"]]
        parts.append(f"{entry['image']}\n" + tabulate(rows, tablefmt="plain"))
    if not random and result["topk"] and not classes.imagenet_1k():
        parts.append("for the names of ImageNet-1K's classes: pip install 'lk-triton[timm]'")
    return "\n\n".join(parts)


def latencies(result: dict[str, Any]) -> str:
    """The table of latencies, and what the figures are worth."""
    latency, spread, load = result["latency_ms"], result["latency_spread"], result["load_average"]
    rows = [(form.replace("_", " "), latency[form], spread[form]) for form in FORMS if latency[form] is not None]
    headers = ("form", f"ms for {result['batch']} image(s)", "spread (max/min)")
    measured = f"fastest of {result['rounds']} interleaved rounds; {result['threads']} threads"
    if load:
        measured += f"; load average {load[0]:.2f}"
    ratio = f"published / fused: {result['speedup']:.2f}x\n" if result["speedup"] else ""
    return f"{tabulate(rows, headers=headers, tablefmt='simple', floatfmt='.2f')}\n{ratio}({measured})"
