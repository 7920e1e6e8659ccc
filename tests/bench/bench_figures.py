"""Made-up rows of a GPU, as ``bench conv`` would write them."""

from __future__ import annotations

import torch

from lk_triton.bench import conv, report
from lk_triton.bench.cases import cases, select
from lk_triton.bench.floor import floor
from lk_triton.gpu import TABLE
from lk_triton.planning.timing import Timing

GPU = "NVIDIA H100 80GB HBM3"


def rows(times: dict[str, float], *patterns: str, device: str = GPU, dtype: str = "float16") -> list[report.Row]:
    """Of each matching case, one row a provider, at a multiple of the floor."""
    made: list[report.Row] = []
    for name, problem in select(cases(dtype), patterns).items():
        least = floor(problem, TABLE["h100"])
        common: report.Row = report.facts(torch.device("cpu")) | {"device": device, "commit": "c0ffee"}
        common |= {"gate": "ok", "floor_us": least.us, "floor_limiter": least.limiter}
        found = {p: conv.describe(name, p, problem, torch.device("cpu")) | common for p in times}
        timings = {p: Timing((least.us * multiple,) * 5) for p, multiple in times.items()}
        conv.add_figures(problem, torch.device("cuda"), found, timings)
        made += found.values()
    return made
