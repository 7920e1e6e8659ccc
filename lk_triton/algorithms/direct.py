"""Host side of ``direct``: FMA units, eight outputs per lane. Exact footprint, IEEE float32 arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from torch import Tensor

from ..device import Device
from ..problem import ConvProblem
from .base import (
    ISSUE_SHARE,
    Estimate,
    KernelLaunch,
    TritonAlgorithm,
    activation_bytes,
    image_vector,
    plane_arguments,
    roofline,
)

OUTPUTS_PER_LANE = 8
WIDEST = 101
"""Widest kernel: its columns are unrolled, so that compile time grows with it (2 to 3 s at 101 on a CPU core, no spills)."""

UNROLLED_TAPS = 49
"""Most taps of a kernel that is unrolled whole, as two rows a lane need; more take too long to compile."""


@dataclass(frozen=True)
class DirectConfig:
    """Compile-time choices.

    Attributes:
        block: lanes of a program, one a thread, each with eight outputs a row.
        rows: output rows of a lane.
    """

    block: int
    num_warps: int
    rows: int = 1
    num_stages: int = 2


class DirectAlgorithm(TritonAlgorithm):
    """Small kernels, stride 2 for 3x3, and true IEEE float32, up to 101 columns."""

    name = "direct"
    config_type = DirectConfig

    def supports(self, problem: ConvProblem, device: Device) -> str | None:
        """None, or why not."""
        reason = super().supports(problem, device)
        if reason is None and problem.stride != (1, 1) and (problem.stride, problem.kh, problem.kw) != ((2, 2), 3, 3):
            return f"stride {problem.stride} of a {problem.kh}x{problem.kw} kernel: only stride 2 of 3x3 is there yet"
        if reason is None and problem.kw > WIDEST:
            return f"the kernel is {problem.kw} wide: at most {WIDEST} columns are unrolled"
        if reason is None and problem.precision not in (None, "ieee"):
            return f"computes in IEEE float32, not in {problem.precision}"
        return reason

    def configs(self, problem: ConvProblem, device: Device) -> list[DirectConfig]:
        """One lane per thread; two rows a lane for stride 1 and few enough taps to unroll."""
        rows = [1, 2] if problem.stride == (1, 1) and problem.kh * problem.kw <= UNROLLED_TAPS and problem.oh > 1 else [1]
        return [DirectConfig(block, block // device.warp_size, r) for r in rows for block in (64, 128, 256)]

    def estimate(self, problem: ConvProblem, config: DirectConfig, device: Device) -> Estimate:
        """The slowest resource of the fullest SM (FMA units, issue slots, L1, L2), or DRAM."""
        blocks = _blocks(problem, config)
        per_sm = problem.c * blocks / device.sms
        fullest = ceil(per_sm) / per_sm
        threads = problem.c * blocks * config.block
        size, vector = problem.itemsize, image_vector(problem)
        _, vectors = _input_vectors(problem, vector)
        input_rows = problem.kh + (config.rows - 1) * problem.stride[0]
        # block after block of a plane reads the rows that its outputs do not share with the block before
        rows_of_block = max(config.rows, config.block * config.rows / ceil(problem.ow / OUTPUTS_PER_LANE))
        halo = 1 + (problem.kh - 1) / rows_of_block
        outside = activation_bytes(problem)
        image = problem.n * problem.c * problem.h * problem.w * size
        instructions = threads / device.warp_size * _instructions(problem, config)
        return roofline(
            problem,
            device,
            fma=2 * self.issued_macs(problem, config) / (device.fp32_tflops * 1e12) * fullest,
            issue=instructions / (device.issue_per_clock * device.clocks * ISSUE_SHARE) * fullest,
            smem=threads * input_rows * vectors * vector * size / (device.shared_bytes_per_clock * device.clocks) * fullest,
            l2=(outside + image * (halo - 1)) / (device.l2_gbps * 1e9) * fullest,
            dram=(outside + problem.c * problem.kh * problem.kw * size) / (device.dram_gbps * 1e9),
        )

    def issued_macs(self, problem: ConvProblem, config: DirectConfig) -> int:
        """Multiply-adds of all lanes, those beyond a row's or a plane's end too."""
        lanes = problem.c * _blocks(problem, config) * config.block
        return lanes * OUTPUTS_PER_LANE * config.rows * problem.kh * problem.kw

    def bank_bytes(self, problem: ConvProblem, config: DirectConfig) -> int:
        """There is no bank."""
        return 0

    def bank_format(self, config: DirectConfig) -> str | None:
        """Reads the weight as it is."""
        return None

    def pack(self, weight: Tensor, problem: ConvProblem, config: DirectConfig) -> Tensor:
        """The weight itself, contiguous."""
        return weight.contiguous()

    def kernel_launch(
        self,
        problem: ConvProblem,
        config: DirectConfig,
        x: Tensor,
        bank: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        out: Tensor,
    ) -> KernelLaunch:
        """One program per (channel, block of lanes)."""
        from ..kernels.direct import direct_kernel

        planes = plane_arguments(problem, x, residual, out)
        blocks = _blocks(problem, config)
        first, vectors = _input_vectors(problem, planes["XV"])
        args = planes | {
            "weight": bank, "bias": bias, "HAS_BIAS": bias is not None,
            "lanes": ceil(problem.ow / OUTPUTS_PER_LANE), "row_groups": ceil(problem.oh / config.rows), "blocks": blocks,
            "pad_h": problem.padding[0], "KH": problem.kh, "KW": problem.kw, "PAD_W": problem.padding[1],
            "STRIDE_H": problem.stride[0], "STRIDE_W": problem.stride[1], "UNROLL": problem.kh if config.rows > 1 else 0,
            "BLOCK": config.block, "ROWS": config.rows, "FIRST_VECTOR": first, "VECTORS": vectors,
        }  # fmt: skip
        return KernelLaunch(direct_kernel, (problem.c * blocks,), args, config.num_warps, config.num_stages)


def _blocks(problem: ConvProblem, config: DirectConfig) -> int:
    """Programs per channel."""
    lanes = problem.n * ceil(problem.oh / config.rows) * ceil(problem.ow / OUTPUTS_PER_LANE)
    return ceil(lanes / config.block)


def _input_vectors(problem: ConvProblem, vector: int) -> tuple[int, int]:
    """First vector of an input row that a lane loads, relative to its first output's column, and how many."""
    pad_w, stride_w = problem.padding[1], problem.stride[1]
    first = -pad_w // vector
    last = (OUTPUTS_PER_LANE - 1) * stride_w + problem.kw - 1 - pad_w
    return first, last // vector - first + 1


def _instructions(problem: ConvProblem, config: DirectConfig) -> float:
    """Instructions of one lane: index arithmetic and epilogue, input rows with their conversions, taps.

    Counted in offline compilations for sm_80 and sm_90.
    """
    _, vectors = _input_vectors(problem, image_vector(problem))
    used = (OUTPUTS_PER_LANE - 1) * problem.stride[1] + problem.kw
    conversions = used if problem.itemsize == 2 else 0
    input_rows = problem.kh + config.rows - 1
    taps = problem.kh * problem.kw
    weights = taps * (2 if problem.itemsize == 2 else 1)
    return 200 + input_rows * (4 * vectors + conversions + 15) + weights + OUTPUTS_PER_LANE * config.rows * taps
