"""What a ``convffn`` launch does and needs, counted from problem and config."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

from ....gpu import Gpu
from ....ops.problem import FfnProblem
from ...cost.dot import Dot, kind_of
from ...dense.base import EPILOGUE_INSTRUCTIONS, pixels
from .config import ConvffnConfig


def tiles_of(problem: FfnProblem, config: ConvffnConfig) -> int:
    """Programs of a launch."""
    return ceil(pixels(problem) / config.pixels)


def steps_of(problem: FfnProblem, config: ConvffnConfig) -> int:
    """Steps of a program."""
    return problem.hidden // config.step


def issued_macs(problem: FfnProblem, config: ConvffnConfig) -> int:
    """Multiply-adds of all ``tl.dot`` calls of a launch."""
    return tiles_of(problem, config) * config.pixels * 2 * problem.c * problem.hidden


def weight_bytes(problem: FfnProblem) -> int:
    """Memory of both weights."""
    return 2 * problem.c * problem.hidden * problem.itemsize


def dots_of(problem: FfnProblem, config: ConvffnConfig, gpu: Gpu) -> tuple[Dot, Dot]:
    """The two products of a step."""

    def dot(n: int, k: int) -> Dot:
        kind = kind_of(gpu, config.pixels, "ieee", problem.itemsize)
        return Dot(kind, config.pixels, n, k, problem.itemsize, config.num_warps, gpu.warp_size, split=False)

    return dot(config.step, problem.c), dot(problem.c, config.step)


def per_thread(problem: FfnProblem, config: ConvffnConfig, gpu: Gpu) -> tuple[float, float]:
    """Hidden values of a step, and outputs, in the registers of one thread."""
    threads = gpu.warp_size * config.num_warps
    return config.pixels * config.step / threads, config.pixels * problem.c / threads


def shared_bytes(problem: FfnProblem, config: ConvffnConfig) -> int:
    """Shared memory of one program, an upper bound: x and the weights of the steps in flight, or the outputs in float32."""
    x, weights = (side * problem.c * problem.itemsize for side in (config.pixels, 2 * config.step))
    return max(x + config.num_stages * weights, config.pixels * (problem.c + 4) * 4) + 512


def registers(problem: FfnProblem, config: ConvffnConfig, gpu: Gpu) -> float:
    """Registers per thread, an estimate that follows compiled kernels: accumulators, the hidden values (fragments of operands
    beside them), addresses."""
    hidden, outputs = per_thread(problem, config, gpu)
    return 1.3 * outputs + (hidden + 10 if gpu.mma_family in ("wgmma", "tcgen05") else 2 * hidden + 38)


def tensor_columns(problem: FfnProblem, config: ConvffnConfig, gpu: Gpu) -> int:
    """Of tensor memory, for the accumulators of both products: a power of two."""
    return 1 << (problem.c + config.step - 1).bit_length() if gpu.tensor_columns else 0


@lru_cache(maxsize=4096)
def programs_per_sm(problem: FfnProblem, config: ConvffnConfig, gpu: Gpu) -> int:
    """How many programs are resident on one SM."""
    return gpu.programs_at_once(
        registers(problem, config, gpu), shared_bytes(problem, config), config.num_warps,
        tensor_columns(problem, config, gpu),
    )  # fmt: skip


def instructions(problem: FfnProblem, config: ConvffnConfig, gpu: Gpu) -> float:
    """Of one warp in one step, counted in offline compilations for sm_90: bias, activation and cast of the hidden values."""
    hidden, outputs = per_thread(problem, config, gpu)
    each = 1.5 + EPILOGUE_INSTRUCTIONS[problem.epilogue.activation] - EPILOGUE_INSTRUCTIONS[None]
    loads = 0.0 if config.tma else 2 * config.step * problem.c * problem.itemsize / 16 / gpu.warp_size / config.num_warps
    products = sum(dot.instructions for dot in dots_of(problem, config, gpu))
    return 75 + each * hidden + 0.5 * outputs + 5 * loads + products
