"""What a ``toeplitz_hopper`` launch does, counted from problem and config; see ``toeplitz/cost.py``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from ....ops.problem import ConvProblem
from ...base import image_vector
from .config import ToeplitzHopperConfig

IMAGES = 64
"""M: images of a tile block, the rows of one warp group's wgmma."""

VECTOR = 4
"""Bank elements per copy: 8 bytes, through L1."""

FILL = 4
"""Filter rows copied at once."""

SECOND_REGISTERS = {256: 240, 128: 200}
"""Of a thread of the second warp group, by outputs of a tile; with others there is none."""


@dataclass(frozen=True)
class Range:
    """What the row groups of one column tile step through.

    Attributes:
        steps: over all groups.
        highest: the largest s of a step; block q of the resident matrix holds filter row ``highest`` - q.
        blocks: of the resident matrix.
    """

    steps: int
    highest: int
    blocks: int


@lru_cache(maxsize=4096)
def steps_of(problem: ConvProblem, rows: int, step_rows: int) -> Range:
    """As the kernel's ``_rows`` has it: group g reads rows g R - pad to g R + R + KH - 2 - pad, as far as the map has them."""
    pad, total = problem.padding[0], 0
    seen: list[int] = []
    for top in range(-pad, problem.oh - pad, rows):
        low = max(top, 0)
        count = ceil((max(min(top + rows + problem.kh - 1, problem.h), low + 1) - low) / step_rows)
        seen += [low - top, low - top + (count - 1) * step_rows]
        total += count
    return Range(total, max(seen), ceil((max(seen) - min(seen) + rows) / FILL) * FILL)


def column_tiles(problem: ConvProblem, config: ToeplitzHopperConfig) -> int:
    """Column tiles of a map."""
    return ceil(problem.ow / config.columns)


def image_blocks(problem: ConvProblem) -> int:
    """Blocks of images of a row group."""
    return ceil(problem.n / IMAGES)


def tile_blocks(problem: ConvProblem, config: ToeplitzHopperConfig) -> int:
    """Tile blocks of a channel and column tile."""
    return ceil(problem.oh / config.rows) * image_blocks(problem)


def steps(problem: ConvProblem, config: ToeplitzHopperConfig) -> int:
    """Steps of all programs."""
    one = steps_of(problem, config.rows, config.step_rows).steps
    return problem.c * column_tiles(problem, config) * image_blocks(problem) * one


def issued_macs(problem: ConvProblem, config: ToeplitzHopperConfig) -> int:
    """Multiply-adds of all products of a launch."""
    return steps(problem, config) * IMAGES * config.outputs * config.step_k


def programs(problem: ConvProblem, config: ToeplitzHopperConfig) -> int:
    """Programs of a launch."""
    return problem.c * column_tiles(problem, config) * config.split


def matrix_elements(problem: ConvProblem, config: ToeplitzHopperConfig) -> int:
    """Elements of the resident matrix."""
    return steps_of(problem, config.rows, config.step_rows).blocks * config.columns * config.step_k


def shared_bytes(problem: ConvProblem, config: ToeplitzHopperConfig) -> int:
    """Shared memory of one program, an upper bound: the matrix, the input rows, and outputs on their way."""
    rows = config.groups * config.buffers * IMAGES * config.step_k
    # outputs change their layout in parts, which are larger where single elements are stored (offline compilation)
    part = min(IMAGES * max(config.outputs, 128) * (2 if config.store == 1 else 1), 16 * 2**10)
    return 2 * (matrix_elements(problem, config) + rows) + config.groups * part + 256


def registers(config: ToeplitzHopperConfig) -> int:
    """Registers per thread, about: accumulators and 64 more; two groups share the whole file (offline compilation)."""
    return 255 if config.groups == 2 else config.outputs // 2 + 70


def most_registers(problem: ConvProblem, config: ToeplitzHopperConfig) -> float:
    """What tells configs that may spill: accumulators, to all of which a residual is added at once, and addresses of loads."""
    loads = max(config.step_k * IMAGES / image_vector(problem) / 128, 1)
    return config.outputs / 2 * (1.75 if problem.epilogue.residual else 1) + 4 * loads + 45
