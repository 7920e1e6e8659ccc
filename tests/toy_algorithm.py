"""A toy algorithm: depthwise convolutions, a program for a block of outputs of one channel, a tap at a time.

It is all that a new algorithm needs: a config, a kernel, the host's side of it with a cost, and one line in the registry. The
algorithms of the library are folders with a file for each of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar

import triton
import triton.language as tl
from torch import Tensor

from lk_triton.algorithms import registry
from lk_triton.algorithms.base import KernelLaunch, TritonAlgorithm
from lk_triton.algorithms.cost.roofline import Estimate, activation_bytes, roofline
from lk_triton.algorithms.shared.epilogue import activate
from lk_triton.gpu import Gpu
from lk_triton.ops.problem import ConvProblem, Operands
from lk_triton.planning import cache


@dataclass(frozen=True)
class ToyConfig:
    """Outputs of a program."""

    block: int
    num_warps: int = 4
    num_stages: int = 1


@triton.jit
def toy_kernel(
    x, weight, bias, residual, out, N, H, W, OH, OW, KH, KW, blocks, multiplier,
    stride_xn, stride_xc, stride_rn, stride_rc, stride_on, stride_oc,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = activation(conv(x, weight) + bias) + residual; all images have dense planes, strides count elements."""
    c = (tl.program_id(0) // blocks).to(tl.int64)
    lane = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = lane < N * OH * OW
    image, pixel = (lane // (OH * OW)).to(tl.int64), lane % (OH * OW)
    row, column = pixel // OW * STRIDE_H - PAD_H, pixel % OW * STRIDE_W - PAD_W
    plane = x + image * stride_xn + c // multiplier * stride_xc  # [BLOCK]
    acc = tl.zeros((BLOCK,), tl.float32)
    for tap in range(KH * KW):
        h, w = row + tap // KW * DILATION_H, column + tap % KW * DILATION_W
        mask = inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        product = tl.load(plane + h * W + w, mask=mask, other=0.0).to(tl.float32)
        product *= tl.load(weight + c * KH * KW + tap).to(tl.float32)
        acc += tl.where(mask, product, 0.0)
    if HAS_BIAS:
        acc += tl.load(bias + c).to(tl.float32)
    acc = activate(acc, ACTIVATION)
    if HAS_RESIDUAL:
        acc += tl.load(residual + image * stride_rn + c * stride_rc + pixel, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + image * stride_on + c * stride_oc + pixel, acc.to(out.dtype.element_ty), mask=inside)


class ToyAlgorithm(TritonAlgorithm):
    """Any depthwise convolution, in IEEE arithmetic."""

    name = "toy"
    versions: ClassVar = {"toy": 1}
    config_type = ToyConfig

    def why_not(self, problem: ConvProblem, gpu: Gpu) -> str | None:
        if problem.precision not in (None, "ieee"):
            return f"computes in IEEE float32, not in {problem.precision}"
        return super().why_not(problem, gpu)

    def configs(self, problem: ConvProblem, gpu: Gpu) -> list[ToyConfig]:
        return [ToyConfig(128), ToyConfig(256)]

    def estimate(self, problem: ConvProblem, config: ToyConfig, gpu: Gpu) -> Estimate:
        """FMA units at a tenth of their peak, or DRAM."""
        fma = 2 * self.issued_macs(problem, config) / (0.1 * gpu.fp32_tflops * 1e12)
        return roofline(problem, gpu, fma=fma, dram=activation_bytes(problem) / (gpu.dram_gbps * 1e9))

    def issued_macs(self, problem: ConvProblem, config: ToyConfig) -> int:
        """Those of masked lanes too."""
        return problem.weight_shape[0] * blocks(problem, config) * config.block * problem.kh * problem.kw

    def kernel_launch(self, problem: ConvProblem, config: ToyConfig, operands: Operands, out: Tensor) -> KernelLaunch:
        x, bias, residual = operands["x"], operands.get("bias"), operands.get("residual")
        like_out = out if residual is None else residual
        args: dict[str, Any] = {
            "x": x, "weight": operands["weight"], "bias": bias, "residual": residual, "out": out,
            "N": problem.n, "H": problem.h, "W": problem.w, "OH": problem.oh, "OW": problem.ow,
            "KH": problem.kh, "KW": problem.kw, "blocks": blocks(problem, config), "multiplier": problem.multiplier,
            "stride_xn": x.stride(0), "stride_xc": x.stride(1), "stride_rn": like_out.stride(0),
            "stride_rc": like_out.stride(1), "stride_on": out.stride(0), "stride_oc": out.stride(1),
            "PAD_H": problem.padding[0], "PAD_W": problem.padding[1],
            "STRIDE_H": problem.stride[0], "STRIDE_W": problem.stride[1],
            "DILATION_H": problem.dilation[0], "DILATION_W": problem.dilation[1],
            "HAS_BIAS": bias is not None, "ACTIVATION": problem.epilogue.activation,
            "HAS_RESIDUAL": residual is not None, "BLOCK": config.block,
        }  # fmt: skip
        grid = (problem.weight_shape[0] * blocks(problem, config),)
        return KernelLaunch(toy_kernel, grid, args, config.num_warps, config.num_stages)


def blocks(problem: ConvProblem, config: ToyConfig) -> int:
    """Programs of a channel."""
    return ceil(problem.n * problem.oh * problem.ow / config.block)


@contextmanager
def registered() -> Iterator[None]:
    """The registry has it inside the ``with`` block."""
    registry.ALGORITHMS["toy"] = ToyAlgorithm()
    cache.reload()  # plans are chosen anew
    try:
        yield
    finally:
        del registry.ALGORITHMS["toy"]
        cache.reload()
