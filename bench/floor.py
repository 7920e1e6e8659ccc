"""The time that no implementation can beat: what must move through DRAM, and the products that must be formed."""

from __future__ import annotations

from dataclasses import dataclass

from lk_triton.algorithms.cost.roofline import activation_bytes
from lk_triton.gpu import Gpu
from lk_triton.ops.problem import ConvProblem


@dataclass(frozen=True)
class Floor:
    """Microseconds, and which of DRAM and MMA sets them."""

    us: float
    limiter: str


def floor(problem: ConvProblem, gpu: Gpu) -> Floor:
    """The larger of two: compulsory bytes at the device's DRAM bandwidth, useful multiply-adds at its MMA peak."""
    dram = compulsory_bytes(problem) / (gpu.dram_gbps * 1e3)
    mma = 2 * problem.useful_macs / (mma_tflops(gpu, problem.dtype, problem.precision) * 1e6)
    return Floor(dram, "DRAM") if dram >= mma else Floor(mma, "MMA")


def compulsory_bytes(problem: ConvProblem) -> int:
    """x, residual and weight read once, out written once."""
    return activation_bytes(problem) + problem.c * problem.multiplier * problem.kh * problem.kw * problem.itemsize


def mma_tflops(gpu: Gpu, dtype: str, precision: str | None = None) -> float:
    """Peak rate of products in ``dtype``. Those of float32's accuracy: three TF32 products each, or FMA, the faster one."""
    if dtype != "float32":
        return gpu.mma_half_tflops
    if precision == "tf32":
        return gpu.mma_tf32_tflops
    return gpu.fp32_tflops if precision == "ieee" else max(gpu.fp32_tflops, gpu.mma_tf32_tflops / 3)
