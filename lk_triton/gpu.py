"""Facts of GPUs: what a plan depends on. Read lazily from the device, or from ``gpus.toml`` for targets that are not here."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from . import environment

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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


FACTS = Path(__file__).with_name("gpus.toml")
ABOUT = ("source", "assumed")
"""Keys of a GPU in ``FACTS`` that say where its figures come from."""


def _table() -> dict[str, Gpu]:
    """The GPUs of ``FACTS`` by name."""
    facts = tomllib.loads(FACTS.read_text(encoding="utf-8"))
    return {name: Gpu(name, **{k: v for k, v in of_gpu.items() if k not in ABOUT}) for name, of_gpu in facts.items()}


TABLE = _table()
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
