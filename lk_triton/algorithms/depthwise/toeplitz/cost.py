"""What a ``toeplitz`` launch does, counted from problem and config: windows, steps, multiply-adds, bytes, resources.

The kernel's own index arithmetic in closed form; tests compare it with what the interpreter records.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np

from ....gpu import Gpu
from ....ops.problem import ConvProblem
from ...base import image_vector
from ...cost.dot import Dot, kind_of
from .config import ToeplitzConfig

WINDOWS = ((8, 0), (16, 0), (32, 0), (32, 16), (64, 0), (64, 16), (64, 32), (128, 0), (128, 32), (128, 64), (256, 0))
"""Widths of a window, as the sum of one or two powers of two; a dot's K is at least 16, so 8 wants two rows a step."""


@dataclass(frozen=True)
class LaunchCost:
    """One launch in numbers. Bytes are those requested, masked lanes left out.

    Attributes:
        macs: multiply-adds of all ``tl.dot`` calls.
        steps: iterations of the step loops, over all programs.
        programs: programs launched.
        image_bytes: read from x.
        bank_bytes: read from the bank.
        bank_rows_bytes: bank bytes that differ within a program, summed over programs: what misses an L1 that holds them.
    """

    macs: int
    steps: int
    programs: int
    image_bytes: int
    bank_bytes: int
    bank_rows_bytes: int


def row_length(kw: int, vector: int) -> int:
    """L: elements of one shifted filter row, a multiple of the vector."""
    return ceil((kw + vector - 1) / vector) * vector


def bank_bytes(problem: ConvProblem, vector: int) -> int:
    """Memory of the packed weights, in bytes."""
    return problem.c * problem.kh * vector * row_length(problem.kw, vector) * problem.itemsize


def tile_blocks(problem: ConvProblem, config: ToeplitzConfig) -> int:
    """Programs per channel and column tile."""
    return ceil(problem.n * ceil(problem.oh / config.rows) / config.tiles)


@lru_cache(maxsize=4096)
def window_of(problem: ConvProblem, columns: int) -> tuple[int, int] | None:
    """The smallest window that shows every tile of ``columns`` outputs all that it reads; None where 256 is too few."""
    starts = range(0, problem.ow, columns)
    pad, w, kw = problem.padding[1], problem.w, problem.kw
    align = image_vector(problem)
    for parts in WINDOWS:
        size = sum(parts)
        for column0 in starts:
            start = max(min(max(column0 - pad, 0) // align * align, (w - size) // align * align), 0)
            first = max(column0 - pad, 0)
            last = min(w, min(column0 + columns, problem.ow) - pad + kw - 1)
            if start > first or start + size < last:
                break
        else:
            return parts
    return None


@lru_cache(maxsize=4096)
def _rows(problem: ConvProblem, rows: int, tiles: int, step_rows: int) -> tuple[int, int, int, int]:
    """Over all tile blocks of a channel and column tile: steps, image rows read, (filter row, output row) pairs read,
    and distinct filter rows read."""
    n, h, kh, pad = problem.n, problem.h, problem.kh, problem.padding[0]
    groups = ceil(problem.oh / rows)
    block = np.arange(ceil(n * groups / tiles), dtype=np.int64)
    first_group = block * tiles // n
    last_group = np.minimum((block * tiles + tiles - 1) // n, groups - 1)
    first = np.maximum(pad - last_group * rows, 0)
    last = np.minimum(rows + kh - 1, h + pad - first_group * rows)
    steps = np.maximum(-(-(last - first) // step_rows), 1)
    end = first + steps * step_rows

    group = np.arange(len(block) * tiles, dtype=np.int64).reshape(-1, tiles) // n
    top = group * rows - pad
    image_rows = _overlap(top + first[:, None], top + end[:, None], h) * (group < groups)
    r = np.arange(rows)
    pairs = _overlap(first[:, None] - r, end[:, None] - r, kh)
    distinct = _overlap(first - (rows - 1), end, kh) * (steps > 0)
    return int(steps.sum()), int(image_rows.sum()), int(pairs.sum()), int(distinct.sum())


def _overlap(begin: np.ndarray, end: np.ndarray, size: int) -> np.ndarray:
    """Lengths of [begin, end) within [0, size)."""
    return np.maximum(np.minimum(end, size) - np.maximum(begin, 0), 0)


@lru_cache(maxsize=4096)
def _columns(
    problem: ConvProblem, columns: int, window: tuple[int, int], part: tuple[int, int], vector: int
) -> tuple[int, int]:
    """Over all column tiles, of the ``part`` (first column, columns) of the window: image columns read per row, and bank
    elements read per filter row and output row."""
    size, pad, w = sum(window), problem.padding[1], problem.w
    align, length = image_vector(problem), row_length(problem.kw, vector)
    read = elements = 0
    k, j = part[0] + np.arange(part[1]), np.arange(columns)
    for column0 in range(0, problem.ow, columns):
        start = max(min(max(column0 - pad, 0) // align, (w - size) // align), 0) * align
        read += int((start + k < w).sum())
        tap = start - column0 + pad - j
        i = (tap + -tap % vector)[:, None] + k
        elements += int(((i >= 0) & (i < length)).sum())
    return read, elements


def issued_macs(problem: ConvProblem, config: ToeplitzConfig) -> int:
    """Multiply-adds of all ``tl.dot`` calls of a launch; useful_macs / issued_macs is the useful share."""
    steps = sum(_rows(problem, config.rows, config.tiles, rows)[0] for _, _, rows in config.parts)
    return problem.c * ceil(problem.ow / config.columns) * steps * config.tiles * config.outputs * config.step_k


def launch_cost(problem: ConvProblem, config: ToeplitzConfig) -> LaunchCost:
    """Count one launch."""
    steps = image = bank = distinct = 0
    for column, width, step_rows in config.parts:
        part_steps, image_rows, pairs, part_distinct = _rows(problem, config.rows, config.tiles, step_rows)
        read, elements = _columns(problem, config.columns, config.window, (column, width), config.vector)
        steps, image, bank = steps + part_steps, image + read * image_rows, bank + elements * pairs
        distinct = max(distinct, part_distinct)
    column_tiles = ceil(problem.ow / config.columns)
    per_channel = problem.c * problem.itemsize
    return LaunchCost(
        macs=issued_macs(problem, config),
        steps=problem.c * column_tiles * steps,
        programs=problem.c * column_tiles * tile_blocks(problem, config),
        image_bytes=per_channel * image,
        bank_bytes=per_channel * bank,
        bank_rows_bytes=per_channel * column_tiles * distinct * config.vector * row_length(problem.kw, config.vector),
    )


def dot_of(problem: ConvProblem, config: ToeplitzConfig, gpu: Gpu) -> Dot:
    """The products of one step."""
    m, n = (config.outputs, config.tiles) if config.swap else (config.tiles, config.outputs)
    return Dot(
        kind=kind_of(gpu, m, config.precision, problem.itemsize), m=m, n=n, k=config.step_k,
        itemsize=problem.itemsize, warps=config.num_warps, warp_size=gpu.warp_size, split=config.precision == "tf32x3",
    )  # fmt: skip


def shared_bytes(problem: ConvProblem, config: ToeplitzConfig, dot: Dot) -> int:
    """Shared memory of one program, an upper bound: the pipelined operands, or the accumulators on their way out."""
    # on AMD the newest loads wait in registers, and accumulators are stored from there unless a residual is added or warps
    # repeat each other's
    in_registers = dot.kind == "mfma"
    buffers = max(config.num_stages - in_registers, 1)
    operands = buffers * config.step_k * (config.tiles + config.outputs) * problem.itemsize
    if dot.kind == "tcgen05":
        operands += 16  # barriers
    if dot.split:
        # the low parts of the bank's values
        operands += config.step_k * config.outputs * problem.itemsize
    if in_registers and not problem.epilogue.residual and dot.repeats == 1:
        return operands
    # a row of the transposed or converted accumulators is padded by one 16-byte vector
    wide = config.swap or dot.repeats > 1
    accumulators = config.tiles * (config.outputs + 16 // problem.itemsize) * (4 if wide else problem.itemsize)
    return max(operands, accumulators)


def loads_per_thread(problem: ConvProblem, config: ToeplitzConfig, dot: Dot) -> tuple[float, float]:
    """Image and bank loads of one thread in one step."""
    threads = dot.warp_size * config.num_warps
    image = config.step_k * config.tiles / image_vector(problem) / threads
    return max(image, 1), max(config.step_k * config.outputs / config.vector / threads, 1)


def registers(problem: ConvProblem, config: ToeplitzConfig, dot: Dot) -> float:
    """Registers per thread, an estimate that was checked against offline compilation.

    Accumulators (those of tcgen05 too: they leave tensor memory all at once), addresses and a row per image load, an offset
    and a row per bank load, split or multiplied float32 operands, and about 40 for the rest. A residual is added to all
    accumulators at once. On AMD what a step loads waits in registers, and is read back into others.
    """
    lanes = dot.warp_size * config.num_warps
    accumulators = config.tiles * config.outputs / lanes
    if dot.kind == "mfma":
        loaded = config.step_k * (config.tiles + config.outputs) * problem.itemsize / 4 / lanes
        waiting = 2 if problem.itemsize == 2 else 3
        return accumulators * (2 if problem.epilogue.residual else 1) + waiting * loaded + 60
    image, bank = loads_per_thread(problem, config, dot)
    loop = accumulators + 4 * image + 2 * bank + 40
    if problem.itemsize == 4:
        loop += 32 + 2 * dot.elements_per_lane
    epilogue = accumulators * (1.75 if problem.epilogue.residual else 1.25) + 30
    return max(loop, epilogue)
