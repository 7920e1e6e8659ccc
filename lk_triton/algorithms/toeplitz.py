"""Host side of ``toeplitz``: one GEMM per channel on tensor cores. The kernel's docstring has the maths."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from .. import device as devices
from ..device import Device
from ..problem import ConvProblem
from .base import MMA_EFFICIENCY, Estimate, KernelLaunch, TritonAlgorithm, activation_bytes, roofline, vector_width

BANK_VECTORS = {2: (4, 8), 4: (2, 4)}
"""Bank vector lengths by itemsize: 8-byte loads, which go through L1, and 16-byte loads, which bypass it."""

MAX_ACCUMULATORS = {2: 128 * 256, 4: 64 * 128}
"""Largest tile of fp32 accumulators by operand itemsize: more spills (offline compilation for sm_80 and sm_90)."""


@dataclass(frozen=True)
class ToeplitzConfig:
    """Compile-time choices.

    Attributes:
        rows: R, output rows of a tile.
        columns: WT, output columns of a tile; rows * columns is the GEMM's N.
        window: Kin as the sum of one or two powers of two, each a dot.
        tiles: M, tiles of a program.
        vector: bank elements per load.
        precision: how float32 products are formed; ``ieee`` for half types, where it changes nothing.
    """

    rows: int
    columns: int
    window: tuple[int, int]
    tiles: int
    vector: int
    num_warps: int
    num_stages: int
    precision: str = "ieee"


class ToeplitzAlgorithm(TritonAlgorithm):
    """Stride 1, any odd kernel, on GPUs with usable MMA (sm_80 and newer, or ROCm)."""

    name = "toeplitz"
    config_type = ToeplitzConfig

    def supports(self, problem: ConvProblem, device: Device) -> str | None:
        """None, or why not."""
        if device.backend == "cuda" and device.capability < 80:
            return f"GPU {device.name} is {device.arch}: tensor cores need sm_80 or newer"
        if problem.stride != (1, 1):
            return f"stride {problem.stride} is not (1, 1)"
        return super().supports(problem, device)

    def configs(self, problem: ConvProblem, device: Device) -> list[ToeplitzConfig]:
        """Tiles of at most 256 outputs and the bank vectors of 8 and 16 bytes, as far as they fit the device."""
        size = problem.itemsize
        most = MAX_ACCUMULATORS[size] // (2 if problem.epilogue.residual else 1)
        found = []
        for rows in (1, 2, 4, 8, 16):
            for columns in (8, 16, 32, 64):
                if rows > max(4, _power_of_two(problem.oh)) or columns > max(8, _power_of_two(problem.ow)):
                    continue
                window = window_of(problem, columns)
                if window is None or not 32 <= rows * columns <= 256:
                    continue
                tiles_at_hand = problem.n * ceil(problem.oh / rows)
                for tiles in (16, 64, 128):
                    accumulators = tiles * rows * columns
                    if tiles > max(16, _power_of_two(tiles_at_hand)) or accumulators > most:
                        continue
                    warps = 8 if accumulators > (64 * 128 if size == 2 else 32 * 128) else 4
                    for vector in BANK_VECTORS[size]:
                        for precision in precisions(problem, device):
                            stages = 3 if size == 2 else 2
                            config = ToeplitzConfig(rows, columns, window, tiles, vector, warps, stages, precision)
                            if shared_bytes(problem, config) <= device.shared_per_block:
                                found.append(config)
        return found

    def estimate(self, problem: ConvProblem, config: ToeplitzConfig, device: Device) -> Estimate:
        """MMA peak, operands through L2, or DRAM; whole waves of programs."""
        macs = issued_macs(problem, config)
        if problem.itemsize == 2:
            peak = device.mma_half_tflops
        elif config.precision == "ieee":
            peak = device.fp32_tflops
        else:
            peak = device.mma_tf32_tflops / (3 if config.precision == "tf32x3" else 1)
        fill = min(1.0, config.tiles / 64)
        n = config.rows * config.columns
        operand_bytes = macs * (1 / config.tiles + 1 / n) * problem.itemsize
        dram = activation_bytes(problem) + self.bank_bytes(problem, config)
        programs = problem.c * _tile_blocks(problem, config) * ceil(problem.ow / config.columns)
        waves = programs / device.sms
        partial = ceil(waves) / waves
        return roofline(
            device,
            mma=2 * macs / (peak * 1e12 * MMA_EFFICIENCY * fill) * partial,
            l2=operand_bytes / (device.l2_gbps * 1e9) * partial,
            dram=dram / (device.dram_gbps * 1e9),
        )

    def bank_format(self, config: ToeplitzConfig) -> str | None:
        """Shifted filter rows, named by the vector length."""
        return f"toeplitz/{config.vector}"

    def bank_bytes(self, problem: ConvProblem, config: ToeplitzConfig) -> int:
        """Memory of the packed weights, in bytes."""
        return problem.c * problem.kh * config.vector * _row_length(problem, config) * problem.itemsize

    def pack(self, weight: Tensor, problem: ConvProblem, config: ToeplitzConfig) -> Tensor:
        """weight (C, 1, KH, KW) -> bank (C, KH, V, L): V copies of each filter row, copy v shifted by v."""
        length = _row_length(problem, config)
        bank = torch.empty((problem.c, problem.kh, config.vector, length), dtype=weight.dtype, device=weight.device)
        self.pack_launch(weight, bank).run(weight.device)
        return bank

    def pack_launch(self, weight: Tensor, bank: Tensor) -> KernelLaunch:
        """The launch that fills ``bank`` (C, KH, V, L) from ``weight`` (C, 1, KH, KW)."""
        from ..kernels.toeplitz import pack_kernel

        c, kh, v, length = bank.shape
        kw = weight.shape[3]
        args = {"weight": weight.contiguous(), "bank": bank, "KH": kh, "KW": kw}
        args |= {"V": v, "L": length, "BLOCK": _power_of_two(v * length)}
        return KernelLaunch(pack_kernel, (c * kh,), args, num_warps=1, num_stages=1)

    def kernel_launch(
        self, problem: ConvProblem, config: ToeplitzConfig, x: Tensor, bank: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor
    ) -> KernelLaunch:
        """One program per (channel, column tile, block of tiles)."""
        from ..kernels.toeplitz import toeplitz_kernel

        widest = 16 // problem.itemsize
        xv = vector_width(widest, [x], problem.w)
        ov = vector_width(widest, [out, residual], problem.ow)
        res = out if residual is None else residual
        tile_blocks = _tile_blocks(problem, config)
        column_tiles = ceil(problem.ow / config.columns)
        args = {
            "x": x, "bank": bank, "bias": bias, "residual": residual, "out": out,
            "N": problem.n, "H": problem.h, "W_v": problem.w // xv, "OH": problem.oh, "OW_v": problem.ow // ov,
            "groups": ceil(problem.oh / config.rows), "tile_blocks": tile_blocks, "column_tiles": column_tiles,
            "stride_xn": x.stride(0) // xv, "stride_xc": x.stride(1) // xv,
            "stride_rn": res.stride(0) // ov, "stride_rc": res.stride(1) // ov,
            "stride_on": out.stride(0) // ov, "stride_oc": out.stride(1) // ov,
            "pad_h": problem.padding[0], "pad_w": problem.padding[1], "KH": problem.kh,
            "R": config.rows, "WT": config.columns, "KIN_A": config.window[0], "KIN_B": config.window[1],
            "BM": config.tiles, "V": config.vector, "L": _row_length(problem, config), "XV": xv, "OV": ov,
            "MASK_COLUMNS": sum(config.window) > problem.w, "HAS_BIAS": bias is not None,
            "ACTIVATION": problem.epilogue.activation, "HAS_RESIDUAL": residual is not None,
            "PRECISION": config.precision,
            "CAST_OPERANDS": problem.dtype == "bfloat16" and devices.interpreted(),
        }  # fmt: skip
        grid = (problem.c * column_tiles * tile_blocks,)
        return KernelLaunch(toeplitz_kernel, grid, args, config.num_warps, config.num_stages)


def precisions(problem: ConvProblem, device: Device) -> tuple[str, ...]:
    """The dot precisions that answer the problem's request; float32 by default wants float32-class accuracy."""
    if problem.dtype != "float32":
        return ("ieee",)
    if device.backend == "hip":
        return ("ieee",) if problem.precision in (None, "ieee") else ()
    return (problem.precision,) if problem.precision else ("tf32x3", "ieee")


def shared_bytes(problem: ConvProblem, config: ToeplitzConfig) -> int:
    """Shared memory of one program: the pipelined operands, or the accumulators on their way out."""
    n = config.rows * config.columns
    operands = config.num_stages * sum(config.window) * (config.tiles + n) * problem.itemsize
    if config.precision == "tf32x3":
        # the low parts of the bank's values
        operands += sum(config.window) * n * problem.itemsize
    return max(operands, config.tiles * n * problem.itemsize)


def issued_macs(problem: ConvProblem, config: ToeplitzConfig) -> int:
    """Multiply-adds of all ``tl.dot`` calls of a launch; nominal_macs / issued_macs is the useful share."""
    per_step = config.tiles * config.rows * config.columns * sum(config.window)
    return problem.c * ceil(problem.ow / config.columns) * _steps(problem, config.rows, config.tiles) * per_step


@lru_cache(maxsize=1024)
def _steps(problem: ConvProblem, rows: int, tiles: int) -> int:
    """Steps of all tile blocks of one channel and column tile, as the kernel's loop bounds have them."""
    groups = ceil(problem.oh / rows)
    total = 0
    for block in range(ceil(problem.n * groups / tiles)):
        first_group = block * tiles // problem.n
        last_group = min((block * tiles + tiles - 1) // problem.n, groups - 1)
        first = max(problem.padding[0] - last_group * rows, 0)
        last = min(rows + problem.kh - 1, problem.h + problem.padding[0] - first_group * rows)
        total += max(last - first, 0)
    return total


@lru_cache(maxsize=1024)
def window_of(problem: ConvProblem, columns: int) -> tuple[int, int] | None:
    """The smallest window that shows every tile of ``columns`` outputs all that it reads; None above 256.

    A sum of one or two powers of two of at least 16, the least K of a dot.
    """
    w, kw, pad = problem.w, problem.kw, problem.padding[1]
    align = vector_width(16 // problem.itemsize, [], w)
    for parts in ((16, 0), (32, 0), (32, 16), (64, 0), (64, 16), (64, 32), (128, 0), (128, 32), (128, 64), (256, 0)):
        size = sum(parts)
        for column0 in range(0, problem.ow, columns):
            start = max(min(max(column0 - pad, 0) // align * align, (w - size) // align * align), 0)
            first = max(column0 - pad, 0)
            last = min(w, min(column0 + columns, problem.ow) - pad + kw - 1)
            if start > first or start + size < last:
                break
        else:
            return parts
    return None


def _row_length(problem: ConvProblem, config: ToeplitzConfig) -> int:
    """L: elements of one shifted filter row, a multiple of the vector."""
    return ceil((problem.kw + config.vector - 1) / config.vector) * config.vector


def _tile_blocks(problem: ConvProblem, config: ToeplitzConfig) -> int:
    return ceil(problem.n * ceil(problem.oh / config.rows) / config.tiles)


def _power_of_two(value: int) -> int:
    """The smallest power of two that is at least ``value``."""
    return 1 << (value - 1).bit_length()
