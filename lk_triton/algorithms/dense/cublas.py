"""``cublas``: a 1x1 convolution as torch's matrix product, and the epilogue as one kernel of its own behind it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...gpu import Gpu
from ...ops import layout
from ...ops.problem import DenseProblem, Epilogue, Operands
from ..base import KernelLaunch, Versioned, WithoutChoices, dense_operands, planar
from ..cost.roofline import LAUNCH_SECONDS, MMA_SHARE, Estimate, activation_bytes, roofline
from ..needs import needs_pointwise
from .base import PixelMatrixAlgorithm, pixels, row_arguments, weight_bytes

BLOCK = 1024
"""Pixels of a program of the epilogue."""


@dataclass(frozen=True)
class CublasConfig:
    """No choices: cuBLAS makes them."""


class CublasAlgorithm(WithoutChoices, PixelMatrixAlgorithm):
    """1x1 convolutions whose pixels are rows: channel-major memory, or any planes image by image."""

    name = "cublas"
    versions: ClassVar = {"cublas": 1}  # raised when the kernel, its launch or its packing changes
    config_type: type[Any] = CublasConfig

    def why_not(self, problem: DenseProblem, gpu: Gpu) -> str | None:
        """Products follow torch's own choice of float32 arithmetic, which has to be the one asked for."""
        if (reason := super().why_not(problem, gpu) or needs_pointwise(problem)) is not None:
            return reason
        if problem.precision == "tf32x3":
            return "precision tf32x3 is not offered by cuBLAS, ieee and tf32 are"
        if problem.dtype == "float32" and rounds_products() != (problem.precision == "tf32"):
            wanted, other = ("tf32", "ieee") if problem.precision == "tf32" else ("ieee", "tf32")
            return f"torch's products are {other}, not {wanted}: set torch.backends.cuda.matmul.fp32_precision = {wanted!r}"
        return None

    def estimate(self, problem: DenseProblem, config: CublasConfig, gpu: Gpu) -> Estimate:
        """The product at the MMA peak's usual share or DRAM, and the epilogue at DRAM, one after the other."""
        bandwidth = gpu.dram_gbps * 1e9
        peak = {"float32": gpu.mma_tf32_tflops if problem.precision == "tf32" else gpu.fp32_tflops}
        outputs = problem.n * problem.out_channels * problem.oh * problem.ow * problem.itemsize
        plain = activation_bytes(problem) - (outputs if problem.epilogue.residual else 0)
        product = roofline(
            problem,
            gpu,
            mma=2 * problem.nominal_macs / (peak.get(problem.dtype, gpu.mma_half_tflops) * 1e12 * MMA_SHARE),
            dram=(plain + weight_bytes(problem)) / bandwidth,
        )
        passes = outputs * (3 if problem.epilogue.residual else 2) / bandwidth + LAUNCH_SECONDS
        return Estimate(product.seconds + (passes if has_epilogue(problem) else 0), product.limiter)

    def launches(self, problem: DenseProblem, config: CublasConfig) -> int:
        """The product, and the epilogue where there is any."""
        changes_order = problem.out_layout != problem.layout
        return super().launches(problem, config) + (has_epilogue(problem) or changes_order)

    def kernel_launch(self, problem: DenseProblem, config: CublasConfig, operands: Operands, out: Tensor) -> KernelLaunch:
        """The epilogue's launch; ``x`` is the product, which it may overwrite (``out`` is ``x``)."""
        from ..shared.epilogue import epilogue_kernel

        x, bias, residual = operands["x"], operands.get("bias"), operands.get("residual")
        widest = 16 // problem.itemsize
        blocks = ceil(pixels(problem) / BLOCK)
        args = row_arguments("x", x, widest) | row_arguments("r", residual, widest) | row_arguments("o", out, widest) | {
            "x": x, "bias": bias, "residual": residual, "out": out, "J": pixels(problem), "blocks": blocks, "BLOCK": BLOCK,
            "HAS_BIAS": bias is not None, "ACTIVATION": problem.epilogue.activation, "HAS_RESIDUAL": residual is not None,
        }  # fmt: skip
        return KernelLaunch(epilogue_kernel, (problem.out_channels * blocks,), args, num_warps=4, num_stages=1)

    repeated = Versioned.repeated  # the kernel is not all that is launched

    def launch(self, problem: DenseProblem, config: CublasConfig, operands: Operands) -> Tensor:
        """The product in the memory order of x, then the epilogue, which also changes the order where it must."""
        operands = dense_operands(problem, operands)
        x, weight = operands["x"], operands["weight"].flatten(1)
        y = layout.empty(problem.out_shape, "channel_major" if layout.layout_of(x) == "channel_major" else "nchw", x)
        rows, y_rows = layout.rows_of(x), layout.rows_of(y)
        if rows is not None and y_rows is not None:
            torch.mm(weight, rows, out=y_rows)
        else:
            torch.matmul(weight, x.flatten(2), out=y.flatten(2))
        order = planar(problem.out_layout)
        out = y if y.stride() == layout.strides(problem.out_shape, order) else layout.empty(problem.out_shape, order, x)
        if has_epilogue(problem) or out is not y:
            self.submit(problem, config, {**operands, "x": y}, out)
        return layout.conform(out, problem.out_layout)


def rounds_products() -> bool:
    """Whether torch rounds its float32 matrix products to TF32. The flag is one for all threads, so it is never set here."""
    flags: Any = torch.backends.cuda.matmul
    # where there is a new flag, reading the old one may raise
    return flags.fp32_precision == "tf32" if hasattr(flags, "fp32_precision") else flags.allow_tf32


def has_epilogue(problem: DenseProblem) -> bool:
    """Whether there is anything to do behind the product."""
    return problem.epilogue != Epilogue()
