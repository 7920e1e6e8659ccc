"""What a ``pointwise`` launch does and needs, counted from problem and config."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ..device import Device
from ..problem import DenseProblem
from .dense import pixels
from .dot import Dot, kind_of


@dataclass(frozen=True)
class PointwiseConfig:
    """Compile-time choices.

    Attributes:
        rows, columns: BM x BN, output channels and pixels of a tile.
        step_k: BK, input channels of a step.
        precision: how float32 products are formed; ``ieee`` for half types, where it changes nothing.
        tma: operands by tensor descriptors, and programs that stay for several tiles.
        warp_specialize: warps of their own for the loads (with ``tma``).
    """

    rows: int
    columns: int
    step_k: int
    num_warps: int
    num_stages: int
    precision: str = "ieee"
    tma: bool = False
    warp_specialize: bool = False

    @property
    def outputs(self) -> int:
        """Outputs of a tile."""
        return self.rows * self.columns


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


def dot_of(problem: DenseProblem, config: PointwiseConfig, device: Device) -> Dot:
    """The products of one step."""
    return Dot(
        kind=kind_of(device, config.rows, config.precision, problem.itemsize), m=config.rows, n=config.columns,
        k=config.step_k, parts=1, longest=config.step_k, itemsize=problem.itemsize, warps=config.num_warps,
        warp_size=device.warp_size, split=config.precision == "tf32x3",
    )  # fmt: skip


def shared_bytes(problem: DenseProblem, config: PointwiseConfig, device: Device) -> int:
    """Shared memory of one program, an upper bound: the pipelined operands, and the outputs on their way to the store."""
    dot = dot_of(problem, config, device)
    operands = config.num_stages * config.step_k * (config.rows + config.columns) * problem.itemsize
    if dot.kind == "tcgen05":
        operands += 16
    if dot.split:
        operands += config.step_k * (config.rows + config.columns) * problem.itemsize
    outputs = config.rows * (config.columns + 16 // problem.itemsize) * problem.itemsize
    # programs that stay for several tiles load the next one's operands while they store
    return operands + outputs + 1024 if config.tma else max(operands, outputs)


def loads_per_thread(problem: DenseProblem, config: PointwiseConfig, device: Device) -> float:
    """16-byte loads of one thread in one step."""
    threads = device.warp_size * config.num_warps
    return 0.0 if config.tma else (config.rows + config.columns) * config.step_k * problem.itemsize / 16 / threads


def registers(problem: DenseProblem, config: PointwiseConfig, device: Device) -> float:
    """Registers per thread, an estimate that was checked against offline compilation."""
    accumulators = config.outputs / (device.warp_size * config.num_warps)
    loads = loads_per_thread(problem, config, device)
    loop = accumulators + 5 * loads + 40
    if problem.itemsize == 4:
        loop += 32 + 2 * dot_of(problem, config, device).elements_per_lane
    epilogue = accumulators * (1.5 if problem.epilogue.residual else 1.25) + 45 + 3 * loads
    return max(loop, epilogue)


def programs_per_sm(problem: DenseProblem, config: PointwiseConfig, device: Device) -> int:
    """How many programs are resident on one SM."""
    limits = [
        device.registers_per_sm / (registers(problem, config, device) * device.warp_size * config.num_warps),
        device.shared_per_sm / shared_bytes(problem, config, device),
        device.warps_per_sm / config.num_warps,
        device.programs_per_sm,
    ]
    if columns := dot_of(problem, config, device).tensor_columns:
        limits.append(device.tensor_columns / columns)
    return max(1, int(min(limits)))


def instructions(problem: DenseProblem, config: PointwiseConfig, device: Device) -> float:
    """Of one warp in one step, counted in offline compilations for sm_80 and sm_90."""
    loads = loads_per_thread(problem, config, device)
    return 40 + 5 * loads + dot_of(problem, config, device).instructions
