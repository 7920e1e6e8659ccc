"""What a ``pointwise`` launch does and needs, counted from problem and config."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

from ....gpu import Gpu
from ....ops.problem import DenseProblem
from ...base import vector_width
from ...cost.dot import Dot, kind_of
from ..base import one_row, pixels
from .config import PointwiseConfig


def tiles_of(problem: DenseProblem, config: PointwiseConfig) -> int:
    """Output tiles."""
    return ceil(problem.out_channels / config.rows) * ceil(pixels(problem) / config.columns)


def steps_of(problem: DenseProblem, config: PointwiseConfig) -> int:
    """Steps of one tile."""
    return ceil(problem.c / config.step_k)


def issued_macs(problem: DenseProblem, config: PointwiseConfig) -> int:
    """Multiply-adds of all ``tl.dot`` calls of a launch."""
    return tiles_of(problem, config) * config.outputs * steps_of(problem, config) * config.step_k


def operand_bytes(problem: DenseProblem, config: PointwiseConfig) -> tuple[int, int]:
    """Bytes that all tiles read of x and of the weight; what lies beyond either matrix is not read."""
    rows, columns = (ceil(problem.out_channels / config.rows), ceil(pixels(problem) / config.columns))
    return rows * problem.c * pixels(problem) * problem.itemsize, columns * problem.out_channels * problem.c * problem.itemsize


def dot_of(problem: DenseProblem, config: PointwiseConfig, gpu: Gpu) -> Dot:
    """The products of one step."""
    return Dot(
        kind=kind_of(gpu, config.rows, config.precision, problem.itemsize), m=config.rows, n=config.columns,
        k=config.step_k, itemsize=problem.itemsize, warps=config.num_warps,
        warp_size=gpu.warp_size, split=config.precision == "tf32x3",
    )  # fmt: skip


def shared_bytes(problem: DenseProblem, config: PointwiseConfig, gpu: Gpu) -> int:
    """Shared memory of one program, an upper bound: the pipelined operands, and the outputs on their way to the store."""
    dot = dot_of(problem, config, gpu)
    operands = config.num_stages * config.step_k * (config.rows + config.columns) * problem.itemsize
    if dot.kind == "tcgen05":
        operands += 16
    if dot.split:
        operands += config.step_k * (config.rows + config.columns) * problem.itemsize
    outputs = config.rows * (config.columns + 16 // problem.itemsize) * problem.itemsize
    # programs that stay for several tiles load the next one's operands while they store
    return operands + outputs + 1024 if config.tma else max(operands, outputs)


def in_flight(problem: DenseProblem, config: PointwiseConfig) -> int:
    """Steps whose loads are under way at once. Pixels that are moved 2 bytes at a time are not copied asynchronously."""
    narrow = problem.layout != "channel_major" and problem.h * problem.w * problem.itemsize % 4 != 0
    return 1 if narrow else max(config.num_stages - 1, 1)


def loads_per_thread(problem: DenseProblem, config: PointwiseConfig, gpu: Gpu) -> float:
    """16-byte loads of one thread in one step."""
    threads = gpu.warp_size * config.num_warps
    return 0.0 if config.tma else (config.rows + config.columns) * config.step_k * problem.itemsize / 16 / threads


def registers(problem: DenseProblem, config: PointwiseConfig, gpu: Gpu) -> float:
    """Registers per thread, an estimate for kernels that do not spill (tests compile a sample of those that are legal).

    Accumulators, which mma.sync and mfma keep beside their fragments; addresses of loads; what the activation and images that
    are not one row add; a residual's part.
    """
    dot = dot_of(problem, config, gpu)
    accumulators, loads = config.outputs / (dot.warp_size * config.num_warps), loads_per_thread(problem, config, gpu)
    copies, per_load, rest = (1.25, 5, 40) if dot.kind in ("wgmma", "tcgen05") else (2, 6, 50)
    count = copies * accumulators + per_load * loads + rest
    count += {None: 0, "relu": 0, "gelu": 15, "silu": 20}[problem.epilogue.activation]
    if problem.epilogue.residual:
        one_row_out = problem.out_layout == "channel_major" or problem.n == 1
        vector = vector_width(16 // problem.itemsize, [], problem.oh * problem.ow)
        count += (0.25 if one_row_out else 0.25 + 2 / vector) * accumulators  # elsewhere every vector has an address, of two
    count += 0 if one_row(problem) else 20
    return count + (32 + 2 * dot.elements_per_lane if problem.itemsize == 4 else 0)


def tensor_columns(problem: DenseProblem, config: PointwiseConfig, gpu: Gpu) -> int:
    """Of tensor memory; twice where the next tile's products run while this one's are stored."""
    return dot_of(problem, config, gpu).tensor_columns * (2 if config.tma else 1)


@lru_cache(maxsize=4096)
def programs_per_sm(problem: DenseProblem, config: PointwiseConfig, gpu: Gpu) -> int:
    """How many programs are resident on one SM."""
    return gpu.programs_at_once(
        registers(problem, config, gpu), shared_bytes(problem, config, gpu), config.num_warps,
        tensor_columns(problem, config, gpu),
    )  # fmt: skip


def instructions(problem: DenseProblem, config: PointwiseConfig, gpu: Gpu) -> float:
    """Of one warp in one step, counted in offline compilations for sm_80 and sm_90."""
    loads = loads_per_thread(problem, config, gpu)
    return 55 + 5 * loads + dot_of(problem, config, gpu).instructions
