"""Where the time of a forward goes: the GPU's kernels by kind, as torch's profiler sees them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import torch

DEPTHWISE = re.compile(r"toeplitz|direct_kernel|direct_channels_last|depthwise|dwconv|grouped|c1_k1", re.IGNORECASE)
POINTWISE = re.compile(r"pointwise|convffn|gemm|cutlass|nvjet|xmma|cublas|fprop|triton_tem|_mm", re.IGNORECASE)
"""By the names of kernels: lk_triton's, cuDNN's and torch's depthwise convolutions; products of matrices, among them cuDNN's
implicit ones (a dense stem too)."""


class Shares(NamedTuple):
    """Shares of the kernels' time, and how many kernels one forward launches."""

    depthwise: float
    pointwise: float
    kernels: int


def kind(name: str) -> str:
    """``depthwise``, ``pointwise`` or ``rest``: what a kernel of this name computes."""
    if DEPTHWISE.search(name):
        return "depthwise"
    return "pointwise" if POINTWISE.search(name) else "rest"


def shares(call: Callable[[], object], device: torch.device) -> Shares:
    """Profile one warm call on a CUDA or ROCm ``device``."""
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]) as run:
        call()
        torch.cuda.synchronize(device)
    seconds = {"depthwise": 0.0, "pointwise": 0.0, "rest": 0.0}
    kernels = 0
    for event in run.events() or ():
        if str(event.device_type).endswith("CUDA") and not event.name.startswith(("Memcpy", "Memset")):
            seconds[kind(event.name)] += event.time_range.elapsed_us()
            kernels += 1
    total = sum(seconds.values()) or 1.0
    return Shares(seconds["depthwise"] / total, seconds["pointwise"] / total, kernels)
