"""Against what is measured: torch in its usual forms, and every Triton algorithm, all with the same epilogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lk_triton import device as devices
from lk_triton.algorithms import registry
from lk_triton.problem import ConvProblem
from lk_triton.tuning.plan import plan


class Built(NamedTuple):
    """A provider ready to run one problem: ``run(x)`` -> y, and the config in words."""

    run: Callable[[Tensor], Tensor]
    config: str


class Provider(NamedTuple):
    """``build(problem, weight, bias)`` packs and compiles outside the timing; x comes in ``memory_format``.

    ``build`` raises ValueError with the reason where the provider cannot serve the problem.
    """

    build: Callable[[ConvProblem, Tensor, Tensor | None], Built]
    memory_format: torch.memory_format = torch.contiguous_format


def _convolve(problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution, bias and activation, as eager torch does it at its best: the activation in place."""
    y = F.conv2d(x, weight, bias, problem.stride, problem.padding, problem.dilation, problem.c)
    activation = problem.epilogue.activation
    if activation == "relu":
        return y.relu_()
    return y if activation is None else {"gelu": F.gelu, "silu": F.silu}[activation](y)


def _torch_nchw(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
    return Built(lambda x: _convolve(problem, x, weight, bias), "eager")


def _torch_channels_last(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
    weight = weight.to(memory_format=torch.channels_last)

    def run(x: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            return _convolve(problem, x, weight, bias)

    return Built(run, "eager, cudnn.benchmark")


def _torch_compile(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
    torch._dynamo.reset()  # every problem is compiled for its own shapes
    compiled = torch.compile(lambda x: _convolve(problem, x, weight, bias), fullgraph=True, dynamic=False)
    return Built(compiled, "inductor")


def _algorithm(name: str) -> Callable[[ConvProblem, Tensor, Tensor | None], Built]:
    def build(problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Built:
        algorithm = registry.get(name)
        chosen = plan(problem, devices.of(weight.device), name)
        bank = algorithm.pack(weight, problem, chosen.config)
        return Built(lambda x: algorithm.launch(problem, chosen.config, x, bank, bias, None), str(chosen.config))

    return build


PROVIDERS: dict[str, Provider] = {
    "torch": Provider(_torch_nchw),
    "torch_channels_last": Provider(_torch_channels_last, torch.channels_last),
    "torch_compile": Provider(_torch_compile),
    **{f"lk_triton_{name}": Provider(_algorithm(name)) for name in registry.ALGORITHMS if name != "torch"},
}
