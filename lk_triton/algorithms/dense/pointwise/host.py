"""Host side of ``pointwise``: a 1x1 convolution of the batch as one matrix product. The kernel's docstring has the maths."""

from __future__ import annotations

from itertools import product
from math import ceil
from typing import Any, ClassVar

from torch import Tensor

from .... import gpu as gpus
from ....gpu import Gpu
from ....ops import layout
from ....ops.problem import DenseProblem, Operands
from ...base import KernelLaunch
from ...cost.dot import precisions, rate
from ...cost.roofline import Estimate, activation_bytes, roofline
from ...cost.wave import Wave
from ...needs import needs_pointwise, needs_precision, needs_tensor_cores
from ..base import (
    PixelMatrixAlgorithm,
    describable,
    epilogue_instructions,
    pixels,
    row_arguments,
    rows_are_aligned,
    weight_bytes,
)
from .config import PointwiseConfig
from .cost import (
    dot_of,
    in_flight,
    instructions,
    issued_macs,
    operand_bytes,
    programs_per_sm,
    registers,
    shared_bytes,
    steps_of,
    tensor_columns,
    tiles_of,
)

TILES = tuple((m, n) for m, n in product((64, 128, 32, 256), (64, 128, 256)) if m * n <= 128 * 256)
GROUP = 8
"""Rows of tiles that neighbouring programs go down before they go to the next columns."""

NARROW = (64, 32)
"""A tile for problems that leave SMs without any otherwise: a single small image."""

STEPS, STAGES = {2: (64, 32), 4: (32, 16)}, (3, 4, 2)
"""Input channels of a step, by bytes of an element, and stages of the pipeline."""

DEEP = {64: (6, 8), 128: (4, 6)}
"""More stages, by input channels of a step, for problems that give no SM a second tile: there nothing but the pipeline hides
the loads' latency. 16-bit types only."""

STEP_LATENCY = 800e-9
"""Seconds from a load's issue to its product, nothing else in flight. Fitted to 1x1 convolutions of one image on an H100
(bench/results/h100-2026-11/configs.jsonl): with 2, 3 and 4 stages a step takes 0.87, 0.38 and 0.28 us."""

MAX_REGISTERS = 256
"""As ``registers`` counts; kernels above it spill (offline compilation for sm_80 and sm_90)."""


class PointwiseAlgorithm(PixelMatrixAlgorithm):
    """1x1 convolutions of any sizes."""

    name = "pointwise"
    versions: ClassVar = {"pointwise": 1}  # raised when the kernel, its launch or its packing changes
    config_type: type[Any] = PointwiseConfig

    def channel_tile(self, problem: DenseProblem, config: PointwiseConfig) -> int:
        """The rows of a tile."""
        return config.rows

    def why_not(self, problem: DenseProblem, gpu: Gpu) -> str | None:
        """1x1 convolutions on matrix units."""
        reason = super().why_not(problem, gpu) or needs_pointwise(problem)
        return reason or needs_tensor_cores(gpu) or needs_precision(problem, gpu)

    def configs(self, problem: DenseProblem, gpu: Gpu) -> list[PointwiseConfig]:
        """Every tile that is not much larger than the matrix, as far as registers and shared memory go."""
        wide = 1 << (min(pixels(problem), 256) - 1).bit_length()
        tall = 1 << (min(problem.out_channels, 256) - 1).bit_length()
        found = []
        for (rows, columns), precision in product((*TILES, NARROW), precisions(problem, gpu)):
            if rows > max(32, tall) or columns > max(64, wide):
                continue
            if (rows, columns) == NARROW and _tiles(problem, rows, 64) >= gpu.sms:
                continue
            pipelines = [(step_k, STAGES) for step_k in STEPS[problem.itemsize]]
            if problem.itemsize == 2 and _tiles(problem, rows, columns) <= gpu.sms:
                pipelines += [(k, tuple(s for s in stages if k * s <= problem.c)) for k, stages in DEEP.items()]
            grid = ((step_k, *c) for step_k, stages in pipelines for c in product((8, 4), stages, (True, False)))
            for step_k, warps, stages, tma in grid:  # at equal estimates, the first
                config = PointwiseConfig(rows, columns, step_k, warps, stages, precision, tma)
                if _fits(problem, config, gpu):
                    found.append(config)
        return found

    def estimate(self, problem: DenseProblem, config: PointwiseConfig, gpu: Gpu) -> Estimate:
        """The slowest resource of the fullest SM (MMA, shared memory, L2, issue slots, latency), or DRAM.

        Where an SM holds one program, nothing overlaps its epilogue. Latency: the first step waits for its loads, the others
        for their share of what the pipeline has in flight.
        """
        dot, size = dot_of(problem, config, gpu), problem.itemsize
        tiles, steps = tiles_of(problem, config), steps_of(problem, config)
        wave = Wave(tiles, gpu)
        resident = programs_per_sm(problem, config, gpu)
        filled = tiles * steps * config.step_k * (config.rows + config.columns) * size
        read = tiles * steps * config.step_k * dot.operand_reads * size
        epilogue = tiles * config.outputs / gpu.warp_size * epilogue_instructions(problem)
        exposed = wave.issue(epilogue) * wave.fullest if resident == 1 else 0.0
        issued = tiles * steps * config.num_warps * instructions(problem, config, gpu) + epilogue
        outside = activation_bytes(problem)
        return roofline(
            problem,
            gpu,
            mma=2 * issued_macs(problem, config) / rate(dot, config.precision, gpu) * wave.fullest + exposed,
            smem=wave.shared(filled + read) * wave.fullest + exposed,
            l2=wave.l2(sum(operand_bytes(problem, config)) + outside),
            issue=wave.issue(issued) * wave.fullest,
            latency=ceil(wave.per_sm / resident) * (steps / in_flight(problem, config) + 1) * STEP_LATENCY,
            dram=wave.dram(outside + weight_bytes(problem)),
        )

    def issued_macs(self, problem: DenseProblem, config: PointwiseConfig) -> int:
        return issued_macs(problem, config)

    def kernel_launch(self, problem: DenseProblem, config: PointwiseConfig, operands: Operands, out: Tensor) -> KernelLaunch:
        """One program a tile, or with TMA as many as the device holds at once."""
        from .kernel import pointwise_kernel

        x, weight = operands["x"], operands["weight"]
        bias, residual = operands.get("bias"), operands.get("residual")
        tiles = tiles_of(problem, config)
        gpu = gpus.TABLE["h100"] if x.device.type == "meta" else gpus.of(x.device)  # meta: to compile for elsewhere
        matrices = _matrices(x, weight) if config.tma else None
        tma = matrices is not None
        programs = min(tiles, gpu.sms * programs_per_sm(problem, config, gpu)) if tma else tiles
        widest = 16 // problem.itemsize
        args = row_arguments("x", x, widest) | row_arguments("r", residual, widest) | row_arguments("o", out, widest) | {
            "x": x, "weight": weight, "bias": bias, "residual": residual, "out": out,
            "M": problem.out_channels, "C": problem.c, "J": pixels(problem),
            "tiles_m": ceil(problem.out_channels / config.rows), "tiles_n": ceil(pixels(problem) / config.columns),
            "programs": programs, "BM": config.rows, "BN": config.columns, "BK": config.step_k, "GROUP": GROUP,
            "TMA": tma, "EVEN_K": problem.c % config.step_k == 0,
            "HAS_BIAS": bias is not None, "ACTIVATION": problem.epilogue.activation, "HAS_RESIDUAL": residual is not None,
            "PRECISION": config.precision, "CAST_OPERANDS": problem.dtype == "bfloat16" and gpus.interpreted(),
        }  # fmt: skip
        if matrices is not None:
            args |= _descriptors(config, *matrices)
        return KernelLaunch(pointwise_kernel, (programs,), args, config.num_warps, config.num_stages)


def _fits(problem: DenseProblem, config: PointwiseConfig, gpu: Gpu) -> bool:
    """Whether the device can launch ``config`` without spills, and threads have not too little to do."""
    if config.tma and not (gpu.capability >= 90 and problem.itemsize == 2 and _operands_are_aligned(problem)):
        return False
    accumulators = config.outputs / (gpu.warp_size * config.num_warps)
    if accumulators < 16 or tensor_columns(problem, config, gpu) > gpu.tensor_columns:
        return False
    # the smallest tile stays whatever it needs, so that float32 is served at all
    in_registers = registers(problem, config, gpu) <= MAX_REGISTERS or config.outputs == 32 * 64
    return in_registers and shared_bytes(problem, config, gpu) <= gpu.shared_per_block


def _tiles(problem: DenseProblem, rows: int, columns: int) -> int:
    """Output tiles of that size."""
    return ceil(problem.out_channels / rows) * ceil(pixels(problem) / columns)


def _operands_are_aligned(problem: DenseProblem) -> bool:
    """Whether the rows of x and of the weight begin at multiples of 16 bytes."""
    return rows_are_aligned(problem) and problem.c * problem.itemsize % 16 == 0


def _matrices(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """x as (C, J) and the weight as (M, C), if tensor descriptors can be made of both."""
    rows, matrix = layout.rows_of(x), weight.flatten(1)
    return None if rows is None or not describable(rows, matrix) else (rows, matrix)


def _descriptors(config: PointwiseConfig, x: Tensor, weight: Tensor) -> dict[str, Any]:
    """The kernel arguments ``x`` and ``weight`` as tensor descriptors of their blocks."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return {
        "x": TensorDescriptor.from_tensor(x, [config.step_k, config.columns]),
        "weight": TensorDescriptor.from_tensor(weight, [config.rows, config.step_k]),
    }
