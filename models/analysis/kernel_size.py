"""What each step in kernel size costs: parameters, multiply-adds, and estimated time with our kernels and with torch's.

The networks are those of the paper's table 5. Its counts are of networks without the small branch, which merging removes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from lk_triton.functional import explain_problem
from lk_triton.gpu import Gpu
from lk_triton.models import create_model, published_form
from lk_triton.ops.tracing import problems_of

from . import published

VARIANTS = {
    "3-3-3-3": "replknet_3", "7-7-7-7": "replknet_7", "13-13-13-13": "replknet_13", "25-25-25-13": "replknet_25",
    "31-29-27-13": "replknet_31b",
}  # fmt: skip
"""Kernel sizes of the four stages -> our network."""


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds for one image: of the whole network and of its large kernels. No small branch."""

    parameters: int
    macs: int
    large_macs: int


@dataclass(frozen=True)
class Estimate:
    """The cost model's seconds for all depthwise layers of the fused network, with our kernels and with torch's."""

    ours: float
    torch: float


@lru_cache
def cost(name: str, size: int = 224) -> Cost:
    """What the network called ``name`` costs for images of ``size``; counted on the meta device, nothing is computed."""
    network = create_model(name, device="meta", small_kernel=None).eval()
    with FlopCounterMode(display=False) as counter:  # which counts a multiply-add twice
        published_form(network)(torch.empty(1, 3, size, size, device="meta"))
    flops = counter.get_flop_counts()
    large = sum(sum(counts.values()) for module, counts in flops.items() if module.endswith("large_kernel"))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Cost(parameters, counter.get_total_flops() // 2, large // 2)


def estimate(name: str, gpu: Gpu, batch: int, size: int, dtype: str) -> Estimate:
    """The cost model's word on ``gpu``, which need not be here: an estimate, no measurement.

    Args:
        dtype: torch's name of it, such as ``float16``.
    """
    fused = create_model(name, device="meta", dtype=getattr(torch, dtype)).eval().convert("fused")
    ours = torchs = 0.0
    for problem, count in problems_of(fused, (batch, 3, size, size)).items():
        explanation = explain_problem(problem, gpu)
        seconds = {n: s for n, s in explanation.algorithms.items() if not isinstance(s, str)}
        ours += count * seconds[explanation.plan.algorithm]
        torchs += count * seconds["torch"]
    return Estimate(ours, torchs)


def accuracies() -> dict[str, dict[str, str]]:
    """The published row of each variant."""
    return {row["kernels"]: row for row in published.table("kernel_size").records()}
