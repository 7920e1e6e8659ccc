"""What a ``convstem`` launch does and needs, counted from problem and config."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

from ....gpu import Gpu
from ....ops.problem import StemProblem
from ...base import vector_width
from ...cost.dot import Dot, kind_of
from ...dense.base import EPILOGUE_INSTRUCTIONS
from .config import ConvstemConfig


def padded_channels(problem: StemProblem) -> int:
    """C: the power of two, at least 16, that the channels fit in."""
    return max(16, 1 << (problem.channels - 1).bit_length())


def padded_taps(problem: StemProblem) -> int:
    """KP: the power of two, at least 16, that the first layer's taps and the row of ones fit in."""
    return max(16, 1 << (9 * problem.c).bit_length())


def strips_of(problem: StemProblem, config: ConvstemConfig) -> int:
    """Of one image."""
    return ceil(problem.oh / config.rows)


def tiles_of(problem: StemProblem, config: ConvstemConfig) -> int:
    """Programs of a launch."""
    return ceil(problem.n * strips_of(problem, config) * problem.ow / config.columns)


def macs_of_a_row(problem: StemProblem, config: ConvstemConfig) -> tuple[int, int]:
    """Multiply-adds of the products: for a row of the first map, and of the third."""
    channels = padded_channels(problem)
    return 3 * channels * padded_taps(problem) * config.columns, channels * channels * config.columns


def issued_macs(problem: StemProblem, config: ConvstemConfig) -> int:
    """Multiply-adds of all ``tl.dot`` calls of a launch; the depthwise layer's are not among them."""
    first, third = macs_of_a_row(problem, config)
    return tiles_of(problem, config) * ((config.rows + 2) * first + config.rows * third)


def weight_bytes(problem: StemProblem) -> int:
    """Memory of the weights that a program keeps: the first and the third layer's."""
    return problem.channels * (9 * problem.c + problem.channels) * problem.itemsize


def dots_of(problem: StemProblem, config: ConvstemConfig, gpu: Gpu) -> tuple[Dot, Dot]:
    """One of the three products of a row of the first map, and that of the third."""
    channels = padded_channels(problem)

    def dot(k: int) -> Dot:
        kind = kind_of(gpu, channels, "ieee", problem.itemsize)
        return Dot(kind, channels, config.columns, k, problem.itemsize, config.num_warps, gpu.warp_size, split=False)

    return dot(padded_taps(problem)), dot(channels)


def per_thread(problem: StemProblem, config: ConvstemConfig, gpu: Gpu) -> tuple[float, float]:
    """Values of a map's row, and gathered pixels of one shift, in the registers of one thread."""
    columns = config.columns / gpu.warp_size / config.num_warps
    return padded_channels(problem) * columns, padded_taps(problem) * columns


def channels_per_thread(problem: StemProblem, config: ConvstemConfig, gpu: Gpu) -> float:
    """Whose taps and biases a thread needs: the warps lie along the channels, four lanes of 32 along the columns."""
    return max(2.0, 64 * padded_channels(problem) / 8 / gpu.warp_size / config.num_warps / 2)


def registers(problem: StemProblem, config: ConvstemConfig, gpu: Gpu) -> float:
    """Registers per thread, an estimate that follows compiled kernels: three rows and the one that is made, the
    gathered pixels with their addresses, taps, addresses of vectors of the output, what is left."""
    values, gathered = per_thread(problem, config, gpu)
    newer = gpu.mma_family in ("wgmma", "tcgen05") and padded_channels(problem) >= 64
    taps = 9 * channels_per_thread(problem, config, gpu)
    vectors = values / vector_width(16 // problem.itemsize, [], problem.ow)
    return (4.7 * values if newer else 5.5 * values + 10) + 2 * gathered + taps + vectors + 22


def shared_bytes(problem: StemProblem, config: ConvstemConfig) -> int:
    """Shared memory of one program, an upper bound: both weights, and one row of the second map or of pixels."""
    channels, taps = padded_channels(problem), padded_taps(problem)
    weights = channels * (channels + taps)
    return (weights + max(channels, taps) * config.columns) * problem.itemsize + 2048


def tensor_columns(problem: StemProblem, config: ConvstemConfig, gpu: Gpu) -> int:
    """Of tensor memory, at most."""
    return max(dot.tensor_columns for dot in dots_of(problem, config, gpu)) * (2 if gpu.tensor_columns else 0)


@lru_cache(maxsize=4096)
def programs_per_sm(problem: StemProblem, config: ConvstemConfig, gpu: Gpu) -> int:
    """How many programs are resident on one SM."""
    return gpu.programs_at_once(
        registers(problem, config, gpu), shared_bytes(problem, config), config.num_warps,
        tensor_columns(problem, config, gpu),
    )  # fmt: skip


def instructions(problem: StemProblem, config: ConvstemConfig, gpu: Gpu) -> float:
    """Of one warp for a row, counted in offline compilations for sm_90: nine multiply-adds a value, five activations (three of
    the first map, one of each other), casts; address, mask, load and store of gathered pixels; taps, barriers, indices."""
    values, gathered = per_thread(problem, config, gpu)
    activation = EPILOGUE_INSTRUCTIONS[problem.epilogue.activation] - EPILOGUE_INSTRUCTIONS["relu"]
    first, third = dots_of(problem, config, gpu)
    products = 3 * first.instructions + third.instructions
    taps = 22 * channels_per_thread(problem, config, gpu)
    return 116 + (15 + 5 * activation) * values + 15 * gathered + taps + products
