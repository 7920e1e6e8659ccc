"""``onednn``: 1x1 convolutions on a CPU as oneDNN's linear, with the weight packed and the epilogue as post-operations.

Measured on one core of an AMD EPYC, float32, batch 1, with the epilogue, F.conv2d | F.linear | this, unpacked:
128 -> 512 on 56x56 + GELU 12.4 | 11.3 | 5.9 ms; 512 -> 2048 on 14x14 + GELU 6.3 | 9.2 | 4.8; 4096 -> 1024 on 7x7 + residual
6.7 | 7.2 | 5.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..device import Device
from ..problem import DenseProblem
from .base import Estimate
from .dense import weight_bytes

ATTRIBUTES = {None: "none", "relu": "relu", "gelu": "gelu", "silu": "swish"}
"""oneDNN's names of the activations; its ``gelu`` is the exact one unless told otherwise."""

FORMAT = "onednn"


@dataclass(frozen=True)
class OnednnConfig:
    """No choices."""


class OnednnAlgorithm:
    """1x1 convolutions of channels_last maps on a CPU."""

    name = "onednn"
    config_type: type[Any] = OnednnConfig
    problems: tuple[type[Any], ...] = (DenseProblem,)

    def supports(self, problem: DenseProblem, device: Device) -> str | None:
        """None, or why not."""
        if not isinstance(problem, DenseProblem) or not problem.pointwise:
            return "oneDNN's linear serves 1x1 convolutions only"
        if device.backend != "cpu":
            return f"it runs on CPUs, got {device.name}"
        if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
            return "oneDNN is not part of this torch, or switched off (torch.backends.mkldnn)"
        if problem.dtype != "float32":
            return f"dtype {problem.dtype} is not float32"
        if (problem.layout, problem.out_layout) != ("channels_last", "channels_last"):
            return f"layout {problem.layout} is not channels_last"
        if problem.epilogue.activation is not None and problem.epilogue.residual:
            return "an activation and a residual together are not offered"
        return None

    def configs(self, problem: DenseProblem, device: Device) -> list[OnednnConfig]:
        """One."""
        return [OnednnConfig()]

    def estimate(self, problem: DenseProblem, config: OnednnConfig, device: Device) -> Estimate:
        """It is the only algorithm beside torch on a CPU: nothing to compare."""
        return Estimate(0.0, "issue")

    def issued_macs(self, problem: DenseProblem, config: OnednnConfig) -> int:
        """The nominal ones."""
        return problem.nominal_macs

    def bank_bytes(self, problem: DenseProblem, config: OnednnConfig) -> int:
        """A second copy of the weight."""
        return weight_bytes(problem)

    def bank_format(self, config: OnednnConfig) -> str | None:
        """oneDNN's own."""
        return FORMAT

    def pack(self, weight: Tensor, problem: DenseProblem, config: OnednnConfig) -> Tensor:
        """oneDNN's own order for this number of pixels; without it oneDNN reorders the weight in every call."""
        pixels = problem.n * problem.h * problem.w
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach().flatten(1).contiguous(), pixels)

    def launch(
        self, problem: DenseProblem, config: OnednnConfig, x: Tensor, bank: Tensor, bias: Tensor | None,
        residual: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The product over pixels (N, H, W, Cin)."""
        pixels = x.permute(0, 2, 3, 1)
        if residual is None:
            y = torch.ops.mkldnn._linear_pointwise(pixels, bank, bias, ATTRIBUTES[problem.epilogue.activation], [], "none")
        else:
            residual = residual.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
            y = torch.ops.mkldnn._linear_pointwise.binary(pixels, residual, bank, bias, "add")
        return y.permute(0, 3, 1, 2)
