"""The stub driver as Python sees it: what was launched since the last look, and the facts of its device."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

NAME = "NVIDIA H100 80GB HBM3"
ATTRIBUTES = {
    "major": 75, "minor": 76, "multi_processor_count": 16, "warp_size": 10, "max_threads_per_multi_processor": 39,
    "regs_per_multiprocessor": 82, "shared_memory_per_block": 8, "shared_memory_per_block_optin": 97,
    "shared_memory_per_multiprocessor": 81, "L2_cache_size": 38, "clock_rate": 13, "memory_clock_rate": 36,
    "memory_bus_width": 37,
}  # fmt: skip
"""Fields of ``torch.cuda.get_device_properties``, and their numbers in the driver's API."""


class Launch(NamedTuple):
    """A launch that the driver accepted.

    Attributes:
        early: whether it may start before the kernel in front of it has ended.
        arguments: each parameter's bytes, as the cubin lays them out; a tensor map is ``struct tensor_map`` of ``driver.c``.
    """

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    early: bool
    cluster: int
    arguments: tuple[bytes, ...]


class Driver:
    """The library, loaded so that Triton finds it: as ``libcuda.so.1`` of this process."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self._library.stub_journal.restype = ctypes.c_char_p

    def properties(self) -> SimpleNamespace:
        """What ``torch.cuda.get_device_properties`` says."""
        value = ctypes.c_int()
        found = SimpleNamespace(name=NAME, total_memory=80 * 2**30)
        for name, number in ATTRIBUTES.items():
            assert self._library.cuDeviceGetAttribute(ctypes.byref(value), number, 0) == 0, name
            setattr(found, name, value.value)
        return found

    def take(self) -> tuple[list[Launch], list[str]]:
        """The launches since the last call, and what was refused."""
        lines = self._library.stub_journal().decode().splitlines()
        self._library.stub_forget()
        refused = [line.removeprefix("refused ") for line in lines if line.startswith("refused ")]
        return [_launch(line) for line in lines if line.startswith("launch ")], refused

    def record(self, on: bool) -> None:
        """Whether launches are written down, which takes longer than to launch."""
        self._library.stub_record(int(on))


def _launch(line: str) -> Launch:
    _, kernel, x, y, z, threads, shared, early, cluster, *arguments = line.split(" ")
    grid = int(x), int(y), int(z)
    found = tuple(bytes.fromhex(argument) for argument in arguments)
    return Launch(kernel, grid, int(threads), int(shared), early == "1", int(cluster), found)
