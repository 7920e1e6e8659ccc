"""Host side of ``convstem``: the first three layers of a stem in one launch. The kernel's docstring has the maths."""

from __future__ import annotations

from itertools import product
from typing import Any, ClassVar

from torch import Tensor

from .... import gpu as gpus
from ....gpu import Gpu
from ....ops.problem import Operands, StemProblem
from ...base import KernelLaunch, vector_width
from ...cost.dot import rate
from ...cost.roofline import Estimate, activation_bytes, roofline
from ...cost.wave import Wave
from ...dense.base import PixelMatrixAlgorithm
from ...needs import needs_half, needs_tensor_cores
from .config import ConvstemConfig
from .cost import (
    dots_of,
    instructions,
    issued_macs,
    macs_of_a_row,
    padded_channels,
    padded_taps,
    per_thread,
    programs_per_sm,
    registers,
    shared_bytes,
    strips_of,
    tiles_of,
    weight_bytes,
)

MOST_CHANNELS = 256
"""A program holds all of them."""

MOST_INPUTS = 7
"""Channels of the images: 63 taps and the row of ones are 64."""

ROWS = (4, 8, 14, 16, 28, 32, 56)

MAX_REGISTERS = {"tcgen05": 215}
"""As ``registers`` counts, elsewhere 247; kernels above it spill (offline compilation for sm_80, sm_90 and sm_100)."""


class ConvstemAlgorithm(PixelMatrixAlgorithm):
    """Stems of up to 256 channels in 16-bit types; reads the weights as they are."""

    name = "convstem"
    versions: ClassVar = {"convstem": 1}  # raised when the kernel, its launch or its packing changes
    config_type: type[Any] = ConvstemConfig
    problems = (StemProblem,)

    def channel_tile(self, problem: StemProblem, config: ConvstemConfig) -> int:
        """A program computes all channels."""
        return problem.channels

    def why_not(self, problem: StemProblem, gpu: Gpu) -> str | None:
        """Few channels, and biases."""
        if (reason := super().why_not(problem, gpu) or needs_half(problem)) is not None:
            return reason
        if problem.channels > MOST_CHANNELS:
            return f"{problem.channels} channels are more than {MOST_CHANNELS}"
        if problem.c > MOST_INPUTS:
            return f"images of {problem.c} channels are more than {MOST_INPUTS}"
        if not problem.epilogue.bias:
            return "all layers need a bias"
        return needs_tensor_cores(gpu)

    def configs(self, problem: StemProblem, gpu: Gpu) -> list[ConvstemConfig]:
        """As far as registers and shared memory go; strips no longer than the map needs."""
        least = min((rows for rows in ROWS if rows >= problem.oh), default=ROWS[-1])
        grid = product((64, 32, 16, 128), (rows for rows in ROWS if rows <= least), (8, 4))
        found = (ConvstemConfig(columns, rows, warps) for columns, rows, warps in grid)
        return [config for config in found if _fits(problem, config, gpu)]

    def estimate(self, problem: StemProblem, config: ConvstemConfig, gpu: Gpu) -> Estimate:
        """The products and the instructions between them, one after the other on the fullest SM, or L2, or DRAM.

        A row's products wait for its pixels, the depthwise layer for them, the last product for that: as in ``convffn``,
        another resident program is not taken to fill the gaps. A program alone on its SM also waits for the pixels of each
        shift. Barriers and the latency of products are left out, and no constant is fitted: nothing of this was measured.
        """
        tiles = tiles_of(problem, config)
        wave = Wave(tiles, gpu)
        steps = config.rows + 2
        issue = wave.issue(tiles * steps * config.num_warps * instructions(problem, config, gpu)) * wave.fullest
        row_macs = macs_of_a_row(problem, config)
        rates = [rate(dot, "ieee", gpu) for dot in dots_of(problem, config, gpu)]
        mma = 2 * tiles * (steps * row_macs[0] / rates[0] + config.rows * row_macs[1] / rates[1]) * wave.fullest
        alone = min(programs_per_sm(problem, config, gpu), wave.most) == 1
        waits = 3 * wave.most * steps * gpu.l2_latency_ns * 1e-9 if alone else 0.0
        outside = activation_bytes(problem)
        images = tiles * steps * 3 * problem.c * 2 * config.columns * problem.itemsize
        return roofline(
            problem,
            gpu,
            **{"mma" if mma >= issue else "issue": mma + issue + waits},
            l2=wave.l2(tiles * weight_bytes(problem) + images + outside),
            dram=wave.dram(outside + weight_bytes(problem)),
        )

    def issued_macs(self, problem: StemProblem, config: ConvstemConfig) -> int:
        """Those of all dots, and of the depthwise layer, three rows of it for each of the first map."""
        rows = tiles_of(problem, config) * (config.rows + 2)
        return issued_macs(problem, config) + rows * 9 * padded_channels(problem) * config.columns

    def kernel_launch(self, problem: StemProblem, config: ConvstemConfig, operands: Operands, out: Tensor) -> KernelLaunch:
        """One program a tile of columns."""
        from .kernel import convstem_kernel

        x = operands["x"]
        strips = strips_of(problem, config)
        v = vector_width(16 // problem.itemsize, [out], problem.ow)
        args = {
            **operands, "out": out,
            "S": problem.n * strips * problem.ow, "H": problem.h, "W": problem.w, "OH": problem.oh, "OW": problem.ow,
            "rows": config.rows, "strips": strips, "stride_xn": x.stride(0), "stride_xc": x.stride(1),
            "stride_on_v": out.stride(0) // v, "stride_oc_v": out.stride(1) // v, "OW_v": problem.ow // v,
            "M": problem.channels, "C": padded_channels(problem), "TAPS": 9 * problem.c, "KP": padded_taps(problem),
            "BP": config.columns, "OV": v, "ACTIVATION": problem.epilogue.activation,
            "CAST_OPERANDS": problem.dtype == "bfloat16" and gpus.interpreted(),
        }  # fmt: skip
        return KernelLaunch(convstem_kernel, (tiles_of(problem, config),), args, config.num_warps, num_stages=1)


def _fits(problem: StemProblem, config: ConvstemConfig, gpu: Gpu) -> bool:
    """Whether the device can launch ``config`` without spills; threads with few values are left out.

    Eight warps of 64 spill where four do not (offline compilation for gfx942).
    """
    values, gathered = per_thread(problem, config, gpu)
    return (
        values >= min(8, padded_channels(problem) / 8)
        and gathered >= 1
        and (gpu.backend == "cuda" or config.num_warps == 4)
        and registers(problem, config, gpu) <= MAX_REGISTERS.get(gpu.mma_family, 247)
        and shared_bytes(problem, config) <= gpu.shared_per_block
    )
