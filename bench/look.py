"""What a form of a network takes besides its time in turns: latency of single calls, memory, estimate, shares, kernels."""

from __future__ import annotations

import gc
import time

import torch
from torch import Tensor, nn

from lk_triton import gpu as gpus
from lk_triton.ops.tracing import problems_of
from lk_triton.planning import agenda

from . import report
from .forms import Call, Form
from .shares import shares

LATENCY_SECONDS = 1.0
CALLS = (5, 200)
"""Single calls that are timed for the quantiles of the latency: as many as fit in LATENCY_SECONDS, within these limits."""

CALLS_OF_ONE_IMAGE = 100
"""At least, at batch 1 on a GPU, whatever they take."""


def look(form: Form, images: Tensor, ours: bool, pools: int) -> report.Row:
    """The columns; ``ours``: of lk_triton, ``pools``: bytes of CUDA graphs before this form was built."""
    device = images.device
    for _ in range(3 if device.type == "cuda" else 1):
        form.call(images)
    seconds = latencies(form.call, images)
    quantiles = torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.5, 0.99], dtype=torch.float64)) * 1e6
    median, slow = quantiles.tolist()
    row: report.Row = {
        "latency_p50_us": report.short(median), "latency_p99_us": report.short(slow), "calls": len(seconds)
    }  # fmt: skip
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        form.call(images)
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        row["activation_mb"] = report.short((peak + pool_bytes(device) - pools) / 1e6)
    try:
        if ours and device.type == "cuda":
            row["estimate_us"] = report.short(estimate_us(form.module, images))
        found = shares(lambda: form.call(images), device, by_name=ours)
        row |= {} if found.kernels is None else {"kernels": found.kernels}
        row |= {f"{kind}_share": round(share, 4) for kind, share in (found.of_time or {}).items()}
    except Exception as error:  # a profiler that does not work here costs the shares only
        row["note"] = f"no shares: {type(error).__name__}: {error}".splitlines()[0]
    return row


def latencies(call: Call, images: Tensor) -> list[float]:
    """Seconds of single calls, each waited for."""
    gpu = images.device.type == "cuda"
    least = CALLS_OF_ONE_IMAGE if gpu and len(images) == 1 else CALLS[0]
    seconds: list[float] = []
    while len(seconds) < least or (sum(seconds) < LATENCY_SECONDS and len(seconds) < CALLS[1]):
        start = time.perf_counter()
        call(images)
        if gpu:
            torch.cuda.synchronize(images.device)
        seconds.append(time.perf_counter() - start)
    return seconds


def pool_bytes(device: torch.device) -> int:
    """What the CUDA graphs there are hold: memory that stays theirs between replays."""
    if device.type != "cuda":
        return 0
    own = [s for s in torch.cuda.memory_snapshot() if tuple(s["segment_pool_id"]) != (0, 0)]
    return sum(s["total_size"] for s in own if s["device"] == (device.index or 0))


def estimate_us(network: nn.Module, images: Tensor) -> float:
    """The cost model's sum over the layers."""
    facts = gpus.of(images.device)
    posed = problems_of(network, images)
    return 1e6 * sum(count * agenda.estimate(problem, facts) for problem, count in posed.items())


def free(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
