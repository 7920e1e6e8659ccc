"""Host side of ``direct``: FMA units, eight outputs per lane. Exact footprint, IEEE float32 arithmetic."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from ....gpu import Gpu
from ....ops import layout
from ....ops.problem import ConvProblem, Operands
from ...base import KernelLaunch, TritonAlgorithm, image_vector, plane_arguments
from ...cost.roofline import Estimate, activation_bytes, roofline
from ...cost.wave import Wave
from .channels_last import channels_last_configs, channels_last_cost, channels_last_launch, channels_last_macs
from .config import OUTPUTS_PER_LANE, DirectConfig
from .cost import LINE, blocks, columns, input_rows, issued_macs, launch_cost, vectors

MAX_COLUMNS = 108
"""Most input columns of a row that a lane uses (101 taps at stride 1): all of them are in registers at once, as float32.
Rows of odd width, whose every column is a load of its own, spill from about 80 on."""

MAX_UNROLLED = 2800
"""Most vectors of input rows times filter taps times output rows of a lane that are unrolled: the compiler's time follows
that product, about 2.5 s at this value on a CPU core."""


class DirectAlgorithm(TritonAlgorithm):
    """Small kernels, any stride, dilation and channel multiplier, and true IEEE float32."""

    name = "direct"
    versions: ClassVar = {"direct": 1, "direct_channels_last": 1}  # raised when the kernel, its launch or its packing changes
    config_type = DirectConfig

    def form(self, config: DirectConfig) -> str:
        """Of lanes along the rows, or along the channels."""
        return "direct_channels_last" if config.channels else "direct"

    def channel_tile(self, problem: ConvProblem, config: DirectConfig) -> int:
        """One channel, or a lane's vector of them side by side, which may be as short as one."""
        return config.channels or 1

    def why_not(self, problem: ConvProblem, gpu: Gpu) -> str | None:
        """What a lane's registers hold, in IEEE arithmetic."""
        if (reason := super().why_not(problem, gpu)) is not None:
            return reason
        if len(columns(problem)) > MAX_COLUMNS:
            return (
                f"{OUTPUTS_PER_LANE} outputs of a {problem.kw} wide kernel with stride {problem.stride[1]} and dilation "
                f"{problem.dilation[1]} use {len(columns(problem))} input columns: at most {MAX_COLUMNS} fit in registers"
            )
        if problem.precision not in (None, "ieee"):
            return f"computes in IEEE float32, not in {problem.precision}"
        return None

    def configs(self, problem: ConvProblem, gpu: Gpu) -> list[DirectConfig]:
        """One lane per thread, of as many output rows as share input rows and can be unrolled.

        For channels_last problems both kernels: lanes along the channels, and along the rows of converted planes.
        """
        lanes = [n for n in (64, 128, 256, 32) if n >= gpu.warp_size]  # at equal estimates, the first
        planes = [DirectConfig(n, n // gpu.warp_size, rows) for rows in _rows(problem) for n in lanes]
        return channels_last_configs(problem, gpu) + planes

    def estimate(self, problem: ConvProblem, config: DirectConfig, gpu: Gpu) -> Estimate:
        """The slowest resource of the fullest SM (FMA units, issue slots, L1, L2), or DRAM.

        L1 is taken to keep a program's input rows and weights, so that L2 serves what differs within a program.
        """
        counted = channels_last_cost(problem, config) if config.channels else launch_cost(problem, config)
        # lanes along the channels need no conversion
        converted = replace(problem, layout="nchw") if config.channels else problem
        wave = Wave(counted.programs, gpu)
        image = problem.n * problem.c * problem.h * problem.w * problem.itemsize
        written = activation_bytes(problem) - image
        weights = problem.out_shape[1] * problem.kh * problem.kw * problem.itemsize
        issued = counted.programs * config.num_warps * counted.instructions
        through_l2 = counted.image_distinct_bytes + counted.weight_distinct_bytes + written
        return roofline(
            converted,
            gpu,
            fma=2 * counted.macs / (gpu.fp32_tflops * 1e12) * wave.fullest,
            issue=wave.issue(issued) * wave.fullest,
            smem=wave.shared(counted.lines * LINE) * wave.fullest,
            l2=wave.l2(through_l2) * wave.fullest,
            dram=wave.dram(image + written + weights),
        )

    def issued_macs(self, problem: ConvProblem, config: DirectConfig) -> int:
        """Those of all lanes."""
        return channels_last_macs(problem, config) if config.channels else issued_macs(problem, config)

    def prepacked_bytes(self, problem: ConvProblem, config: DirectConfig) -> int:
        """For channels_last, the weight in another order."""
        return problem.c * problem.kh * problem.kw * problem.itemsize if config.channels else 0

    def weight_format(self, config: DirectConfig) -> str | None:
        """The weight as it is, or channels innermost."""
        return "direct/channels_last" if config.channels else None

    def prepack(self, weight: Tensor, problem: ConvProblem, config: DirectConfig) -> Tensor:
        """For channels_last (C, 1, KH, KW) -> (KH, KW, C)."""
        return weight[:, 0].permute(1, 2, 0).contiguous()

    def launches(self, problem: ConvProblem, config: DirectConfig) -> int:
        """Lanes along the channels need no conversion."""
        return 1 if config.channels else super().launches(problem, config)

    def launch(self, problem: ConvProblem, config: DirectConfig, operands: Operands) -> Tensor:
        """One kernel launch; without conversions where lanes lie along the channels."""
        if not config.channels:
            return super().launch(problem, config, operands)
        maps, channels_last = problem.maps(), torch.channels_last
        given = {
            role: tensor.contiguous(memory_format=channels_last) if role in maps else tensor.contiguous()
            for role, tensor in operands.items()
        }
        out = layout.empty(problem.out_shape, "channels_last", given["x"])
        self.submit(problem, config, given, out)
        return out

    def kernel_launch(self, problem: ConvProblem, config: DirectConfig, operands: Operands, out: Tensor) -> KernelLaunch:
        """Of planes, or of channels_last images as they are."""
        launch = channels_last_launch if config.channels else _planes_launch
        return launch(problem, config, operands, out)


def _planes_launch(problem: ConvProblem, config: DirectConfig, operands: Operands, out: Tensor) -> KernelLaunch:
    """One program per (channel, block of lanes); all images have dense planes."""
    from .kernel import direct_kernel

    planes, bias = plane_arguments(problem, operands, out), operands.get("bias")
    per_channel = blocks(problem, config)
    loaded = vectors(problem, planes["XV"])
    args = planes | {
        "weight": operands["weight"], "bias": bias, "HAS_BIAS": bias is not None,
        "lanes": ceil(problem.ow / OUTPUTS_PER_LANE), "row_groups": ceil(problem.oh / config.rows), "blocks": per_channel,
        "multiplier": problem.multiplier, "pad_h": problem.padding[0], "KH": problem.kh, "KW": problem.kw,
        "PAD_W": problem.padding[1], "STRIDE_H": problem.stride[0], "STRIDE_W": problem.stride[1],
        "DILATION_H": problem.dilation[0], "DILATION_W": problem.dilation[1],
        "UNROLL": problem.kh if config.rows > 1 else 0, "BLOCK": config.block, "ROWS": config.rows,
        "FIRST_VECTOR": loaded[0], "VECTORS": loaded[-1] - loaded[0] + 1,
        "NEEDED": sum(1 << v - loaded[0] for v in loaded),
    }  # fmt: skip
    return KernelLaunch(direct_kernel, (problem.out_shape[1] * per_channel,), args, config.num_warps, config.num_stages)


def _rows(problem: ConvProblem) -> list[int]:
    """Output rows of a lane that are worth offering; more than one where adjacent output rows read a common input row."""
    apart, rest = divmod(problem.stride[0], problem.dilation[0])
    shared = rest == 0 and apart < problem.kh
    per_row = len(vectors(problem, image_vector(problem))) * problem.kh * problem.kw
    return [1] + [
        rows
        for rows in (2, 4)
        if shared and rows // 2 < problem.oh and rows * input_rows(problem, rows) * per_row <= MAX_UNROLLED
    ]
