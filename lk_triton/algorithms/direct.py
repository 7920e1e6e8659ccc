"""Host side of ``direct``: FMA units, eight outputs per lane. Exact footprint, IEEE float32 arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from torch import Tensor

from ..device import Device
from ..problem import ConvProblem
from .base import Estimate, KernelLaunch, TritonAlgorithm, activation_bytes, roofline, vector_width

OUTPUTS_PER_LANE = 8
FMA_EFFICIENCY = 0.4
"""Share of the FMA peak, counted over all taps, that the main loop's instruction mix leaves. An assumption."""


@dataclass(frozen=True)
class DirectConfig:
    """``block``: lanes of a program, each with eight outputs."""

    block: int
    num_warps: int
    num_stages: int = 2


class DirectAlgorithm(TritonAlgorithm):
    """Small kernels, stride 2 for 3x3, and true IEEE float32 at any size."""

    name = "direct"
    config_type = DirectConfig

    def supports(self, problem: ConvProblem, device: Device) -> str | None:
        """None, or why not."""
        reason = super().supports(problem, device)
        if reason is None and problem.stride != (1, 1) and (problem.stride, problem.kh, problem.kw) != ((2, 2), 3, 3):
            return f"stride {problem.stride} of a {problem.kh}x{problem.kw} kernel: only stride 2 of 3x3 is there yet"
        if reason is None and problem.precision not in (None, "ieee"):
            return f"computes in IEEE float32, not in {problem.precision}"
        return reason

    def configs(self, problem: ConvProblem, device: Device) -> list[DirectConfig]:
        """One lane per thread, two block sizes."""
        return [DirectConfig(block, block // 32) for block in (64, 128)]

    def estimate(self, problem: ConvProblem, config: DirectConfig, device: Device) -> Estimate:
        """FMA units over all lanes, or DRAM."""
        macs = self.issued_macs(problem, config)
        waves = problem.c * _blocks(problem, config) / (device.sms * 8)
        return roofline(
            device,
            fma=2 * macs / (device.fp32_tflops * 1e12 * FMA_EFFICIENCY) * max(1.0, ceil(waves) / waves),
            dram=activation_bytes(problem) / (device.dram_gbps * 1e9),
        )

    def issued_macs(self, problem: ConvProblem, config: DirectConfig) -> int:
        """All lanes, also those beyond the row's end and the last image."""
        return problem.c * _blocks(problem, config) * config.block * OUTPUTS_PER_LANE * problem.kh * problem.kw

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

        widest = min(OUTPUTS_PER_LANE, 16 // problem.itemsize)
        xv = vector_width(widest, [x], problem.w)
        ov = vector_width(widest, [out, residual], problem.ow)
        res = out if residual is None else residual
        blocks = _blocks(problem, config)
        pad_w, stride_w = problem.padding[1], problem.stride[1]
        first = -pad_w // OUTPUTS_PER_LANE
        last = (OUTPUTS_PER_LANE - 1) * stride_w + problem.kw - 1 - pad_w
        args = {
            "x": x, "weight": bank, "bias": bias, "residual": residual, "out": out,
            "N": problem.n, "H": problem.h, "W_v": problem.w // xv, "OH": problem.oh, "OW_v": problem.ow // ov,
            "lanes": ceil(problem.ow / OUTPUTS_PER_LANE), "blocks": blocks,
            "stride_xn": x.stride(0) // xv, "stride_xc": x.stride(1) // xv,
            "stride_rn": res.stride(0) // ov, "stride_rc": res.stride(1) // ov,
            "stride_on": out.stride(0) // ov, "stride_oc": out.stride(1) // ov,
            "pad_h": problem.padding[0], "KH": problem.kh, "KW": problem.kw, "PAD_W": pad_w,
            "STRIDE_H": problem.stride[0], "STRIDE_W": stride_w, "BLOCK": config.block,
            "FIRST_VECTOR": first, "VECTORS": last // OUTPUTS_PER_LANE - first + 1, "XV": xv, "OV": ov,
            "HAS_BIAS": bias is not None, "ACTIVATION": problem.epilogue.activation,
            "HAS_RESIDUAL": residual is not None,
        }  # fmt: skip
        return KernelLaunch(direct_kernel, (problem.c * blocks,), args, config.num_warps, config.num_stages)


def _blocks(problem: ConvProblem, config: DirectConfig) -> int:
    """Programs per channel."""
    return ceil(problem.n * problem.oh * ceil(problem.ow / OUTPUTS_PER_LANE) / config.block)
