"""Digests of the machine code and the launch arguments of plans, as a Triton of one version compiles them without a GPU.

As a program, where TRITON_INTERPRET is unset and that Triton is the first on the path, this file reads plans from stdin, a
JSON object a line, and prints the listing of each.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import KernelLaunch, TritonAlgorithm
from lk_triton.models import create_model
from lk_triton.ops.problem import Chain, ConvProblem, Problem
from lk_triton.ops.tracing import problems_of
from lk_triton.planning import cache as tables
from lk_triton.planning.entry import from_json, problem_to_json
from lk_triton.planning.plan import plan, why_not
from lk_triton.tools.disassembly import SASS
from lk_triton.tools.inspector import compile_launch, meta_launch

TRITON = "3.6.0"
"""Whose machine code is recorded: the oldest that compiles every kernel."""

NETWORK, BATCHES, DTYPES, ARCHS = "replknet_31b", (1, 8, 64), ("float16", "bfloat16"), ("sm_80", "sm_90")
GPUS = ("a100", "NVIDIA H100 80GB HBM3")
"""Of these architectures, whose plans are the network's: the one with a shipped table by the name that it has there."""

OF_EVERY_ALGORITHM = (1, 64)
"""Batches of which each algorithm's plan is recorded, whichever the network takes."""

OUTCLASSED = 4
"""An algorithm that is estimated so many times slower than the best is nobody's plan."""


class Plan(NamedTuple):
    """What is compiled, and for what."""

    arch: str
    problem: Problem
    algorithm: str
    config: Any

    def __str__(self) -> str:
        return f"{self.arch} {self.problem}: {self.algorithm} {self.config}"

    @property
    def form(self) -> str:
        """The kernel form that runs."""
        return registry.get(self.algorithm).form(self.config)

    def to_json(self) -> dict[str, Any]:
        """By name, as a tuning cache has it."""
        problem, config = problem_to_json(self.problem), json.loads(json.dumps(asdict(self.config)))
        return {"arch": self.arch, "problem": problem, "algorithm": self.algorithm, "form": self.form, "config": config}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """The inverse of ``to_json``; reads what tuning caches of other versions may hold."""
        measured = {"microseconds": 1.0, "rounds": 1, "spread": 1.0, "versions": {}, "version": 1}
        entry = from_json({name: value for name, value in data.items() if name != "arch"} | measured)
        return cls(data["arch"], entry.problem, registry.get(entry.algorithm).name, entry.config)


class Question(NamedTuple):
    """What the network asks the planner: for a problem, on a GPU, with a weight packed in a format, or read as it is."""

    gpu: str
    problem: Problem
    bank_format: str | None
    packing: bool

    def __str__(self) -> str:
        weight = f"weight packed as {self.bank_format}" if self.bank_format else "weight not packed"
        return f"{self.gpu} {self.problem}, {weight}" + ("" if self.packing else ", in a chain")

    def answer(self) -> Plan:
        """The plan of now."""
        found = named(self.gpu)
        chosen = plan(self.problem, found, bank_format=self.bank_format, packing=self.packing)
        return Plan(found.arch, self.problem, chosen.algorithm, chosen.config)


def named(gpu: str) -> gpus.Gpu:
    """Facts of one of ``GPUS``, by that name."""
    found = gpus.named(gpu) or gpus.for_arch(gpu)
    return replace(found, name=gpu)


@cache
def questions() -> tuple[Question, ...]:
    """All that the network asks at ``BATCHES``, prepared for any of them or not: its layers, and those of its chains."""
    found: list[Question] = []
    for gpu, problem in product(GPUS, _network_problems(BATCHES)):
        found.append(Question(gpu, problem, None, True))
        if isinstance(problem, Chain):
            found += [Question(gpu, layer, None, False) for layer in problem.layers]
            continue
        chosen = found[-1].answer()
        bank_format = registry.get(chosen.algorithm).weight_format(chosen.config)
        if bank_format is not None:
            found += [Question(gpu, replace(problem, n=n), bank_format, True) for n in BATCHES]
    return tuple(dict.fromkeys(found))


@cache
def recorded_plans() -> tuple[Plan, ...]:
    """Of the shipped tables; each algorithm's for each layer of the network, chains' layers and channels_last too; and those
    that the network takes."""
    shipped = [
        Plan(table.arch, e.problem, e.algorithm, e.config)
        for table in tables.shipped_tables()
        for group in table.entries.values()
        for e in group
    ]
    posed = _network_problems(OF_EVERY_ALGORITHM)
    layers = [layer for problem in posed if isinstance(problem, Chain) for layer in problem.layers]
    other = [replace(problem, layout="channels_last") for problem in (*posed, *layers) if isinstance(problem, ConvProblem)]
    problems = dict.fromkeys([*posed, *layers, *other])
    offered = [p for arch in ARCHS for problem in problems for p in _plans_of(problem, gpus.for_arch(arch))]
    taken = [question.answer() for question in questions()]
    return tuple(dict.fromkeys(p for p in shipped + offered + taken if compiles(p)))


@cache
def _network_problems(batches: tuple[int, ...]) -> tuple[Problem, ...]:
    found: list[Problem] = []
    for dtype in DTYPES:
        network = create_model(NETWORK, device="meta", dtype=getattr(torch, dtype)).eval().reparameterize()
        for batch in batches:
            found += problems_of(network, (batch, 3, 224, 224))
    return tuple(dict.fromkeys(found))


def _plans_of(problem: Problem, gpu: gpus.Gpu) -> Iterator[Plan]:
    serving = [name for name in registry.meant_for(problem) if why_not(problem, gpu, name) is None]
    plans = [plan(problem, gpu, name) for name in serving if name != "torch"]
    seconds = [registry.get(p.algorithm).estimate(problem, p.config, gpu).seconds for p in plans]
    for p, estimate in zip(plans, seconds, strict=True):
        if estimate <= OUTCLASSED * min(seconds):
            yield Plan(gpu.arch, problem, p.algorithm, p.config)


def compiles(found: Plan) -> bool:
    """Whether a kernel of ours runs."""
    return isinstance(registry.get(found.algorithm), TritonAlgorithm)


def digests(plans: Sequence[Plan], *path: str) -> list[str]:
    """``digest`` of each plan in a process of its own, with the folders ``path`` before all others where Python looks."""
    return [digest(*listing) for listing in listings([p.to_json() for p in plans], Path(__file__), *path)]


def listings(plans: Sequence[dict[str, Any]], program: Path, *path: str) -> Iterator[tuple[list[str], list[str]]]:
    """``listing`` of each plan, a line of JSON, by this file or that of another checkout; as they come."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([*path, *filter(None, [environment.get("PYTHONPATH")])])
    with tempfile.TemporaryFile("w+") as lines, tempfile.TemporaryFile("w+") as errors:
        lines.writelines(json.dumps(p) + "\n" for p in plans)
        lines.seek(0)
        command = [sys.executable, str(program)]
        with subprocess.Popen(command, stdin=lines, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as done:
            assert done.stdout is not None
            for line in done.stdout:
                code, arguments = json.loads(line)
                yield code, arguments
        if done.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"plans cannot be compiled:\n{errors.read()}")


def listing(found: Plan) -> tuple[list[str], list[str]]:
    """The machine code, and the arguments that the kernel is launched with."""
    launch = meta_launch(found.problem, found.algorithm, found.config)
    return instructions(compile_launch(launch, found.arch).disassembly), arguments(launch)


def digest(code: list[str], arguments: list[str]) -> str:
    """A hash of each."""
    return f"{_short(code)} {_short(arguments)}"


def instructions(listing: str) -> list[str]:
    """Predicates, instructions and labels of SASS, without addresses."""
    found = (SASS.label.match(line) or SASS.instruction.match(line) for line in listing.splitlines())
    return [re.sub(r"\s+", " ", " ".join(filter(None, match.groups()))) for match in found if match]


def arguments(launch: KernelLaunch) -> list[str]:
    """What the kernel is launched with: constants, sizes and strides, types, blocks of descriptors, grid, warps and stages."""
    named = [f"{name}={_value(launch.args[name])}" for name in launch.kernel.arg_names]
    return [launch.kernel.__name__, *named, repr((launch.grid, launch.num_warps, launch.num_stages))]


def _value(argument: Any) -> str:
    if isinstance(argument, Tensor):
        return f"{argument.dtype} from {argument.storage_offset()}"
    if hasattr(argument, "block_shape"):
        return f"{_value(argument.base)} {list(argument.shape)} {list(argument.strides)} {list(argument.block_shape)}"
    return repr(argument)


def _short(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


if __name__ == "__main__":
    from triton import knobs

    knobs.compilation.disable_line_info = True
    for plan_line in sys.stdin:
        print(json.dumps(listing(Plan.from_json(json.loads(plan_line)))), flush=True)
