"""Device facts: what a plan depends on. Read lazily from the device, or from a table for targets that are not here.

Sources of the table: A100 and H100 vendor data sheets (rates, SM counts, shared memory); DRAM and L2 bandwidths are
measured-class figures (a device-to-device copy; microbenchmarks), not data-sheet ones.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Device:
    """One device. Rates are dense peak TFLOP/s (2 FLOP per multiply-add), bandwidths GB/s, sizes bytes."""

    name: str
    arch: str
    backend: str
    sms: int = 1
    clock_ghz: float = 1.0
    shared_per_block: int = 0
    shared_per_sm: int = 0
    registers_per_sm: int = 65536
    mma_half_tflops: float = 0.0
    mma_tf32_tflops: float = 0.0
    fp32_tflops: float = 0.0
    dram_gbps: float = 1.0
    l2_gbps: float = 1.0

    @property
    def capability(self) -> int:
        """CUDA compute capability as one number (80, 90, ...); 0 where there is none."""
        return int(self.arch[3:]) if self.arch.startswith("sm_") else 0


KIB = 1024
TABLE = {
    "a100": Device("a100", "sm_80", "cuda", 108, 1.41, 163 * KIB, 164 * KIB, 65536, 312.0, 156.0, 19.5, 1560.0, 4000.0),
    "h100": Device("h100", "sm_90", "cuda", 132, 1.83, 227 * KIB, 228 * KIB, 65536, 989.0, 494.0, 66.9, 3000.0, 5500.0),
}
CPU = Device("cpu", "cpu", "cpu")


def interpreted() -> bool:
    """Whether TRITON_INTERPRET asks Triton kernels to run in the interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def for_arch(arch: str) -> Device:
    """Facts for an architecture that is not here, such as ``sm_90``: the nearest table entry of the same vendor.

    Raises:
        ValueError: ``arch`` is not of the form sm_NN or gfxNNN.
    """
    if arch.startswith("sm_") and arch[3:].isdigit():
        entry = TABLE["h100" if int(arch[3:]) >= 90 else "a100"]
        return entry if entry.arch == arch else replace(entry, name=arch, arch=arch)
    if arch.startswith("gfx"):
        return replace(TABLE["a100"], name=arch, arch=arch, backend="hip", shared_per_block=64 * KIB, shared_per_sm=64 * KIB)
    raise ValueError(f"unknown architecture {arch!r}: expected sm_NN such as sm_80 or sm_90, or gfxNNN such as gfx942")


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
