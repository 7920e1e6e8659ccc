"""Against what is measured: torch in its usual forms, FlagGems where it is installed, and everything that lk_triton has."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor

from lk_triton import device as devices
from lk_triton.algorithms import registry
from lk_triton.algorithms.torch_ import activate_, convolve
from lk_triton.problem import ConvProblem
from lk_triton.tuning.plan import Plan, plan

OURS = "lk_triton_"
"""How the names of this library's providers begin; the others are its peers."""


class Unavailable(Exception):
    """A provider that cannot serve a problem, or is not installed, and why."""


class Built(NamedTuple):
    """A provider ready to run one problem.

    Attributes:
        run: (x, bank) -> y. The bank is an argument, so that the timer can rotate through copies of it.
        bank: the weight as ``run`` reads it.
        config: what runs: for lk_triton's own see ``config_to_json``, for the others in words.
    """

    run: Callable[[Tensor, Tensor], Tensor]
    bank: Tensor
    config: str


class Provider(NamedTuple):
    """``build(problem, weight, bias)`` packs and compiles outside the timing; x comes in ``memory_format``.

    ``build`` raises Unavailable where the provider cannot serve. The problem's layout is that of x.
    """

    build: Callable[[ConvProblem, Tensor, Tensor | None], Built]
    memory_format: torch.memory_format = torch.contiguous_format


def _eager(memory_format: torch.memory_format) -> Provider:
    """torch at its best: cuDNN looks for its fastest algorithm, the activation works in place."""

    def build(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
        def run(x: Tensor, weight: Tensor) -> Tensor:
            with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=problem.precision == "tf32"):
                return activate_(convolve(problem, x, weight, bias), problem.epilogue.activation)

        return Built(run, weight.to(memory_format=memory_format), "eager, cudnn.benchmark")

    return Provider(build, memory_format)


COMPILE_MODE = "max-autotune-no-cudagraphs"
"""Without graphs of its own, because the timer captures one for every provider."""


def _compile(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
    def run(x: Tensor, weight: Tensor) -> Tensor:
        return activate_(convolve(problem, x, weight, bias), problem.epilogue.activation)

    torch._dynamo.reset()  # every problem is compiled for its own shapes
    return Built(torch.compile(run, fullgraph=True, dynamic=False, mode=COMPILE_MODE), weight, COMPILE_MODE)


def _flaggems(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
    try:
        module = importlib.import_module("flag_gems.ops.conv2d")
    except Exception as error:  # it asks for a GPU when imported, and fails in many ways without
        raise Unavailable(f"{type(error).__name__}: {error}".splitlines()[0]) from None

    def run(x: Tensor, weight: Tensor) -> Tensor:
        y = module.conv2d(x, weight, bias, problem.stride, problem.padding, problem.dilation, problem.c)
        return activate_(y, problem.epilogue.activation)

    return Built(run, weight, f"flag_gems {getattr(importlib.import_module('flag_gems'), '__version__', '')}".strip())


def _algorithm(name: str, memory_format: torch.memory_format = torch.contiguous_format) -> Provider:
    def build(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
        try:
            chosen = plan(problem, devices.of(weight.device), name)
        except ValueError as error:
            raise Unavailable(str(error)) from None
        algorithm = registry.get(chosen.algorithm)

        def run(x: Tensor, bank: Tensor) -> Tensor:
            return algorithm.launch(problem, chosen.config, x, bank, bias, None)

        return Built(run, algorithm.pack(weight, problem, chosen.config), config_to_json(chosen))

    return Provider(build, memory_format)


def config_to_json(chosen: Plan) -> str:
    """A plan as one JSON object: ``algorithm``, ``source``, and the fields of its ``config``."""
    return json.dumps(asdict(chosen))


PROVIDERS: dict[str, Provider] = {
    "torch": _eager(torch.contiguous_format),
    "torch_channels_last": _eager(torch.channels_last),
    "torch_compile": Provider(_compile),
    "flaggems": Provider(_flaggems),
    OURS + "auto": _algorithm("auto"),
    OURS + "auto_channels_last": _algorithm("auto", torch.channels_last),
    **{OURS + name: _algorithm(name) for name in registry.meant_for(ConvProblem)},
}
