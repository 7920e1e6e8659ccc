"""Matrix units as the cost models see them: which instructions a tile gets, their rate, what they read."""

from __future__ import annotations

from ..device import Device
from ..problem import Problem
from .base import MMA_SHARE


def precisions(problem: Problem, device: Device) -> tuple[str, ...]:
    """The dot precisions that answer the problem's request; float32 by default wants float32-class accuracy."""
    if problem.dtype != "float32":
        return ("ieee",)
    if device.backend == "hip":
        return ("ieee",) if problem.precision in (None, "ieee") else ()
    return (problem.precision,) if problem.precision else ("tf32x3", "ieee")


def uses_wgmma(m: int, device: Device) -> bool:
    """Whether dots with M = ``m`` become wgmma."""
    return device.capability == 90 and m >= 64


def rate(problem: Problem, precision: str, m: int, device: Device) -> float:
    """FLOP/s of dots with M = ``m``. On sm_90 the older mma.sync, which short operands get, is taken to reach 60 % of
    wgmma's rate: an assumption."""
    if problem.itemsize == 4 and precision == "ieee":
        return device.fp32_tflops * 1e12 * MMA_SHARE
    peak = device.mma_half_tflops if problem.itemsize == 2 else device.mma_tf32_tflops
    if precision == "tf32x3":
        peak /= 3
    return peak * 1e12 * MMA_SHARE * (0.6 if device.capability == 90 and not uses_wgmma(m, device) else 1)


def operand_reads(m: int, n: int, warps: int, device: Device) -> float:
    """Elements that the MMAs of an [m, n] tile read from shared memory, per unit of K.

    wgmma reads A once per warp group across N, and B once per 64 rows. mma.sync reads fragments per warp, each warp the
    rows and columns of its own part; the best split of the warps is assumed.
    """
    if uses_wgmma(m, device):
        groups = warps // 4
        across_n = groups // min(groups, m // 64)
        return across_n * m + m // 64 * n
    splits = [(w, warps // w) for w in (1, 2, 4, 8) if w <= warps]
    return min(across_n * m + across_m * n for across_m, across_n in splits)
