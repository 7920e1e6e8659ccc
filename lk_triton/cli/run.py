"""``lk-triton run``: a network on images. The first batch also checks the fused form and times three forms."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
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
from ..models import CheckpointMismatch, RepLKNet, create_model, inspect_checkpoint, published_form, randomize_
from ..models.gate import Gate, failures, maps_and_logits
from ..planning.timing import Timing
from . import classes, images, output, timing
from .options import CommandError, missing_extra, versions

CHECKED = 1
"""Images of the first batch that the fused form is checked on."""

LONGEST = 400
"""Characters of an error that lists the keys of a checkpoint."""

FORMS = ("published", "training_form", "fused")
SEED = 0


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


def run(arguments: argparse.Namespace) -> int:
    """Run, print, write; returns the exit code."""
    device, dtype = place(arguments.device, arguments.dtype)
    if not arguments.images and not arguments.sample:
        raise CommandError("nothing to run on: name images or directories, or pass --sample")
    paths = images.find(arguments.images)
    total = len(paths) + arguments.sample
    batch = min(arguments.batch, total)
    writer = feature_writer(arguments.features)
    forms = build(arguments.model, arguments.checkpoint, device, dtype, (batch, 3, arguments.size, arguments.size))

    outcome, comparison = Outcome(), None
    inputs = read(paths, arguments.sample, arguments.model, arguments.size, outcome.skipped)
    with torch.inference_mode(), progress(total) as bar:
        for names, x in images.batched(inputs, batch):
            x = x.to(device)
            comparison = comparison or compare(forms, x, dtype)
            found = maps_and_logits(forms.fused, x.to(dtype))
            outcome.names += names
            if "logits" in found:
                outcome.topk += classes.top(found["logits"], arguments.topk)
            for name, value in found.items():
                outcome.shapes[name] = [len(outcome.names), *value.shape[1:]]
                if writer is not None:
                    outcome.maps.setdefault(name, []).append(value.cpu())
            if bar is not None:
                bar.update(len(names))
    for reason in outcome.skipped:
        print(f"lk-triton: skipped {reason}", file=sys.stderr)
    if comparison is None:
        print("lk-triton: error: no image could be read", file=sys.stderr)
        return 1
    written = writer is None or writer(outcome)
    agrees = not comparison.failures
    if not agrees:
        more = f"; and {len(comparison.failures) - 1} more" if comparison.failures[1:] else ""
        print(f"lk-triton: error: the fused form does not compute what the {forms.reference.form} form does: "
              f"{comparison.failures[0]}{more}", file=sys.stderr)  # fmt: skip
    result = report(arguments, device, dtype, forms.reference.form, outcome, comparison)
    print(json.dumps(result) if arguments.json else text(result))
    return 0 if agrees and written and not outcome.skipped else 1


def place(device: str | None, dtype: str | None) -> tuple[torch.device, torch.dtype]:
    """The device and dtype asked for, or the defaults: float16 on CUDA, float32 elsewhere.

    Raises:
        CommandError: there is no such device here.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(1, device=found).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return found, getattr(torch, dtype or ("float16" if found.type == "cuda" else "float32"))


def build(name: str, checkpoint: str | None, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Forms:
    """The network called ``name`` in every form, prepared for inputs of ``shape``.

    Raises:
        CommandError: unknown name, or a checkpoint that cannot be loaded.
    """
    try:
        if checkpoint is None:
            logger.info("no checkpoint: weights, BatchNorm statistics and affine parameters are random, seed %d", SEED)
            torch.manual_seed(SEED)
            reference = randomize_(create_model(name), seed=SEED)
        else:
            form, num_classes = inspect_checkpoint(checkpoint)
            reference = create_model(name, checkpoint, num_classes=num_classes, **({form: True} if form != "training" else {}))
    except OSError as error:
        raise CommandError(f"cannot read {checkpoint}: {error.strerror or error}") from None
    except CheckpointMismatch as error:
        better = f"{checkpoint} does not fit {name}: it looks like {error.looks_like}: --model {error.looks_like}"
        raise CommandError(better if error.looks_like else shorten(error.text, LONGEST)) from None
    except (ValueError, ImportError) as error:
        raise CommandError(str(error)) from error
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


def progress(total: int) -> AbstractContextManager[Any]:
    """A progress bar over images on stderr; none for a single image."""
    if total == 1:
        return nullcontext()
    try:
        from tqdm import tqdm
    except ImportError:
        raise missing_extra("tqdm", "demo") from None
    return tqdm(total=total, unit="image", file=sys.stderr)


def feature_writer(file: str | None) -> Callable[[Outcome], bool] | None:
    """Writes the maps of an outcome, one tensor a name, and the images' names as JSON in the metadata; None for no file.

    False, said on stderr, where writing fails after all.

    Raises:
        CommandError: the file cannot be written, or safetensors is missing; said before anything is computed.
    """
    if file is None:
        return None
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError:
        raise missing_extra("safetensors", "demo") from None
    output.check(file, ".safetensors")

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
        weights = f"RANDOM (seed {SEED}), so the features mean nothing; pass --checkpoint FILE"
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
