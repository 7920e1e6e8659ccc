"""Device facts: what a plan depends on. Read lazily from the device, or from a table for targets that are not here.

Sources of the table. Rates, SM counts, clocks, shared memory: vendors' data sheets and architecture white papers (dense
rates, float32 accumulation). DRAM: a device-to-device copy as reported for H100 (3.0 TB/s) and H200 (4.3), 90 % of the
data sheet elsewhere. L2 and its latency: the class that published microbenchmarks report. Nothing here was measured by
this project.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Device:
    """One device. Rates are dense peak TFLOP/s (2 FLOP per multiply-add), bandwidths GB/s, sizes bytes.

    Attributes:
        shared_bytes_per_clock: of one SM, shared memory and L1 together.
        issue_per_clock: instructions that one SM issues per clock, over all its warps.
        l2_latency_ns: from a load's issue to its data, through L2.
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
    l2_gbps: float = 1.0
    registers_per_sm: int = 65536
    shared_bytes_per_clock: int = 128
    issue_per_clock: int = 4
    l2_latency_ns: float = 300.0
    warps_per_sm: int = 64
    programs_per_sm: int = 32

    @property
    def capability(self) -> int:
        """CUDA compute capability as one number (80, 90, ...); 0 where there is none."""
        return int(self.arch[3:]) if self.arch.startswith("sm_") else 0

    @property
    def warp_size(self) -> int:
        """Threads of a warp."""
        return 64 if self.arch.startswith("gfx9") else 32

    @property
    def clocks(self) -> float:
        """SM clocks per second, over all SMs."""
        return self.sms * self.clock_ghz * 1e9


KIB = 1024
_ADA = {"warps_per_sm": 48, "programs_per_sm": 24}
"""Also of consumer Blackwell."""
_CDNA = {"registers_per_sm": 131072, "warps_per_sm": 32, "programs_per_sm": 16}
TABLE = {
    d.name: d
    for d in (
        #      name, arch, backend, SMs, GHz, shared per block, per SM, half, tf32, fp32, DRAM, L2
        Device("a100", "sm_80", "cuda", 108, 1.41, 163 * KIB, 164 * KIB, 312, 156, 19.5, 1400, 4000),
        Device("l4", "sm_89", "cuda", 58, 2.04, 99 * KIB, 100 * KIB, 121, 60, 30.3, 270, 2000, **_ADA),
        Device("rtx4090", "sm_89", "cuda", 128, 2.52, 99 * KIB, 100 * KIB, 165, 82.6, 82.6, 910, 5000, **_ADA),
        Device("h100", "sm_90", "cuda", 132, 1.83, 227 * KIB, 228 * KIB, 989, 494, 66.9, 3000, 5500),
        Device("h200", "sm_90", "cuda", 132, 1.83, 227 * KIB, 228 * KIB, 989, 494, 66.9, 4300, 5500),
        Device("b200", "sm_100", "cuda", 148, 1.85, 227 * KIB, 228 * KIB, 2250, 1125, 75, 7200, 10000),
        Device("rtx5090", "sm_120", "cuda", 170, 2.41, 99 * KIB, 100 * KIB, 210, 105, 105, 1600, 6000, **_ADA),
        Device("mi300x", "gfx942", "hip", 304, 2.1, 64 * KIB, 64 * KIB, 1307, 653, 163, 4700, 10000, **_CDNA),
    )
}
CPU = Device("cpu", "cpu", "cpu")


def interpreted() -> bool:
    """Whether TRITON_INTERPRET asks Triton kernels to run in the interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def for_arch(arch: str) -> Device:
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


def of(device: torch.device) -> Device:
    """Facts of the device that holds a tensor.

    Under the interpreter a CPU stands in for an H100, so that the same host code makes the same choices.
    """
    if device.type == "cuda":
        return _cuda(torch.cuda.current_device() if device.index is None else device.index)
    if device.type == "cpu" and interpreted():
        return replace(TABLE["h100"], name="interpreter")
    return CPU if device.type == "cpu" else replace(CPU, name=device.type, arch=device.type, backend=device.type)


@lru_cache
def _cuda(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    arch = properties.gcnArchName.split(":")[0] if torch.version.hip else f"sm_{properties.major}{properties.minor}"
    nearest = named(properties.name)
    if nearest is None or nearest.arch != arch:
        nearest = for_arch(arch)
    scale = properties.multi_processor_count / nearest.sms
    return replace(
        nearest,
        name=properties.name,
        sms=properties.multi_processor_count,
        shared_per_block=getattr(properties, "shared_memory_per_block_optin", nearest.shared_per_block),
        shared_per_sm=getattr(properties, "shared_memory_per_multiprocessor", nearest.shared_per_sm),
        mma_half_tflops=nearest.mma_half_tflops * scale,
        mma_tf32_tflops=nearest.mma_tf32_tflops * scale,
        fp32_tflops=nearest.fp32_tflops * scale,
    )


def named(name: str) -> Device | None:
    """The table's entry for a device's marketing name, such as ``NVIDIA H100 80GB HBM3``; None where there is none."""
    for device in TABLE.values():
        words = re.sub(r"(?<=[a-z])(?=\d)", "[ -]?", device.name)
        if re.search(rf"\b{words}(?![a-z0-9])", name.lower()):
            return device
    return None
