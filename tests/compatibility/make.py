"""Make the files of ``files/``: what users of a version keep, and the names that they use.

Run in a checkout of the version whose files are wanted, into a folder that does not exist:

    PYTHONPATH=. python tests/compatibility/make.py FOLDER

The committed files are of 0.1.0, made with torch 2.14. They stay as they are: later ones would only prove that a version reads
what it writes itself. Layers are called on float32 tensors of seeded random numbers, on a CPU.
"""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from public_names import everything
from torch import Tensor, nn

import lk_triton
from lk_triton import cli, models
from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.models import RepLKNet, save_checkpoint
from lk_triton.nn import (
    ChannelAffine,
    ConvUnit,
    DepthwiseConv2d,
    PointwiseConv2d,
    ReparamDepthwiseConv2d,
    StemConv2d,
    from_conv_bn,
)
from lk_triton.ops.problem import ConvProblem, DenseProblem, Epilogue, FfnProblem, Problem, StemProblem
from lk_triton.planning import cache, confirmed, entry
from lk_triton.planning.plan import why_not

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "h100-2026-11"
H100 = "NVIDIA H100 80GB HBM3"
Module = TypeVar("Module", bound=nn.Module)


class EveryOp(nn.Module):
    """(N, 3, H, W) -> (N, 4, H / 4, W / 4) through every registered op and every option of theirs that an export can hold."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(8, 3, 3, 3), (8,), (8, 1, 3, 3), (8,), (8, 8, 1, 1), (8,)]
        self.stem = nn.ParameterList([torch.empty(shape) for shape in shapes])
        self.ffn = nn.ParameterList([torch.empty(shape) for shape in [(16, 8, 1, 1), (16,), (8, 16, 1, 1), (8,)]])
        self.large = DepthwiseConv2d(8, 13, activation="relu")
        self.dilated = DepthwiseConv2d(8, (3, 5), dilation=2, bias=False, precision="ieee")
        self.mix = PointwiseConv2d(8, 8, activation="gelu")
        self.down = DepthwiseConv2d(8, 5, stride=2, padding=2, multiplier=2, activation="silu")
        self.last = StemConv2d(16, 4, stride=1, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = lk_triton.conv_stem(x, *self.stem, out_layout="nchw")
        x = lk_triton.conv_ffn(x, *self.ffn, residual=x, activation="relu")
        x = self.dilated(self.large(x, residual=x))
        return self.last(self.down(self.mix(x, residual=x, out_layout="nchw")))


def layers() -> dict[str, tuple[nn.Module, Tensor]]:
    """Layers and networks of every public class in every form, each with an input; their parameters are not set."""
    images, maps = torch.randn(2, 3, 16, 12), torch.randn(2, 4, 9, 10)
    branches = ((5, 1), (3, 2))
    conv, bn = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False), nn.BatchNorm2d(4).eval()
    made: dict[str, tuple[nn.Module, Tensor]] = {
        "depthwise": (DepthwiseConv2d(4, 7), maps),
        "depthwise, options": (DepthwiseConv2d(4, (3, 5), stride=2, padding=2, dilation=2, multiplier=2, bias=False,
                                               activation="silu", precision="tf32x3"), maps),
        "depthwise, from conv and bn": (from_conv_bn(conv, bn, "relu"), maps),
        "reparam": (ReparamDepthwiseConv2d(4, 9, branches, "relu"), maps),
        "reparam, merged": (ReparamDepthwiseConv2d(4, 9, branches, "relu", merged=True), maps),
        "pointwise": (PointwiseConv2d(4, 6), maps),
        "pointwise, options": (PointwiseConv2d(4, 6, bias=False, activation="gelu"), maps),
        "stem": (StemConv2d(3, 4), images),
        "stem, options": (StemConv2d(3, 4, 5, stride=1, padding=2, bias=False, activation="relu"), images),
        "unit": (ConvUnit(DepthwiseConv2d(4, 5, bias=False), "relu"), maps),
        "unit, fused": (ConvUnit(PointwiseConv2d(4, 6), "gelu", fused=True), maps),
        "unit of torch's convolution": (ConvUnit(nn.Conv2d(4, 6, 3, padding=1), "relu", fused=True), maps),
        "affine": (ChannelAffine(4), maps),
    }  # fmt: skip
    for form in ("training", "merged", "fused"):
        made[f"network, {form}"] = network(merged=form == "merged", fused=form == "fused"), images
    made["network, reparameterized"] = fill(network()).eval().reparameterize(), images
    made["backbone"] = network(out_indices=(0, 1), norm_intermediate_features=True), images
    return made


def fill(module: Module) -> Module:
    """Set parameters and statistics at random, so that maps neither vanish nor grow."""
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.5 / max(tensor[0].numel(), 4) ** 0.5)
    return module


def network(**options: Any) -> RepLKNet:
    """A RepLKNet of two stages."""
    return RepLKNet((7, 5), (1, 1), (4, 8), 3, num_classes=5, **options)


def table() -> dict[str, Any]:
    """A user's cache for an H100: every algorithm's and kernel form's slowest config, each for a problem of its own; the same
    problems with one image less as entries had them when they held a hash of the sources; and a warp-specialized config."""
    maps: dict[str, Any] = {"layout": "channel_major", "out_layout": "channel_major"}
    problems: list[Problem] = [
        ConvProblem(64, 128, 56, 56, 31, 31, padding=(15, 15), epilogue=Epilogue(True, "relu"), layout="channel_major"),
        ConvProblem(64, 96, 28, 28, 7, 7, padding=(3, 3), layout="channels_last", epilogue=Epilogue(True, "relu", True)),
        DenseProblem(64, 128, 56, 56, 512, **maps, epilogue=Epilogue(True, "gelu")),
        DenseProblem(64, 3, 224, 224, 128, 3, 3, (2, 2), (1, 1), out_layout="channel_major", epilogue=Epilogue(True, "relu")),
        FfnProblem(64, 128, 56, 56, 512, **maps),
        StemProblem(64, 3, 224, 224, 128, out_layout="channel_major"),
    ]
    gpu = gpus.named(H100)
    assert gpu is not None
    entries: list[dict[str, Any]] = []
    for name, algorithm in registry.ALGORITHMS.items():
        for form in algorithm.versions if name != "torch" else ():
            for problem in problems:
                configs = algorithm.configs(problem, gpu) if why_not(problem, gpu, name) is None else []
                fitting = [config for config in configs if algorithm.form(config) == form]
                if fitting:
                    slowest = max(fitting, key=lambda c, a=algorithm, p=problem: a.estimate(p, c, gpu).seconds)
                    number = 32 + len(entries)
                    measured = entry_of(replace(problem, n=number), name, slowest)
                    entries += [measured, by_hash(replace(problem, n=number - 1), measured)]
                    break
    expected = {form for name, a in registry.ALGORITHMS.items() if name not in ("torch", "onednn") for form in a.versions}
    assert {e["form"] for e in entries if "form" in e} == expected
    product = replace(problems[2], n=16)
    configs = registry.get("pointwise").configs(product, gpu)
    special = entry_of(product, "pointwise", next(c for c in configs if c.tma and c.num_warps == 4))
    special["config"]["warp_specialize"] = True
    entries.append(special)
    return {"device": H100, "arch": gpu.arch, "entries": entries}


def entry_of(problem: Problem, name: str, config: Any) -> dict[str, Any]:
    """What a cache holds of this plan."""
    found = entry.of_measured(problem, name, config, microseconds=12.5, rounds=7, spread=1.02)
    return entry.to_json(replace(found, versions={"lk_triton": "0.1.0", "torch": "2.11.0+cu130", "triton": "3.6.0"}))


def by_hash(problem: Problem, measured: dict[str, Any]) -> dict[str, Any]:
    """The entry for another problem, as it was written before kernel forms had versions."""
    kept = {key: value for key, value in measured.items() if key not in ("form", "version")}
    changed = {"problem": entry.problem_to_json(problem), "source_hash": entry.LAST_HASHES[measured["algorithm"]]}
    return {**kept, **changed}


def results(folder: Path) -> None:
    """A few rows of ``bench network``, a few lines of ``tune --json`` with a few trials each, and rows of ``bench conv``."""
    rows = (RESULTS / "network.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "network.csv").write_text("".join(rows[:4]), encoding="utf-8")
    lines = [json.loads(line) for line in (RESULTS / "configs.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line |= {"trials": line["trials"][:3]} if "trials" in line else {}
    kept = [*lines[:3], lines[-1]]
    (folder / "configs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    providers = ["torch", "lk_triton_torch", "lk_triton_auto"]
    command = ["bench", "conv", "--cases", "convnext-stage4*", "--batch", "1", "--rounds", "5", "--providers", *providers]
    cli.main([*command, "--out", str(folder / "conv.csv")])


@torch.no_grad()
def export(folder: Path) -> None:
    """``every_op.pt2``, and its input and output."""
    model, x = fill(EveryOp()).eval(), torch.randn(2, 3, 20, 16)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.export.save(program, folder / "every_op.pt2")
    torch.save({"input": x, "output": model(x)}, folder / "every_op_values.pt")


@torch.no_grad()
def modules(folder: Path) -> None:
    """``layers.pt``: whole modules; ``layer_values.pt``: their states, inputs and outputs; a checkpoint of the network."""
    made = layers()
    values = {}
    for name, (module, x) in made.items():
        fill(module).eval()
        values[name] = {"input": x, "output": module(x), "state": module.state_dict()}
    torch.save({name: module for name, (module, _) in made.items()}, folder / "layers.pt")
    torch.save(values, folder / "layer_values.pt")
    net = made["network, training"][0]
    assert isinstance(net, RepLKNet)
    save_checkpoint(net, folder / "checkpoint.safetensors")


def small() -> RepLKNet:
    """A network that ``lk-triton run`` is done with soon."""
    return RepLKNet((7, 7, 7, 5), (1, 1, 1, 1), (4, 4, 8, 8), 3, num_classes=1000)


def answer_of_run() -> dict[str, Any]:
    """What ``lk-triton run --json`` prints for ``small``."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setattr(models.registry, "_factories", {"small": small})
        cli.main(["run", "--sample", "--model", "small", "--size", "64", "--json"])
    return json.loads(out.getvalue())


def main(folder: Path) -> None:
    """Write all files into a new folder."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    export(folder)
    modules(folder)
    found = table()
    (folder / cache.file_name(H100)).write_text(cache.text(found["device"], found["arch"], found["entries"]), encoding="utf-8")
    shutil.copy(confirmed.FILE, folder)
    results(folder)
    (folder / "run.json").write_text(json.dumps(answer_of_run(), indent=1) + "\n", encoding="utf-8")
    (folder / "names.json").write_text(json.dumps(everything(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
