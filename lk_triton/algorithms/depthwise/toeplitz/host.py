"""Host side of ``toeplitz``: one GEMM per channel on tensor cores. The kernel's docstring has the maths."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from .... import gpu as gpus
from ....gpu import Gpu
from ....ops.problem import ConvProblem, Operands
from ...base import KernelLaunch, TritonAlgorithm, image_vector, plane_arguments
from ...cost.dot import Dot, precisions, rate
from ...cost.roofline import Estimate, activation_bytes, roofline
from ...cost.wave import Wave
from ...needs import needs_precision, needs_tensor_cores
from .config import ToeplitzConfig
from .cost import (
    WINDOWS,
    bank_bytes,
    dot_of,
    issued_macs,
    launch_cost,
    loads_per_thread,
    registers,
    row_length,
    shared_bytes,
    tile_blocks,
    window_of,
)

BANK_VECTORS = {2: (4, 8), 4: (2, 4)}
"""Bank vector lengths by itemsize: 8-byte loads, which go through L1, and 16-byte loads, which bypass it."""

BANK_LIMIT = 4 * 2**20
"""Banks above this many bytes are made only where there is no smaller format."""

TILES = ((16, False), (32, False), (64, False), (128, False), (256, False), (16, True), (32, True))
"""(tiles, swap): the M of a program, and whether tiles are the GEMM's N instead."""

OVERLAP = 0.65
"""Share of its slowest resource that an SM reaches in the step loop, because loads and products wait for each other at every
step. This and the next two are fitted to 890 configs of 14 problems on an H100 (docs/tuning.md), assumed for other GPUs."""

START_CLOCKS = 2000
"""From a program's start to its first step."""

STORE_CLOCKS = 12
"""From the last step to a program's end, per output column of 64 tiles."""

MOST_OVERLAP = 4
"""Programs on an SM that hide each other's starts and stores, at most."""

MAX_STEP_K = 128
"""Longest step of several rows."""

MAX_REGISTERS = {2: 210, 4: 190}
"""By itemsize, as ``registers`` counts; kernels above it spill (offline compilation for sm_80, sm_90 and sm_100)."""


class ToeplitzAlgorithm(TritonAlgorithm):
    """Stride 1, any odd kernel, on GPUs with usable MMA (sm_80 and newer, or ROCm)."""

    name = "toeplitz"
    versions: ClassVar = {"toeplitz": 1}  # raised when the kernel, its launch or its packing changes
    config_type = ToeplitzConfig
    weight_parameter = "bank"

    def why_not(self, problem: ConvProblem, gpu: Gpu) -> str | None:
        """Plain convolutions whose windows are not too wide, on matrix units."""
        reason = super().why_not(problem, gpu) or needs_tensor_cores(gpu) or why_not_plain(problem)
        if (reason := reason or needs_precision(problem, gpu)) is not None:
            return reason
        if window_of(problem, 8) is None:
            return f"a {problem.kw} wide kernel needs windows of more than {sum(WINDOWS[-1])} columns"
        return None

    def configs(self, problem: ConvProblem, gpu: Gpu) -> list[ToeplitzConfig]:
        """Tiles of 32 to 256 outputs, every way to feed them, as far as registers and shared memory go."""
        few, many = BANK_VECTORS[problem.itemsize]
        vectors = (few, many) if bank_bytes(problem, many) <= BANK_LIMIT else (few,)
        # at equal estimates, the first
        axes = product(_geometries(problem), vectors, precisions(problem, gpu), (4, 8), (3, 2, 4, 1))
        found = (
            ToeplitzConfig(
                rows=rows, columns=columns, window=window, tiles=tiles, vector=vector, num_warps=warps, num_stages=stages,
                precision=precision, step_rows=step_rows, swap=swap,
            )
            for ((rows, columns), (window, step_rows), (tiles, swap)), vector, precision, warps, stages in axes
        )  # fmt: skip
        return [config for config in found if _fits(problem, config, gpu)]

    def estimate(self, problem: ConvProblem, config: ToeplitzConfig, gpu: Gpu) -> Estimate:
        """The slowest resource of the fullest SM (MMA, shared memory with L1, L2, issue slots) with the programs' starts and
        stores, DRAM, or L2's latency."""
        counted, dot = launch_cost(problem, config), dot_of(problem, config, gpu)
        size = problem.itemsize
        wave = Wave(counted.programs, gpu)
        loop = wave.fullest / OVERLAP  # of the fullest SM
        asynchronous = config.num_stages > 1 and gpu.backend == "cuda"
        image_bypasses = asynchronous and image_vector(problem) * size == 16
        bank_bypasses = asynchronous and config.vector * size == 16
        outside = activation_bytes(problem)

        shared = counted.steps * config.step_k * (dot.operand_reads + config.tiles + config.outputs) * size
        shared += (0 if image_bypasses else counted.image_bytes) + (0 if bank_bypasses else counted.bank_bytes)
        bank_l2 = counted.bank_bytes if bank_bypasses else counted.bank_rows_bytes
        issued = counted.steps * config.num_warps * _instructions(problem, config, dot)
        resident = gpu.programs_at_once(
            registers(problem, config, dot), shared_bytes(problem, config, dot), config.num_warps, dot.tensor_columns
        )
        rounds = ceil(wave.per_sm / resident)
        ends = START_CLOCKS + STORE_CLOCKS * config.outputs * config.tiles / 64
        exposed = wave.most * ends / min(resident, MOST_OVERLAP) * gpu.sms / gpu.clocks
        overlap = max(config.num_stages - 1, 0.5)
        return roofline(
            problem,
            gpu,
            mma=2 * counted.macs / rate(dot, config.precision, gpu) * loop + exposed,
            smem=wave.shared(shared) * loop + exposed,
            l2=wave.l2(counted.image_bytes + bank_l2 + outside) * loop + exposed,
            issue=wave.issue(issued) * loop + exposed,
            latency=rounds * counted.steps / counted.programs * gpu.l2_latency_ns * 1e-9 / overlap,
            dram=wave.dram(outside + bank_bytes(problem, config.vector)),
        )

    def issued_macs(self, problem: ConvProblem, config: ToeplitzConfig) -> int:
        return issued_macs(problem, config)

    def prepacked_bytes(self, problem: ConvProblem, config: ToeplitzConfig) -> int:
        """Every filter row as often as a vector is long."""
        return bank_bytes(problem, config.vector)

    def weight_format(self, config: ToeplitzConfig) -> str | None:
        """Shifted filter rows, named by the vector length."""
        return f"toeplitz/{config.vector}"

    def prepack(self, weight: Tensor, problem: ConvProblem, config: ToeplitzConfig) -> Tensor:
        """weight (C, 1, KH, KW) -> bank (C, KH, V, L)."""
        return pack(weight, config.vector)

    def kernel_launch(self, problem: ConvProblem, config: ToeplitzConfig, operands: Operands, out: Tensor) -> KernelLaunch:
        """One program per (channel, column tile, block of tiles)."""
        from .kernel import toeplitz_kernel

        bias = operands.get("bias")
        blocks = tile_blocks(problem, config)
        column_tiles = ceil(problem.ow / config.columns)
        args = plane_arguments(problem, operands, out) | {
            "bank": operands["weight"], "bias": bias, "HAS_BIAS": bias is not None,
            "groups": ceil(problem.oh / config.rows), "tile_blocks": blocks, "column_tiles": column_tiles,
            "pad_h": problem.padding[0], "pad_w": problem.padding[1], "KH": problem.kh,
            "R": config.rows, "WT": config.columns, "D": config.step_rows, "KIN_A": config.window[0],
            "KIN_B": config.window[1], "BM": config.tiles, "GROUPS": _groups(problem.n, config.tiles), "SWAP": config.swap,
            "V": config.vector, "L": row_length(problem.kw, config.vector),
            "MASK_COLUMNS": sum(config.window) > problem.w, "PRECISION": config.precision,
            "CAST_OPERANDS": problem.dtype == "bfloat16" and gpus.interpreted(),
        }  # fmt: skip
        grid = (problem.c * column_tiles * blocks,)
        return KernelLaunch(toeplitz_kernel, grid, args, config.num_warps, config.num_stages)


def why_not_plain(problem: ConvProblem) -> str | None:
    """The Toeplitz matrix takes stride 1, no dilation, one filter a channel, odd kernels."""
    if problem.stride != (1, 1):
        return f"stride {problem.stride} is not (1, 1)"
    if problem.dilation != (1, 1):
        return f"dilation {problem.dilation} is not (1, 1)"
    if problem.multiplier != 1:
        return f"channel multiplier {problem.multiplier} is not 1"
    if problem.kh % 2 == 0 or problem.kw % 2 == 0:
        return f"kernel {problem.kh}x{problem.kw} is not odd"
    return None


def pack(weight: Tensor, vector: int) -> Tensor:
    """weight (C, 1, KH, KW) -> bank (C, KH, V, L): V copies of each filter row, copy v shifted by v elements."""
    from .kernel import pack_kernel

    c, _, kh, kw = weight.shape
    length = row_length(kw, vector)
    bank = torch.empty((c, kh, vector, length), dtype=weight.dtype, device=weight.device)
    args = {"weight": weight.contiguous(), "bank": bank, "KH": kh, "KW": kw}
    args |= {"V": vector, "L": length, "BLOCK": _power_of_two(vector * length)}
    KernelLaunch(pack_kernel, (c * kh,), args, num_warps=1, num_stages=1).run(weight.device)
    return bank


def _groups(n: int, tiles: int) -> int:
    """Row groups of a block where all blocks are alike: each with the same images. Otherwise 0."""
    return 1 if n % tiles == 0 else tiles // n if tiles % n == 0 else 0


def _geometries(problem: ConvProblem) -> Iterator[tuple[tuple[int, int], tuple[tuple[int, int], int], tuple[int, bool]]]:
    """((rows, columns), (window, step_rows), (tiles, swap)) of what suits the map."""
    for rows, columns in _tile_shapes(problem):
        most = max(16, _power_of_two(ceil(problem.n * problem.oh / rows)))
        tiles = [(tiles, swap) for tiles, swap in TILES if tiles <= most and not (swap and rows * columns < 64)]
        yield from product([(rows, columns)], _windows(problem, columns), tiles)


def _tile_shapes(problem: ConvProblem) -> list[tuple[int, int]]:
    """(rows, columns) of 32 to 256 outputs, hardly larger than the map."""
    rows = [r for r in (1, 2, 4, 8, 16, 32) if r <= max(4, _power_of_two(problem.oh))]
    columns = [w for w in (8, 16, 32, 64) if w <= max(8, _power_of_two(problem.ow))]
    return [(r, w) for r, w in product(rows, columns) if 32 <= r * w <= 256]


def _windows(problem: ConvProblem, columns: int) -> list[tuple[tuple[int, int], int]]:
    """(window, step_rows): one row a step, or several as long as a step's K stays at most ``MAX_STEP_K``."""
    window = window_of(problem, columns)
    if window is None:
        return []
    found = [(window, 1)] if window[0] >= 16 else [((16, 0), 1)]
    return found + [(window, d) for d in (2, 4, 8, 16) if 16 <= d * window[0] <= MAX_STEP_K and d < 2 * problem.h]


def _fits(problem: ConvProblem, config: ToeplitzConfig, gpu: Gpu) -> bool:
    """Whether the device can launch ``config`` without spills, and more warps than accumulators need are not wasted."""
    accumulators = config.tiles * config.outputs
    turn = (64 if problem.itemsize == 2 else 32) * 4 * gpu.warp_size
    if accumulators < turn if config.num_warps == 8 else accumulators > turn:
        return False
    dot = dot_of(problem, config, gpu)
    if dot.tensor_columns > gpu.tensor_columns:
        return False
    limit = MAX_REGISTERS[problem.itemsize]
    if dot.kind == "mfma":
        limit = gpu.registers_per_sm / (gpu.warp_size * config.num_warps)
    # the smallest tile stays whatever it needs, so that wide float32 windows are served at all
    in_registers = registers(problem, config, dot) <= limit
    return (in_registers or accumulators == 16 * 32) and shared_bytes(problem, config, dot) <= gpu.shared_per_block


def _instructions(problem: ConvProblem, config: ToeplitzConfig, dot: Dot) -> float:
    """Instructions of one warp in one step: loop and barriers, each load with its address and mask, the products.

    Counted in offline compilations for sm_80, sm_90, sm_100 and gfx942.
    """
    return 50 + 9 * sum(loads_per_thread(problem, config, dot)) + dot.instructions


def _power_of_two(value: int) -> int:
    """The smallest power of two that is at least ``value``."""
    return 1 << (value - 1).bit_length()
