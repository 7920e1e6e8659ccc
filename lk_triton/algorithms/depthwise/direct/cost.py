"""What a ``direct`` launch does, counted from problem and config: lanes, loads, bytes, instructions.

The kernel's own index arithmetic in closed form; tests compare it with what the interpreter records.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np

from ....ops.problem import ConvProblem
from ...base import image_vector, vector_width
from .config import OUTPUTS_PER_LANE, DirectConfig

LINE = 128
"""Bytes of an L1 line. L1 is taken to serve one line a clock and SM: an assumption."""

ACTIVATION_INSTRUCTIONS = {None: 0, "relu": 2, "gelu": 32, "silu": 11}
"""Instructions of one output's activation, counted in offline compilations for sm_90."""


@dataclass(frozen=True)
class LaunchCost:
    """One launch in numbers. Bytes are those requested, masked lanes left out.

    Attributes:
        programs: programs launched.
        macs: multiply-adds of all lanes, those beyond an image's end too.
        image_bytes: read from x.
        image_distinct_bytes: those that differ within a program, summed over programs: what misses an L1 that holds a
            program's rows. An upper bound, which takes a program's first and last row as whole.
        weight_bytes: read from the weight.
        weight_distinct_bytes: those that differ within a program, summed over programs.
        lines: of L1 that all warps' loads and stores touch, those of masked lanes too.
        instructions: of one lane, an estimate.
    """

    programs: int
    macs: int
    image_bytes: int
    image_distinct_bytes: int
    weight_bytes: int
    weight_distinct_bytes: int
    lines: float
    instructions: float


def blocks(problem: ConvProblem, config: DirectConfig) -> int:
    """Programs per channel of out."""
    lanes = problem.n * ceil(problem.oh / config.rows) * ceil(problem.ow / OUTPUTS_PER_LANE)
    return ceil(lanes / config.block)


@lru_cache(maxsize=4096)
def columns(problem: ConvProblem, outputs: int = OUTPUTS_PER_LANE) -> frozenset[int]:
    """Columns of an input row that a lane of so many outputs uses, relative to the first output's own."""
    starts = range(0, outputs * problem.stride[1], problem.stride[1])
    return frozenset(o + k * problem.dilation[1] - problem.padding[1] for o in starts for k in range(problem.kw))


@lru_cache(maxsize=4096)
def vectors(problem: ConvProblem, vector: int) -> list[int]:
    """The vectors of an input row that hold those columns, in order; vector v begins at column v * ``vector``."""
    return sorted({column // vector for column in columns(problem)})


def input_rows(problem: ConvProblem, rows: int) -> int:
    """Input rows that a lane of ``rows`` output rows loads; more than one row shares them only where the stride is a
    multiple of the dilation."""
    return problem.kh + (rows - 1) * (problem.stride[0] // problem.dilation[0])


@lru_cache(maxsize=4096)
def launch_cost(problem: ConvProblem, config: DirectConfig) -> LaunchCost:
    """Count one launch."""
    vector, channels = image_vector(problem), problem.out_shape[1]
    loaded, rows = vectors(problem, vector), input_rows(problem, config.rows)
    lanes, lane_stride = ceil(problem.ow / OUTPUTS_PER_LANE), OUTPUTS_PER_LANE * problem.stride[1]
    left = np.arange(lanes)[:, None] * lane_stride + np.array(loaded) * vector
    read_columns = vector * int(((left >= 0) & (left < problem.w)).sum())
    per_channel = channels * problem.itemsize
    image_bytes = per_channel * read_rows(problem, config.rows) * read_columns

    width = min(problem.w, (loaded[-1] - loaded[0] + 1) * vector + (min(config.block, lanes) - 1) * lane_stride)
    distinct = per_channel * width * distinct_rows(problem, config.rows, lanes, config.block)
    programs = channels * blocks(problem, config)
    taps = problem.kh * problem.kw
    warps = programs * config.block / 32
    # 32 lanes side by side: their part of a row, at least one line
    wide = max(1, 32 * problem.w * problem.itemsize / lanes / LINE)
    wide_out = max(1, 32 * problem.ow * problem.itemsize / lanes / LINE)
    moves = OUTPUTS_PER_LANE // output_vector(problem) * (2 if problem.epilogue.residual else 1)
    lines = warps * (rows * len(loaded) * wide + taps + config.rows * moves * wide_out)
    filters = programs * taps * problem.itemsize
    return LaunchCost(
        programs=programs,
        macs=issued_macs(problem, config),
        image_bytes=image_bytes,
        image_distinct_bytes=min(distinct, image_bytes),
        weight_bytes=filters * config.rows,
        weight_distinct_bytes=filters,
        lines=lines,
        instructions=instructions(problem, config),
    )


def read_rows(problem: ConvProblem, rows: int) -> int:
    """Input rows that the lanes of one column read, ``rows`` output rows each, in all images."""
    groups = np.arange(ceil(problem.oh / rows))[:, None] * rows * problem.stride[0]
    top = groups + np.arange(input_rows(problem, rows)) * problem.dilation[0] - problem.padding[0]
    return problem.n * int(((top >= 0) & (top < problem.h)).sum())


def distinct_rows(problem: ConvProblem, group: int, lanes: int, block: int) -> int:
    """Input rows that differ within a program of ``block`` lanes, summed over a channel's programs.

    Lanes are numbered (image, group of ``group`` output rows, one of ``lanes`` along the row).
    """
    groups = ceil(problem.oh / group)
    total = problem.n * groups * lanes
    begin = np.arange(0, total, block, dtype=np.int64)
    end = np.minimum(begin + block, total) - 1
    first_image, first = np.divmod(begin // lanes, groups)
    last_image, last = np.divmod(end // lanes, groups)

    def rows(first: np.ndarray | int, last: np.ndarray | int) -> np.ndarray:
        """Of row groups ``first`` to ``last`` of an image."""
        stride, pad = problem.stride[0], problem.padding[0]
        top = np.maximum(np.multiply(first, group * stride) - pad, 0)
        below = (np.multiply(last, group) + group - 1) * stride + (problem.kh - 1) * problem.dilation[0] - pad + 1
        return np.maximum(np.minimum(below, problem.h) - top, 0)

    several = rows(first, groups - 1) + np.maximum(last_image - first_image - 1, 0) * rows(0, groups - 1) + rows(0, last)
    return int(np.where(first_image == last_image, rows(first, last), several).sum())


def issued_macs(problem: ConvProblem, config: DirectConfig) -> int:
    """Multiply-adds of all lanes, those beyond a row's or a plane's end too."""
    lanes = problem.out_shape[1] * blocks(problem, config) * config.block
    return lanes * OUTPUTS_PER_LANE * config.rows * problem.kh * problem.kw


def output_vector(problem: ConvProblem) -> int:
    """Elements of out per store, for aligned tensors."""
    return vector_width(16 // problem.itemsize, [], problem.ow)


def instructions(problem: ConvProblem, config: DirectConfig) -> float:
    """Instructions of one lane: indices, input rows with their conversions, weights, taps, epilogue.

    Counted in offline compilations for sm_80 and sm_90.
    """
    half, loop = problem.itemsize == 2, config.rows == 1
    conversions = len(columns(problem)) if half else 0
    row = 4 * len(vectors(problem, image_vector(problem))) + conversions + (22 if loop else 15)
    taps = problem.kh * problem.kw
    output = ACTIVATION_INSTRUCTIONS[problem.epilogue.activation] + (3 if problem.epilogue.residual else 0)
    stores = OUTPUTS_PER_LANE // output_vector(problem)
    per_output_row = OUTPUTS_PER_LANE * (taps + output) + 3 * stores + 13
    weights = (2 if half else 1) * taps
    return (184 if loop else 130) + input_rows(problem, config.rows) * row + weights + config.rows * per_output_row
