"""``torch``: F.conv2d plus the epilogue. Reference on every device, and the path where Triton cannot serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gpu import Gpu
from ..ops import layout
from ..ops.problem import Chain, Convolution, ConvProblem, DenseProblem, Operands, Problem, convolve
from .base import WithoutChoices
from .cost.roofline import MMA_SHARE, Estimate, activation_bytes, in_turn, roofline


@dataclass(frozen=True)
class TorchConfig:
    """No choices."""


class TorchAlgorithm(WithoutChoices):
    """``F.conv2d`` and the epilogue as separate torch operations."""

    name = "torch"
    versions: ClassVar = {"torch": 1}  # raised when its launch changes
    config_type: type[Any] = TorchConfig
    problems: tuple[type[Any], ...] = (Problem,)

    def why_not(self, problem: Problem, gpu: Gpu) -> str | None:
        """Serves every problem."""
        return None

    def estimate(self, problem: Problem, config: TorchConfig, gpu: Gpu) -> Estimate:
        """Depthwise: FMA units at a tenth of their peak (RepLKNet, Table 1: torch reaches 11 % at 31x31), or DRAM. Dense:
        the matrix units' usual share of their peak. Several layers: one after the other."""
        if isinstance(problem, Chain):
            return in_turn(self.estimate(layer, config, gpu) for layer in problem.layers)
        dense = isinstance(problem, DenseProblem) and problem.dtype != "float32"
        rate = MMA_SHARE * gpu.mma_half_tflops if dense else 0.1 * gpu.fp32_tflops
        fma = 2 * problem.nominal_macs / (max(rate, 0.01) * 1e12)
        return roofline(problem, gpu, (), fma=fma, dram=activation_bytes(problem) / (gpu.dram_gbps * 1e9))

    def launch(self, problem: Problem, config: TorchConfig, operands: Operands) -> Tensor:
        """On a CPU a convolution runs in channels_last, where oneDNN is about 30 times faster at 31x31, or in the layout
        of x, where that is faster (``faster_unpacked``).

        On a GPU float32 runs in NCHW unless TF32 was asked for: torch's own depthwise kernels serve there, in IEEE
        arithmetic, where cuDNN, which serves channels_last, may take TF32.
        """
        if isinstance(problem, Chain):
            return problem.in_turn(operands, lambda layer, own: self.launch(layer, config, own))
        if not isinstance(problem, Convolution):
            return layout.conform(problem.reference(operands), problem.output().layout)
        x = operands["x"]
        if x.device.type == "cpu":
            planes = problem.layout == "nchw" and faster_unpacked(problem)
            x = x.contiguous(memory_format=torch.contiguous_format if planes else torch.channels_last)
        elif x.dtype == torch.float32 and problem.precision != "tf32":
            x = x.contiguous()
        y = convolve(problem, x, operands["weight"], operands.get("bias"))
        if problem.epilogue.activation is not None:
            y = activate_(y, problem.epilogue.activation)
        if "residual" in operands:
            y += operands["residual"]
        return layout.conform(y, problem.out_layout)


def faster_unpacked(problem: Convolution) -> bool:
    """Whether on a CPU ``F.conv2d`` in the layout of x takes less time than oneDNN with a packed weight (``onednn``).

    A rule drawn from measurements on one core of an AMD EPYC, bench/results/cpu-2026-11. oneDNN's fast depthwise kernels for
    NCHW are for filters up to 13 wide; its linear takes 16 us for no work at all. Where nothing was measured it says no.
    """
    pixels = problem.n * problem.h * problem.w
    planes = problem.layout == problem.out_layout == "nchw"
    if problem.dtype != "float32" or problem.epilogue.activation not in (None, "relu"):
        return False
    if isinstance(problem, ConvProblem):
        plain = (problem.stride, problem.multiplier) == ((1, 1), 1)
        return planes and plain and problem.kw <= 13 and pixels * problem.c >= 2**15
    if not isinstance(problem, DenseProblem) or not problem.pointwise:
        return False
    if planes:
        return pixels >= 128 or problem.nominal_macs <= 2**23
    last = problem.layout == problem.out_layout == "channels_last"
    return last and pixels <= 1024 and problem.nominal_macs <= 2**21


def activate_(y: Tensor, activation: str | None) -> Tensor:
    """``y`` through the activation, in place where torch can."""
    if activation is None:
        return y
    if activation == "gelu":
        return F.gelu(y)
    return torch.relu_(y) if activation == "relu" else F.silu(y, inplace=True)
