"""Host side of ``implicit_gemm``: a dense convolution of few channels as one product. The kernel's docstring has the maths."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any, ClassVar

from torch import Tensor

from .... import gpu as gpus
from ....gpu import Gpu
from ....ops.problem import DenseProblem, Operands
from ...base import KernelLaunch
from ...cost.dot import Dot, kind_of, precisions, rate
from ...cost.roofline import Estimate, activation_bytes, roofline
from ...cost.wave import Wave
from ...needs import needs_precision, needs_tensor_cores
from ..base import PixelMatrixAlgorithm, epilogue_instructions, pixels, row_arguments, weight_bytes

MOST_TAPS = 256
"""More than these do not fit one product; the layers behind the first have them."""

MOST_GATHERED = {2: 64, 4: 16}
"""Pixels of a thread by itemsize; more spill (offline compilation for sm_80, sm_90 and sm_100)."""

GATHER_INSTRUCTIONS = 10
"""Of one warp for 32 gathered elements: address, mask, load, and the way to shared memory; counted in an offline compilation
for sm_90."""


@dataclass(frozen=True)
class ImplicitGemmConfig:
    """Compile-time choices: BM x BN, output channels and pixels of a tile."""

    rows: int
    columns: int
    num_warps: int
    precision: str = "ieee"


class ImplicitGemmAlgorithm(PixelMatrixAlgorithm):
    """Dense convolutions of at most 256 taps (input channels times kernel), any stride and padding."""

    name = "implicit_gemm"
    versions: ClassVar = {"implicit_gemm": 1}  # raised when the kernel, its launch or its packing changes
    config_type: type[Any] = ImplicitGemmConfig

    def channel_tile(self, problem: DenseProblem, config: ImplicitGemmConfig) -> int:
        """The rows of a tile."""
        return config.rows

    def why_not(self, problem: DenseProblem, gpu: Gpu) -> str | None:
        """Few taps, on matrix units."""
        if (reason := super().why_not(problem, gpu)) is not None:
            return reason
        if problem.pointwise:
            return "1x1 convolutions are pointwise's"
        if taps(problem) > MOST_TAPS:
            return f"{problem.c} channels of {problem.kh}x{problem.kw} are {taps(problem)} taps, more than {MOST_TAPS}"
        return needs_tensor_cores(gpu) or needs_precision(problem, gpu)

    def configs(self, problem: DenseProblem, gpu: Gpu) -> list[ImplicitGemmConfig]:
        """Tiles that are not much larger than the output, and that shared memory and registers hold."""
        tall = max(16, 1 << (problem.out_channels - 1).bit_length())
        depth = padded_taps(problem)
        found = []
        for rows, columns, warps in product((128, 64, 32, 16), (128, 256, 64), (4, 8)):
            threads = gpu.warp_size * warps
            gathered, held = depth * columns / threads, depth * (rows + columns) * problem.itemsize
            fits = gathered <= MOST_GATHERED[problem.itemsize] and held <= gpu.shared_per_block
            if rows <= tall and 4 <= rows * columns / threads <= 64 and fits:
                found += [ImplicitGemmConfig(rows, columns, warps, precision) for precision in precisions(problem, gpu)]
        return found

    def estimate(self, problem: DenseProblem, config: ImplicitGemmConfig, gpu: Gpu) -> Estimate:
        """The slowest resource of the fullest SM (MMA, L2, issue slots), or DRAM."""
        tiles = tiles_of(problem, config)
        wave = Wave(tiles, gpu)
        gathered = tiles * padded_taps(problem) * config.columns
        issued = tiles * config.rows * config.columns * epilogue_instructions(problem) + gathered * GATHER_INSTRUCTIONS
        outside = activation_bytes(problem)
        weights = tiles * config.rows * taps(problem) * problem.itemsize
        return roofline(
            problem,
            gpu,
            mma=2 * issued_macs(problem, config) / rate(dot_of(problem, config, gpu), config.precision, gpu) * wave.fullest,
            l2=wave.l2(outside + weights),
            issue=wave.issue(issued / gpu.warp_size) * wave.fullest,
            dram=wave.dram(outside + weight_bytes(problem)),
        )

    def issued_macs(self, problem: DenseProblem, config: ImplicitGemmConfig) -> int:
        return issued_macs(problem, config)

    def kernel_launch(
        self, problem: DenseProblem, config: ImplicitGemmConfig, operands: Operands, out: Tensor
    ) -> KernelLaunch:
        """One program a tile."""
        from .kernel import stem_kernel

        x, weight = operands["x"], operands["weight"]
        bias, residual = operands.get("bias"), operands.get("residual")
        widest = 16 // problem.itemsize
        args = row_arguments("r", residual, widest) | row_arguments("o", out, widest) | {
            "x": x, "weight": weight, "bias": bias, "residual": residual, "out": out,
            "M": problem.out_channels, "J": pixels(problem), "H": problem.h, "W": problem.w, "OW": problem.ow,
            "plane": problem.oh * problem.ow, "tiles_m": ceil(problem.out_channels / config.rows),
            "stride_xn": x.stride(0), "stride_xc": x.stride(1), "TAPS": taps(problem), "KH": problem.kh, "KW": problem.kw,
            "STRIDE_H": problem.stride[0], "STRIDE_W": problem.stride[1], "PAD_H": problem.padding[0],
            "PAD_W": problem.padding[1], "KP": padded_taps(problem), "BM": config.rows, "BN": config.columns,
            "HAS_BIAS": bias is not None, "ACTIVATION": problem.epilogue.activation, "HAS_RESIDUAL": residual is not None,
            "PRECISION": config.precision, "CAST_OPERANDS": problem.dtype == "bfloat16" and gpus.interpreted(),
        }  # fmt: skip
        return KernelLaunch(stem_kernel, (tiles_of(problem, config),), args, config.num_warps, num_stages=1)


def taps(problem: DenseProblem) -> int:
    """Products of one output."""
    return problem.c * problem.kh * problem.kw


def padded_taps(problem: DenseProblem) -> int:
    """KP: the power of two, at least 16, that the taps fit in."""
    return max(16, 1 << (taps(problem) - 1).bit_length())


def tiles_of(problem: DenseProblem, config: ImplicitGemmConfig) -> int:
    """Output tiles."""
    return ceil(problem.out_channels / config.rows) * ceil(pixels(problem) / config.columns)


def issued_macs(problem: DenseProblem, config: ImplicitGemmConfig) -> int:
    """Multiply-adds of all dots."""
    return tiles_of(problem, config) * config.rows * config.columns * padded_taps(problem)


def dot_of(problem: DenseProblem, config: ImplicitGemmConfig, gpu: Gpu) -> Dot:
    """The product of one tile."""
    return Dot(
        kind=kind_of(gpu, config.rows, config.precision, problem.itemsize), m=config.rows, n=config.columns,
        k=padded_taps(problem), itemsize=problem.itemsize, warps=config.num_warps,
        warp_size=gpu.warp_size, split=config.precision == "tf32x3",
    )  # fmt: skip
