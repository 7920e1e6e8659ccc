"""Host side of ``convffn``: both layers of a ConvFFN in one launch. The kernel's docstring has the maths."""

from __future__ import annotations

from itertools import product
from typing import Any, ClassVar

from torch import Tensor

from .... import gpu as gpus
from ....gpu import Gpu
from ....ops import layout
from ....ops.problem import FfnProblem, Operands
from ...base import KernelLaunch
from ...cost.dot import rate
from ...cost.roofline import Estimate, activation_bytes, roofline
from ...cost.wave import Wave
from ...dense.base import PixelMatrixAlgorithm, describable, epilogue_instructions, pixels, row_arguments, rows_are_aligned
from ...needs import needs_half, needs_tensor_cores
from .config import ConvffnConfig
from .cost import (
    dots_of,
    instructions,
    issued_macs,
    programs_per_sm,
    registers,
    shared_bytes,
    steps_of,
    tiles_of,
    weight_bytes,
)

WIDTHS = (64, 128, 256)
"""Of x and the output: a program holds all channels of its pixels, as accumulators too."""

TILES = ((128, 8), (64, 4))
"""Pixels and warps of a program: 16 pixels a warp. With 32 a warp, or 256 in all, kernels spill on sm_80 and sm_100, and are
slower on sm_90 (measured on an H100: at best 162 us where these take 144)."""

STEPS = (64, 32)

MAX_REGISTERS = 240
"""As ``registers`` counts; kernels above it spill (offline compilation for sm_80)."""


class ConvffnAlgorithm(PixelMatrixAlgorithm):
    """ConvFFNs of 64, 128 or 256 channels in 16-bit types; reads the weights as they are."""

    name = "convffn"
    versions: ClassVar = {"convffn": 1}  # raised when the kernel, its launch or its packing changes
    config_type: type[Any] = ConvffnConfig
    problems = (FfnProblem,)

    def channel_tile(self, problem: FfnProblem, config: ConvffnConfig) -> int:
        """A program computes all channels."""
        return problem.c

    def why_not(self, problem: FfnProblem, gpu: Gpu) -> str | None:
        """Certain widths, biases, and rows of pixels that vectors of 16 bytes move."""
        if (reason := super().why_not(problem, gpu) or needs_half(problem)) is not None:
            return reason
        if problem.c not in WIDTHS:
            return f"{problem.c} channels are not one of {', '.join(map(str, WIDTHS))}"
        if problem.hidden % STEPS[-1]:
            return f"{problem.hidden} hidden channels are no multiple of {STEPS[-1]}"
        if not problem.epilogue.bias:
            return "both layers need a bias"
        if not rows_are_aligned(problem):
            return "the pixels of a channel are not one row at a multiple of 16 bytes, as in channel-major memory"
        if problem.out_layout != "channel_major" and problem.h * problem.w * problem.itemsize % 16:
            return f"planes of {problem.h}x{problem.w} are no multiple of 16 bytes, which only a channel-major output allows"
        return needs_tensor_cores(gpu)

    def configs(self, problem: FfnProblem, gpu: Gpu) -> list[ConvffnConfig]:
        """As far as registers and shared memory go."""
        grid = product(TILES, STEPS, (2, 3, 4), (True, False))
        found = (ConvffnConfig(pixels, step, warps, stages, tma) for (pixels, warps), step, stages, tma in grid)
        return [config for config in found if _fits(problem, config, gpu)]

    def estimate(self, problem: FfnProblem, config: ConvffnConfig, gpu: Gpu) -> Estimate:
        """The products and the instructions between them, one after the other on the fullest SM, or L2, or DRAM.

        A step's second product waits for the activation, and that for the first. That another resident program does not fill
        the gaps was measured (H100, float16, (64, 128, 56, 56): 144 us, where products and instructions take 67 and 70); what
        it does hide is the latency of the weights, for which a program alone on its SM waits. No constant is fitted.
        """
        tiles, steps = tiles_of(problem, config), steps_of(problem, config)
        wave = Wave(tiles, gpu)
        outputs = tiles * config.pixels * problem.c / gpu.warp_size
        issued = tiles * steps * config.num_warps * instructions(problem, config, gpu)
        issue = wave.issue(issued + outputs * epilogue_instructions(problem.layers[1])) * wave.fullest
        first = dots_of(problem, config, gpu)[0]
        mma = 2 * issued_macs(problem, config) / rate(first, "ieee", gpu) * wave.fullest
        alone = min(programs_per_sm(problem, config, gpu), wave.most) == 1
        waits = wave.most * steps * gpu.l2_latency_ns * 1e-9 / (config.num_stages - 1) if alone else 0.0
        outside = activation_bytes(problem)
        return roofline(
            problem,
            gpu,
            **{"mma" if mma >= issue else "issue": mma + issue + waits},
            l2=wave.l2(tiles * weight_bytes(problem) + outside),
            dram=wave.dram(outside + weight_bytes(problem)),
        )

    def issued_macs(self, problem: FfnProblem, config: ConvffnConfig) -> int:
        return issued_macs(problem, config)

    def kernel_launch(self, problem: FfnProblem, config: ConvffnConfig, operands: Operands, out: Tensor) -> KernelLaunch:
        """One program a tile of pixels."""
        from .kernel import convffn_kernel

        x, residual = operands["x"], operands.get("residual")
        w1, w2 = operands["w1"].flatten(1), operands["w2"].flatten(1)
        rows = layout.rows_of(x)
        tma = config.tma and rows is not None and describable(rows, w1, w2)
        widest = 16 // problem.itemsize
        args = row_arguments("x", x, widest) | row_arguments("r", residual, widest) | row_arguments("o", out, widest) | {
            **operands, "w1": w1, "w2": w2, "residual": residual, "out": out, "J": pixels(problem),
            "C": problem.c, "HIDDEN": problem.hidden, "BP": config.pixels, "BH": config.step, "TMA": tma,
            "ACTIVATION": problem.epilogue.activation, "HAS_RESIDUAL": residual is not None,
            "CAST_OPERANDS": problem.dtype == "bfloat16" and gpus.interpreted(),
        }  # fmt: skip
        if rows is not None and tma:
            from triton.tools.tensor_descriptor import TensorDescriptor

            args |= {
                "x": TensorDescriptor.from_tensor(rows, [problem.c, config.pixels]),
                "w1": TensorDescriptor.from_tensor(w1, [config.step, problem.c]),
                "w2": TensorDescriptor.from_tensor(w2, [problem.c, config.step]),
            }
        return KernelLaunch(convffn_kernel, (tiles_of(problem, config),), args, config.num_warps, config.num_stages)


def _fits(problem: FfnProblem, config: ConvffnConfig, gpu: Gpu) -> bool:
    """Whether the device can launch ``config`` without spills."""
    return (
        (gpu.capability >= 90 or not config.tma)
        and problem.hidden % config.step == 0
        and registers(problem, config, gpu) <= MAX_REGISTERS
        and shared_bytes(problem, config) <= gpu.shared_per_block
    )
