"""Device facts: what a plan depends on. Read lazily from the device, or from a table for targets that are not here.

What the columns of the table say, and where each comes from:

- SMs, clock, rates (dense, float32 accumulation), DRAM peak: the vendor's figures, as the pages named beside each row quote
  them. The clock is the one at which the vendor quotes the MMA rate; the driver's maximum, where it differs, stands beside it.
- Shared memory, warps and programs of an SM: CUDA's tuning guides (https://docs.nvidia.com/cuda/hopper-tuning-guide,
  https://docs.nvidia.com/cuda/blackwell-tuning-guide) and programming guide; for MI300X ROCm's table of GPU specifications
  (https://rocm.docs.amd.com/en/latest/reference/gpu-arch-specs.html) and its page on a compute unit's pipelines
  (https://rocm.docs.amd.com/projects/omniperf/en/docs-6.3.0/conceptual/pipeline-descriptions.html).
- DRAM: what a device-to-device copy is reported to reach on H100 (3000 GB/s) and H200 (4300); elsewhere 90 % of the peak,
  assumed.
- L2 bandwidth: the class that https://chipsandcheese.com/2023/07/02/nvidias-h100-funny-l2-and-tons-of-bandwidth/ reports for
  A100 and H100; assumed elsewhere. Latencies, shared memory's 128 bytes a clock, four instructions a clock: assumed; DRAM's
  latency is what 1x1 convolutions of one image waited on an H100 (``STEP_LATENCY`` of ``algorithms/dense/pointwise/host.py``).

Nothing here was measured by this project.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from . import environment


@dataclass(frozen=True)
class Gpu:
    """One device. Rates are dense peak TFLOP/s (2 FLOP per multiply-add), bandwidths GB/s, sizes bytes.

    Attributes:
        clock_ghz: of the SMs, at which the rates hold.
        dram_gbps: what a copy reaches; ``dram_peak_gbps`` is what the memory's clock and width give.
        l2_bytes: of the whole device.
        max_clock_ghz: the highest that the driver reports.
        shared_bytes_per_clock: of one SM, shared memory and L1 together.
        issue_per_clock: instructions that one SM issues per clock, over all its warps.
        l2_latency_ns: from a load's issue to its data, where L2 holds it.
        dram_latency_ns: the same, where it comes from DRAM.
        warps_per_sm: resident at once.
        programs_per_sm: resident at once.
    """

    name: str
    arch: str
    backend: str
    sms: int = 1
    clock_ghz: float = 1.0
    shared_per_block: int = 0
    shared_per_sm: int = 0
    mma_half_tflops: float = 1.0
    mma_tf32_tflops: float = 1.0
    fp32_tflops: float = 1.0
    dram_gbps: float = 1.0
    dram_peak_gbps: float = 1.0
    l2_gbps: float = 1.0
    l2_bytes: int = 0
    max_clock_ghz: float = 1.0
    registers_per_sm: int = 65536
    shared_bytes_per_clock: int = 128
    issue_per_clock: int = 4
    l2_latency_ns: float = 300.0
    dram_latency_ns: float = 800.0
    warps_per_sm: int = 64
    programs_per_sm: int = 32

    @property
    def capability(self) -> int:
        """CUDA compute capability as one number (80, 90, ...); 0 where there is none."""
        return int(self.arch[3:]) if self.arch.startswith("sm_") else 0

    @property
    def mma_family(self) -> str:
        """How Triton drives the matrix units: ``mma`` (mma.sync), ``wgmma`` (sm_90), ``tcgen05`` (sm_100 to sm_110), or
        ``mfma`` (AMD). sm_120 has mma.sync only."""
        if self.backend == "hip":
            return "mfma"
        return {9: "wgmma", 10: "tcgen05", 11: "tcgen05"}.get(self.capability // 10, "mma")

    @property
    def tensor_columns(self) -> int:
        """Columns of tensor memory of one SM; 0 where accumulators stay in registers."""
        return 512 if self.mma_family == "tcgen05" else 0

    @property
    def warp_size(self) -> int:
        """Threads of a warp."""
        return 64 if self.arch.startswith("gfx9") else 32

    @property
    def clocks(self) -> float:
        """SM clocks per second, over all SMs."""
        return self.sms * self.clock_ghz * 1e9

    def programs_at_once(self, registers: float, shared_bytes: float, warps: int, tensor_columns: int = 0) -> int:
        """How many programs one SM holds, at least one, by what each takes: registers per thread, shared memory in bytes,
        warps, columns of tensor memory."""
        limits = [
            self.registers_per_sm / (registers * self.warp_size * warps),
            self.shared_per_sm / shared_bytes,
            self.warps_per_sm / warps,
            self.programs_per_sm,
        ]
        if tensor_columns:
            limits.append(self.tensor_columns / tensor_columns)
        return max(1, int(min(limits)))


KIB, MIB = 2**10, 2**20
_ADA = {"warps_per_sm": 48, "programs_per_sm": 24}
"""Also of consumer Blackwell."""
_CDNA = {"registers_per_sm": 131072, "issue_per_clock": 1, "warps_per_sm": 32, "programs_per_sm": 16}
"""Four 16-wide SIMDs, so that one instruction of a warp of 64 starts a clock; scalar and memory instructions, which issue
beside it, are counted as if they did not."""
TABLE = {
    d.name: d
    for d in (
        #   name, arch, backend, SMs, GHz, shared per block, per SM, half, tf32, fp32, DRAM, its peak, L2, its size, max. GHz
        # the 40 GB part: https://hmc-tech.com/gpu/nvidia-l4-vs-nvidia-a100-40gb
        Gpu("a100", "sm_80", "cuda", 108, 1.41, 163 * KIB, 164 * KIB, 312, 156, 19.5, 1400, 1555, 4000, 40 * MIB, 1.41),
        # https://fpsbench.com/compare/gpu/nvidia-l4-vs-nvidia-tesla-m40; MMA rates: 512 products a clock and SM, assumed
        Gpu("l4", "sm_89", "cuda", 58, 2.04, 99 * KIB, 100 * KIB, 121, 60, 30.3, 270, 300, 2000, 48 * MIB, 2.04, **_ADA),
        # https://waredb.com/processor/nvidia-geforce-rtx-4090
        Gpu(
            "rtx4090",
            "sm_89",
            "cuda",
            128,
            2.52,
            99 * KIB,
            100 * KIB,
            165,
            82.6,
            82.6,
            910,
            1008,
            5000,
            72 * MIB,
            2.52,
            **_ADA,
        ),
        # https://glennklockwood.com/garden/processors/h100: 1.83 GHz in low precision, 1.98 GHz at most
        Gpu("h100", "sm_90", "cuda", 132, 1.83, 227 * KIB, 228 * KIB, 989, 494, 66.9, 3000, 3350, 5500, 50 * MIB, 1.98),
        # an H100 with other memory (same page)
        Gpu("h200", "sm_90", "cuda", 132, 1.83, 227 * KIB, 228 * KIB, 989, 494, 66.9, 4300, 4800, 5500, 50 * MIB, 1.98),
        # https://hmc-tech.com/gpus/nvidia-b200-vs-nvidia-b100: MMA at 1.86 GHz, 1.98 at most; L2's size and bandwidth assumed
        Gpu("b200", "sm_100", "cuda", 148, 1.85, 227 * KIB, 228 * KIB, 2250, 1125, 75, 7200, 8000, 10000, 126 * MIB, 1.98),
        # https://www.spheron.network/blog/nvidia-rtx-5090-specs/ (half: a quarter of the sparse rate, because GeForce
        # halves float32 accumulation)
        Gpu(
            "rtx5090",
            "sm_120",
            "cuda",
            170,
            2.41,
            99 * KIB,
            100 * KIB,
            210,
            105,
            105,
            1600,
            1792,
            6000,
            96 * MIB,
            2.41,
            **_ADA,
        ),
        # https://docs.vultr.com/inference-cookbook/rocm/getting-started/hardware-requirements (half, as of MI325X; DRAM),
        # https://www.emergentmind.com/topics/amd-instinct-mi300x-gpus (L2's size); tf32, fp32, clock assumed
        Gpu(
            "mi300x", "gfx942", "hip", 304, 2.1, 64 * KIB, 64 * KIB, 1307, 653, 163, 4700, 5300, 10000, 32 * MIB, 2.1, **_CDNA
        ),
    )
}
CPU = Gpu("cpu", "cpu", "cpu")


def interpreted() -> bool:
    """Whether TRITON_INTERPRET asks Triton kernels to run in the interpreter, on CPU tensors."""
    return environment.value(environment.INTERPRET).lower() in ("1", "true", "on", "yes")


def rehearsal() -> bool:
    """Whether LK_TRITON_REHEARSAL=1 says that figures are of a rehearsal, which mean nothing: they are marked as such."""
    return os.environ.get("LK_TRITON_REHEARSAL") == "1"


def for_arch(arch: str) -> Gpu:
    """Facts for an architecture that is not here, such as ``sm_90``, or for a device of the table, such as ``h200``.

    An architecture stands for its data-centre part: sm_80 a100, sm_90 h100, sm_100 b200, gfx942 mi300x. One that the
    table lacks takes the facts of the nearest one of its vendor.

    Raises:
        ValueError: ``arch`` is neither in the table nor of the form sm_NN or gfxNNN.
    """
    if arch in TABLE:
        return TABLE[arch]
    if arch.startswith("sm_") and arch[3:].isdigit():
        known = [d for d in TABLE.values() if d.backend == "cuda"]
        nearest = min(known, key=lambda d: abs(d.capability - int(arch[3:])))
        return nearest if nearest.arch == arch else replace(nearest, name=arch, arch=arch)
    if arch.startswith("gfx"):
        nearest = TABLE["mi300x"]
        return nearest if nearest.arch == arch else replace(nearest, name=arch, arch=arch)
    raise ValueError(
        f"unknown architecture {arch!r}: expected sm_NN such as sm_80 or sm_90, gfxNNN such as gfx942, or one of "
        + ", ".join(TABLE)
    )


def of(device: torch.device) -> Gpu:
    """Facts of the device that holds a tensor.

    Under the interpreter a CPU stands in for an H100, so that the same host code makes the same choices.
    """
    if device.type == "cuda":
        return _cuda(torch.cuda.current_device() if device.index is None else device.index)
    if device.type == "cpu" and interpreted():
        return replace(TABLE["h100"], name="interpreter")
    return CPU if device.type == "cpu" else replace(CPU, name=device.type, arch=device.type, backend=device.type)


@lru_cache
def _cuda(index: int) -> Gpu:
    return from_properties(torch.cuda.get_device_properties(index), hip=torch.version.hip is not None)


def from_properties(properties: Any, hip: bool = False) -> Gpu:
    """Facts of the device that ``torch.cuda.get_device_properties`` describes.

    What the driver tells is read: SMs, clock, shared memory, registers, threads, and DRAM's and L2's bandwidth by memory
    clock, bus width and size. What it does not tell scales from the nearest entry of the table: rates with SMs and clock, DRAM
    by the share of its peak that a copy reaches, L2's bandwidth with its size and the clock (assumed). ROCm reports memory
    clock, L2 and registers in other terms, so there the table stands.
    """
    arch = properties.gcnArchName.split(":")[0] if hip else f"sm_{properties.major}{properties.minor}"
    nearest = named(properties.name)
    if nearest is None or nearest.arch != arch:
        nearest = for_arch("rtx4090" if "GeForce" in properties.name and arch in ("sm_86", "sm_89") else arch)

    def told(field: str, otherwise: float) -> float:
        return getattr(properties, field, 0) or otherwise

    clock = told("clock_rate", nearest.max_clock_ghz * 1e6) / 1e6 / nearest.max_clock_ghz
    rates = properties.multi_processor_count / nearest.sms * clock
    threads = nearest.warps_per_sm * nearest.warp_size
    found = replace(
        nearest,
        name=properties.name,
        arch=arch,
        sms=properties.multi_processor_count,
        clock_ghz=nearest.clock_ghz * clock,
        max_clock_ghz=nearest.max_clock_ghz * clock,
        shared_per_block=int(told("shared_memory_per_block_optin", nearest.shared_per_block)),
        shared_per_sm=int(told("shared_memory_per_multiprocessor", nearest.shared_per_sm)),
        mma_half_tflops=nearest.mma_half_tflops * rates,
        mma_tf32_tflops=nearest.mma_tf32_tflops * rates,
        fp32_tflops=nearest.fp32_tflops * rates,
        warps_per_sm=int(told("max_threads_per_multi_processor", threads)) // nearest.warp_size,
    )
    if hip:
        return found
    # kHz, bits; two transfers a clock
    peak = 2 * told("memory_clock_rate", 0) * told("memory_bus_width", 0) / 8e6 or nearest.dram_peak_gbps
    l2_bytes = int(told("L2_cache_size", nearest.l2_bytes))
    return replace(
        found,
        dram_gbps=peak * nearest.dram_gbps / nearest.dram_peak_gbps,
        dram_peak_gbps=peak,
        l2_gbps=nearest.l2_gbps * clock * l2_bytes / nearest.l2_bytes,
        l2_bytes=l2_bytes,
        registers_per_sm=int(told("regs_per_multiprocessor", nearest.registers_per_sm)),
    )


def named(name: str) -> Gpu | None:
    """The table's entry for a device's marketing name, such as ``NVIDIA H100 80GB HBM3``; None where there is none."""
    for device in TABLE.values():
        words = re.sub(r"(?<=[a-z])(?=\d)", "[ -]?", device.name)
        if re.search(rf"\b{words}(?![a-z0-9])", name.lower()):
            return device
    return None
