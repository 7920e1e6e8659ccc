"""``direct`` on channels_last tensors: which configs there are, what a launch does, and the launch itself.

Chosen where a conversion to planes and back would cost more than the planes' kernel saves.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import numpy as np
from torch import Tensor

from ....gpu import Gpu
from ....ops.problem import ConvProblem, Operands
from ...base import KernelLaunch, vector_width
from .config import DirectConfig
from .cost import ACTIVATION_INSTRUCTIONS, LINE, LaunchCost, columns, distinct_rows, input_rows, read_rows

MAX_VALUES = {1: 194, 2: 330}
"""Most values that a lane holds, by its rows, as ``_values`` counts; kernels above it spill (offline compilation for sm_80 and
sm_90)."""


def channels_last_configs(problem: ConvProblem, gpu: Gpu) -> list[DirectConfig]:
    """None but for channels_last problems without a channel multiplier, and where a lane's pixels fit in registers."""
    if problem.layout != "channels_last" or problem.multiplier != 1:
        return []
    apart, rest = divmod(problem.stride[0], problem.dilation[0])
    shared = rest == 0 and apart < problem.kh and problem.oh > 1
    found = [
        DirectConfig(block, block // gpu.warp_size, rows, outputs, channels)
        for rows in ((1, 2) if shared else (1,))
        for outputs in (4, 8, 2, 1)
        if _values(problem, rows, outputs) <= MAX_VALUES[rows]
        for channels in (4, 8, 1)
        for block in (128, 256, 64)
    ]
    return [config for config in found if _countable(problem, config)]


def _countable(problem: ConvProblem, config: DirectConfig) -> bool:
    """Whether 32 bits count the programs, and their positions."""
    blocks = position_blocks(problem, config)
    return blocks * max(config.block // config.channels, channel_blocks(problem, config)) < 2**31


def channel_vector(problem: ConvProblem) -> int:
    """Channels of a lane, for aligned tensors: the widest power of two that divides C, up to 16 bytes."""
    return vector_width(16 // problem.itemsize, [], problem.c)


def _values(problem: ConvProblem, rows: int, outputs: int) -> int:
    """Accumulators, and what is loaded before it is used: an input row's pixels; or all, where the filter is unrolled."""
    loaded = len(columns(problem, outputs)) if rows == 1 else _loads(problem, rows, outputs)
    return (rows * outputs + loaded) * channel_vector(problem)


def _loads(problem: ConvProblem, rows: int, outputs: int) -> int:
    """Vectors of pixels and weights that a lane loads."""
    return input_rows(problem, rows) * len(columns(problem, outputs)) + problem.kh * problem.kw


def channel_blocks(problem: ConvProblem, config: DirectConfig) -> int:
    """Programs side by side along the channels."""
    return ceil(problem.c // channel_vector(problem) / config.channels)


def position_blocks(problem: ConvProblem, config: DirectConfig) -> int:
    """Programs of the same channels."""
    positions = problem.n * ceil(problem.oh / config.rows) * ceil(problem.ow / config.columns)
    return ceil(positions / (config.block // config.channels))


def channels_last_macs(problem: ConvProblem, config: DirectConfig) -> int:
    """Multiply-adds of all lanes, those beyond a row's, a plane's or the channels' end too."""
    lanes = channel_blocks(problem, config) * position_blocks(problem, config) * config.block
    return lanes * config.rows * config.columns * channel_vector(problem) * problem.kh * problem.kw


@lru_cache(maxsize=4096)
def channels_last_cost(problem: ConvProblem, config: DirectConfig) -> LaunchCost:
    """Count one launch."""
    loaded, vector = np.array(sorted(columns(problem, config.columns))), channel_vector(problem)
    groups, positions = ceil(problem.ow / config.columns), config.block // config.channels
    group_stride = config.columns * problem.stride[1]
    left = np.arange(groups)[:, None] * group_stride + loaded
    read_columns = int(((left >= 0) & (left < problem.w)).sum())
    per_pixel = problem.c * problem.itemsize
    image_bytes = per_pixel * read_rows(problem, config.rows) * read_columns
    width = min(problem.w, int(loaded[-1] - loaded[0]) + 1 + (min(positions, groups) - 1) * group_stride)
    distinct = per_pixel * width * distinct_rows(problem, config.rows, groups, positions)
    taps, blocks = problem.kh * problem.kw, position_blocks(problem, config)
    programs = channel_blocks(problem, config) * blocks
    # 32 lanes: so many groups along the channels, each at least one line; all of them read the same weights
    wide = ceil(config.channels * vector * problem.itemsize / LINE)
    apart = max(32 // config.channels, 1) * wide
    moves = config.rows * config.columns * (2 if problem.epilogue.residual else 1)
    lines = programs * config.block / 32 * ((input_rows(problem, config.rows) * len(loaded) + moves) * apart + taps * wide)
    filters = blocks * taps * per_pixel
    return LaunchCost(
        programs=programs,
        macs=channels_last_macs(problem, config),
        image_bytes=image_bytes,
        image_distinct_bytes=min(distinct, image_bytes),
        weight_bytes=filters * positions * config.rows,
        weight_distinct_bytes=filters,
        lines=lines,
        instructions=_instructions(problem, config),
    )


def _instructions(problem: ConvProblem, config: DirectConfig) -> float:
    """Instructions of one lane: indices, pixels and weights with their conversions, taps, epilogue.

    Counted in offline compilations for sm_80 and sm_90.
    """
    vector, loop = channel_vector(problem), config.rows == 1
    taps, loads = problem.kh * problem.kw, _loads(problem, config.rows, config.columns)
    load = 6 + (vector if problem.itemsize == 2 else 0)
    output = ACTIVATION_INSTRUCTIONS[problem.epilogue.activation] + (3 if problem.epilogue.residual else 0)
    outputs = config.rows * config.columns
    indices = 220 + 18 * problem.kh if loop else 100
    return indices + loads * load + outputs * (vector * (taps + 2 + output) + 18)


def channels_last_launch(problem: ConvProblem, config: DirectConfig, operands: Operands, out: Tensor) -> KernelLaunch:
    """One program per (block of positions, block of channel vectors); all images are channels_last."""
    from .kernel_channels_last import direct_channels_last_kernel

    vector = channel_vector(problem)
    for tensor in (*operands.values(), out):
        if tensor.device.type != "meta":
            vector = vector_width(vector, [], tensor.data_ptr() // tensor.element_size())
    bias, residual = operands.get("bias"), operands.get("residual")
    used = [column + problem.padding[1] for column in columns(problem, config.columns)]
    channel_groups = ceil(problem.c // vector / config.channels)
    args = {
        "x": operands["x"], "weight": operands["weight"], "bias": bias, "residual": residual, "out": out,
        "N": problem.n, "H": problem.h, "W": problem.w, "C_v": problem.c // vector, "OH": problem.oh, "OW": problem.ow,
        "column_groups": ceil(problem.ow / config.columns), "row_groups": ceil(problem.oh / config.rows),
        "channel_blocks": channel_groups, "pad_h": problem.padding[0], "pad_w": problem.padding[1], "KH": problem.kh,
        "KW": problem.kw, "STRIDE_H": problem.stride[0], "STRIDE_W": problem.stride[1],
        "DILATION_H": problem.dilation[0], "DILATION_W": problem.dilation[1],
        "UNROLL": problem.kh if config.rows > 1 else 0, "SPAN": max(used) + 1, "NEEDED": sum(1 << c for c in used),
        "BLOCK": config.block, "CHANNELS": config.channels, "ROWS": config.rows, "COLUMNS": config.columns, "V": vector,
        "HAS_BIAS": bias is not None, "ACTIVATION": problem.epilogue.activation, "HAS_RESIDUAL": residual is not None,
    }  # fmt: skip
    grid = (channel_groups * position_blocks(problem, config),)
    return KernelLaunch(direct_channels_last_kernel, grid, args, config.num_warps, config.num_stages)
