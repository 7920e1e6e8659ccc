"""Against what is measured: torch in its usual forms, and everything that lk_triton has."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import with_prepacked
from lk_triton.algorithms.torch_ import activate_
from lk_triton.ops.problem import ConvProblem, convolve
from lk_triton.planning.plan import Plan, plan

OURS = "lk_triton_"
"""How the names of this library's providers begin; the others are its peers."""


class Unavailable(Exception):
    """A provider cannot serve a problem, and why."""


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
    """``build(problem, weight, bias)`` packs and compiles outside the timing; x comes in ``layout``, None: the case's own.

    ``build`` raises Unavailable where the provider cannot serve. The problem's layout is that of x.
    """

    build: Callable[[ConvProblem, Tensor, Tensor | None], Built]
    layout: str | None = "nchw"


def _eager(layout: str, kernel: str = "auto") -> Provider:
    """torch at its best: cuDNN looks for its fastest algorithm, the activation works in place."""

    def build(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
        chosen = flags(kernel, layout, weight.device)

        def run(x: Tensor, weight: Tensor) -> Tensor:
            with torch.backends.cudnn.flags(benchmark=True, allow_tf32=problem.precision == "tf32", **chosen):
                return activate_(convolve(problem, x, weight, bias), problem.epilogue.activation)

        order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        words = [f"{name}={value}" for name, value in chosen.items() if kernel != "auto"]
        return Built(run, weight.to(memory_format=order), ", ".join(["eager", "cudnn.benchmark", *words]))

    return Provider(build, layout)


def flags(kernel: str, layout: str, device: torch.device) -> dict[str, Any]:
    """Arguments of ``torch.backends.cudnn.flags``.

    Args:
        kernel: who computes a depthwise layer: torch's own kernel (``native``), ``cudnn``, or whom torch chooses (``auto``).

    Raises:
        Unavailable: this torch, or this device, leaves no such choice.
    """
    if kernel == "auto":
        return {"enabled": True}
    if device.type != "cuda":
        raise Unavailable(f"only on a GPU is there a choice between torch's own depthwise kernel and cuDNN's, not on {device}")
    if hasattr(torch.backends.cudnn, "depthwise_kernel"):
        return {"enabled": True, "depthwise_kernel": kernel}
    if kernel == "native":
        return {"enabled": False}
    if layout == "channels_last":  # where torch takes cuDNN by itself
        return {"enabled": True}
    raise Unavailable(
        f"torch {torch.__version__} takes cuDNN for a depthwise layer in channels_last only; 2.13 lets one choose"
    )


COMPILE_MODE = "max-autotune-no-cudagraphs"
"""Without graphs of its own, because the timer captures one for every provider."""


def _compile(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
    def run(x: Tensor, weight: Tensor) -> Tensor:
        return activate_(convolve(problem, x, weight, bias), problem.epilogue.activation)

    torch._dynamo.reset()  # every problem is compiled for its own shapes
    return Built(torch.compile(run, fullgraph=True, dynamic=False, mode=COMPILE_MODE), weight, COMPILE_MODE)


def _algorithm(name: str, layout: str | None = None) -> Provider:
    def build(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
        try:
            chosen = plan(problem, gpus.of(weight.device), name)
        except ValueError as error:
            raise Unavailable(str(error)) from None
        algorithm = registry.get(chosen.algorithm)
        constant = {} if bias is None else {"bias": bias}

        def run(x: Tensor, weight: Tensor) -> Tensor:
            return algorithm.launch(problem, chosen.config, {"x": x, "weight": weight, **constant})

        packed = with_prepacked(algorithm, problem, chosen.config, {"weight": weight})["weight"]
        return Built(run, packed, config_to_json(chosen))

    return Provider(build, layout)


def config_to_json(chosen: Plan) -> str:
    """A plan as one JSON object: ``algorithm``, ``source``, and the fields of its ``config``."""
    return json.dumps(asdict(chosen))


PROVIDERS: dict[str, Provider] = {
    "torch": _eager("nchw"),
    "torch_channels_last": _eager("channels_last"),
    "torch_native": _eager("nchw", "native"),
    "torch_native_channels_last": _eager("channels_last", "native"),
    "torch_cudnn": _eager("nchw", "cudnn"),
    "torch_cudnn_channels_last": _eager("channels_last", "cudnn"),
    "torch_compile": Provider(_compile),
    OURS + "auto": _algorithm("auto"),
    OURS + "auto_nchw": _algorithm("auto", "nchw"),
    OURS + "auto_channels_last": _algorithm("auto", "channels_last"),
    **{OURS + name: _algorithm(name) for name in registry.meant_for(ConvProblem)},
}
