"""Digests of the machine code and the launch arguments of plans, as a Triton of one version compiles them without a GPU.

As a program, where TRITON_INTERPRET is unset and that Triton is the first on the path, this file reads plans from stdin, a
JSON list a line, and prints their digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple, fields, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lk_triton import device as devices
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import KernelLaunch, TritonAlgorithm
from lk_triton.disassembly import SASS
from lk_triton.inspector import compile_launch, meta_launch
from lk_triton.models import create_model
from lk_triton.problem import Chain, ConvProblem, Epilogue, Problem
from lk_triton.recorder import problems_of
from lk_triton.tuning import cache as tables
from lk_triton.tuning.entry import KINDS
from lk_triton.tuning.plan import plan, refusal

TRITON = "3.6.0"
"""Whose machine code is recorded: the oldest that compiles every kernel."""

NETWORK, BATCHES, DTYPES, ARCHS = "replknet_31b", (1, 64), ("float16", "bfloat16"), ("sm_80", "sm_90")

OUTCLASSED = 4
"""An algorithm that is estimated so many times slower than the best is nobody's plan."""


class Plan(NamedTuple):
    """What is compiled, and for what."""

    arch: str
    problem: Problem
    algorithm: str
    config: Any

    @property
    def form(self) -> str:
        """The kernel form that runs."""
        return registry.get(self.algorithm).form(self.config)

    def to_json(self) -> list[Any]:
        """Arch, kind and values of the problem, algorithm, values of the config."""
        kind = next(name for name, of_kind in KINDS.items() if type(self.problem) is of_kind)
        values = [kind, *astuple(self.problem)], self.algorithm, astuple(self.config)
        return json.loads(json.dumps([self.arch, *values]))

    @classmethod
    def from_json(cls, data: list[Any]) -> Plan:
        """The inverse of ``to_json``."""
        arch, (kind, *values), name, config = data
        named = dict(zip((f.name for f in fields(KINDS[kind])), map(_tuples, values), strict=True))
        problem = KINDS[kind](**{**named, "epilogue": Epilogue(*named["epilogue"])})
        return cls(arch, problem, name, registry.get(name).config_type(*map(_tuples, config)))


@cache
def recorded_plans() -> tuple[Plan, ...]:
    """Of the shipped tables, and of the network: each algorithm's for each layer, chains' layers and channels_last too."""
    shipped = [
        Plan(table.arch, e.problem, e.algorithm, e.config)
        for table in tables.shipped_tables()
        for group in table.entries.values()
        for e in group
    ]
    of_network = [p for arch in ARCHS for problem in _network_problems() for p in _plans_of(problem, devices.for_arch(arch))]
    return tuple(dict.fromkeys(p for p in shipped + of_network if _compiles(p.algorithm)))


def _network_problems() -> tuple[Problem, ...]:
    found: list[Problem] = []
    for dtype in DTYPES:
        network = create_model(NETWORK, device="meta", dtype=getattr(torch, dtype)).eval().reparameterize()
        for batch in BATCHES:
            found += problems_of(network, (batch, 3, 224, 224))
    found += [layer for problem in found if isinstance(problem, Chain) for layer in problem.layers]
    found += [replace(problem, layout="channels_last") for problem in found if isinstance(problem, ConvProblem)]
    return tuple(dict.fromkeys(found))


def _plans_of(problem: Problem, device: devices.Device) -> Iterator[Plan]:
    serving = [name for name in registry.meant_for(problem) if refusal(problem, device, name) is None]
    plans = [plan(problem, device, name) for name in serving if name != "torch"]
    seconds = [registry.get(p.algorithm).estimate(problem, p.config, device).seconds for p in plans]
    for p, estimate in zip(plans, seconds, strict=True):
        if estimate <= OUTCLASSED * min(seconds):
            yield Plan(device.arch, problem, p.algorithm, p.config)


def _compiles(algorithm: str) -> bool:
    return isinstance(registry.get(algorithm), TritonAlgorithm)


def digests(plans: Sequence[Plan], *path: str) -> list[str]:
    """``digest`` of each plan in a process of its own, with the folders ``path`` before all others where Python looks."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([*path, *filter(None, [environment.get("PYTHONPATH")])])
    lines = "\n".join(json.dumps(p.to_json()) for p in plans)
    command = [sys.executable, __file__]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"plans cannot be compiled:\n{done.stderr}")
    return done.stdout.splitlines()


def digest(found: Plan) -> str:
    """Two hashes: of the machine code, and of the arguments that the kernel is launched with."""
    launch = meta_launch(found.problem, found.algorithm, found.config)
    code = compile_launch(launch, found.arch).disassembly
    return f"{_short(instructions(code))} {_short(arguments(launch))}"


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


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    from triton import knobs

    knobs.compilation.disable_line_info = True
    for plan_line in sys.stdin:
        print(digest(Plan.from_json(json.loads(plan_line))), flush=True)
