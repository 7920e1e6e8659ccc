"""``onednn``: convolutions on a CPU by oneDNN, with the weight packed and the epilogue as post-operations.

1x1 convolutions are its linear, the others its convolution, in channels_last; other layouts are converted.

Measured on one core of an AMD EPYC, float32, batch 1, with the epilogue, F.conv2d | F.linear | this, unpacked:
128 -> 512 on 56x56 + GELU 12.4 | 11.3 | 5.9 ms; 512 -> 2048 on 14x14 + GELU 6.3 | 9.2 | 4.8; 4096 -> 1024 on 7x7 + residual
6.7 | 7.2 | 5.4. Depthwise, batch 8, + ReLU, F.conv2d in float32 | in bfloat16 | this in bfloat16, packed: 31x31 on 128x56x56
52 | 40 | 39 ms; 27x27 on 512x14x14 4.0 | 3.1 | 2.5; 13x13 on 1024x7x7 1.9 | 1.2 | 1.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..gpu import Gpu
from ..ops import layout
from ..ops.problem import Convolution, ConvProblem, DenseProblem, Operands
from .base import WithoutChoices
from .cost.roofline import Estimate
from .torch_ import faster_unpacked

ATTRIBUTES = {None: "none", "relu": "none", "gelu": "gelu", "silu": "swish"}
"""oneDNN's names of the activations; its ``gelu`` is the exact one unless told otherwise. ReLU is a pass of its own: oneDNN's
turns NaN into 0, as do its ``leaky_relu`` and ``hardtanh``. The pass costs too little to be seen in RepLKNet-31B."""

FORMAT = "onednn"

BF16_CHANNELS = 17
"""Least channels of a bfloat16 depthwise convolution. Up to 16, which are one vector, oneDNN does not return from writing
the code for kernels 15 wide and more (jit_brdgmm_kernel of torch 2.14, AVX512-BF16)."""


@dataclass(frozen=True)
class OnednnConfig:
    """No choices."""


class OnednnAlgorithm(WithoutChoices):
    """Convolutions on a CPU."""

    name = "onednn"
    versions: ClassVar = {"onednn": 2}  # raised when its launch or its packing changes
    config_type: type[Any] = OnednnConfig
    problems: tuple[type[Any], ...] = (ConvProblem, DenseProblem)

    def why_not(self, problem: Convolution, gpu: Gpu) -> str | None:
        if gpu.backend != "cpu":
            return f"it runs on CPUs, got {gpu.name}"
        if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
            return "oneDNN is not part of this torch, or switched off (torch.backends.mkldnn)"
        if problem.dtype not in ("float32", "bfloat16"):
            return f"dtype {problem.dtype} is neither float32 nor bfloat16"
        if problem.dtype == "bfloat16" and not torch.cpu._is_avx512_bf16_supported():
            return "this CPU has no bfloat16 instructions (AVX512-BF16)"
        if problem.dtype == "bfloat16" and problem.groups > 1 and problem.c < BF16_CHANNELS:
            return f"oneDNN hangs on bfloat16 depthwise convolutions of fewer than {BF16_CHANNELS} channels, got {problem.c}"
        if problem.epilogue.activation is not None and problem.epilogue.residual:
            return "an activation and a residual together are not offered"
        return None

    def beaten(self, problem: Convolution) -> str | None:
        """By torch, which packs nothing and converts nothing."""
        return "torch was measured to be faster at such sizes in this layout" if faster_unpacked(problem) else None

    def estimate(self, problem: Convolution, config: OnednnConfig, gpu: Gpu) -> Estimate:
        """No time is predicted: beside it there is torch alone, and ``beaten`` says which of the two is faster."""
        return Estimate(0.0, "issue")

    def prepacked_bytes(self, problem: Convolution, config: OnednnConfig) -> int:
        """A second copy of the weight."""
        return prod(problem.weight_shape) * problem.itemsize

    def weight_format(self, config: OnednnConfig) -> str | None:
        """oneDNN's own."""
        return FORMAT

    def prepack(self, weight: Tensor, problem: Convolution, config: OnednnConfig) -> Tensor:
        """oneDNN's own order for this shape; without it oneDNN reorders the weight in every call."""
        weight = weight.detach().contiguous()
        if is_linear(problem):
            return torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1), problem.n * problem.h * problem.w)
        shape = [problem.n, problem.c, problem.h, problem.w]
        return torch.ops.mkldnn._reorder_convolution_weight(
            weight, problem.padding, problem.stride, problem.dilation, problem.groups, shape
        )

    def launch(self, problem: Convolution, config: OnednnConfig, operands: Operands) -> Tensor:
        """A linear over pixels (N, H, W, Cin), or a convolution of x (N, C, H, W); oneDNN ignores the stride of a bias."""
        bias, residual = operands.get("bias"), operands.get("residual")
        x = operands["x"].contiguous(memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        compute = _linear if is_linear(problem) else _convolution
        y = compute(problem, x, operands["weight"], None if bias is None else bias.contiguous(), residual)
        if problem.epilogue.activation == "relu":
            torch.relu_(y)
        return layout.conform(y, problem.out_layout)


def is_linear(problem: Convolution) -> bool:
    """Whether ``problem`` is one matrix product over all pixels."""
    return isinstance(problem, DenseProblem) and problem.pointwise


def _linear(problem: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    pixels = x.permute(0, 2, 3, 1)
    if residual is None:
        activation = ATTRIBUTES[problem.epilogue.activation]
        y = torch.ops.mkldnn._linear_pointwise.default(pixels, weight, bias, activation, [], "none")
    else:
        y = torch.ops.mkldnn._linear_pointwise.binary(pixels, residual.permute(0, 2, 3, 1), weight, bias, "add")
    return y.permute(0, 3, 1, 2)


def _convolution(problem: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    geometry = bias, problem.padding, problem.stride, problem.dilation, problem.groups
    if residual is None:
        activation = ATTRIBUTES[problem.epilogue.activation]
        return torch.ops.mkldnn._convolution_pointwise.default(x, weight, *geometry, activation, [], "none")
    return torch.ops.mkldnn._convolution_pointwise.binary(x, residual, weight, *geometry, "add", None, None, [], None)
