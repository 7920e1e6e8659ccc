"""The machine at hand: its GPU, its software, and what it reaches of the two ceilings that the cost model counts with: a copy,
and a large matrix product. ``python -m lk_triton.bench.machine`` prints one JSON object."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
from dataclasses import asdict
from importlib import import_module
from typing import Any

import torch

from lk_triton import gpu as gpus
from lk_triton.planning.timing import CpuTimer, EventTimer, Timer, interleave

from . import report, usage

COPY_BYTES, PRODUCT = 1 << 30, 8192
TINY = 64
"""How many times smaller what is copied and multiplied is for ``--tiny``."""

Facts = dict[str, Any]


def software() -> Facts:
    """Versions, and the key on which Triton's cache of compiled kernels depends; None for what is not here."""
    found: Facts = {"python": platform.python_version(), "cuda": torch.version.cuda, "triton_key": None, "ptxas": None}
    try:
        # where it lies, and whether there is one, depends on Triton's version
        key = import_module("triton.runtime.cache").triton_key()  # hashes of all its files, one behind the other
        found["triton_key"] = hashlib.sha256(key.encode()).hexdigest()[:16]
        found["ptxas"] = import_module("triton.knobs").nvidia.ptxas.version
    except (ImportError, AttributeError, RuntimeError):
        pass
    return found


def driver() -> str | None:
    """The version of the GPU's driver, by nvidia-smi; None without."""
    command = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@torch.inference_mode()
def ceilings(device: torch.device, tiny: bool) -> Facts:
    """GB/s of a copy, read and written, and TFLOP/s of a square product: the median of ten rounds."""
    gpu = device.type == "cuda"
    dtype = torch.float16 if gpu else torch.float32
    size, elements = (PRODUCT // TINY, COPY_BYTES // TINY // 4) if tiny else (PRODUCT, COPY_BYTES // 4)
    source, target = (torch.empty(elements, device=device, dtype=torch.float32).normal_() for _ in range(2))
    a, b, c = (torch.empty(size, size, device=device, dtype=dtype).normal_() for _ in range(3))

    def timer(call: Any) -> Timer:
        return EventTimer(call, device) if gpu else CpuTimer(call)

    timers = {"copy": timer(lambda _: target.copy_(source)), "product": timer(lambda _: torch.mm(a, b, out=c))}
    us = {name: timing.best(device) for name, timing in interleave(timers, 10).items()}
    return {
        "copy_bytes": source.nbytes, "copy_gb_per_s": report.short(2 * source.nbytes / us["copy"] / 1e3),
        "product": size, "product_dtype": str(c.dtype).removeprefix("torch."),
        "product_tflops": report.short(2 * size**3 / us["product"] / 1e6),
    }  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    parser.description = __doc__
    usage.add_device(parser)
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a rehearsal")


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    device = usage.torch_device(options.device)
    found = report.facts(device) | software() | {"driver": driver()} | ceilings(device, options.tiny)
    print(json.dumps(found | {"facts": asdict(gpus.of(device))}, indent=1), flush=True)
    return 0


main = usage.as_program("machine", add_arguments, run)

if __name__ == "__main__":
    raise SystemExit(main())
