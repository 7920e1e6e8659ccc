"""Host side of ``direct``: every config is right, vectors fit the rows, the estimate follows its limiter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from numerics import assert_accurate

from lk_triton import device
from lk_triton.algorithms import base
from lk_triton.algorithms.direct import OUTPUTS_PER_LANE, DirectAlgorithm, DirectConfig
from lk_triton.problem import ConvProblem, Epilogue

DIRECT = DirectAlgorithm()
H100 = device.TABLE["h100"]


def problem(n: int, c: int, h: int, w: int, k: int, dtype: str = "float16", stride: int = 1) -> ConvProblem:
    epilogue = Epilogue(bias=True, activation="silu", residual=True)
    return ConvProblem(n, c, h, w, k, k, (stride, stride), (k // 2, k // 2), dtype=dtype, epilogue=epilogue)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "shape", [(2, 2, 8, 16, 3), (1, 2, 7, 12, 5), (3, 1, 5, 14, 3), (1, 1, 9, 7, 5), (2, 1, 2, 3, 7)], ids=str
)
def test_every_config_is_right(shape: tuple[int, int, int, int, int], dtype: str):
    """Rows of 16, 12, 14, 7 and 3 columns: vectors of eight, four, two and one; odd numbers of rows for two a lane."""
    p = problem(*shape, dtype)
    x = torch.randn(p.n, p.c, p.h, p.w).to(getattr(torch, dtype))
    weight = (torch.randn(p.c, 1, p.kh, p.kw) / p.kh).to(x.dtype)
    bias, residual = torch.randn(p.c).to(x.dtype), torch.randn(p.out_shape).to(x.dtype)
    configs = DIRECT.configs(p, H100)
    assert {c.rows for c in configs} == {1, 2}
    for config in configs:
        out = DIRECT.launch(p, config, x, weight, bias, residual)
        assert_accurate(out, x, weight, bias, "silu", residual, padding=p.padding)


def test_two_rows_a_lane_only_where_they_can_be_unrolled():
    assert {c.rows for c in DIRECT.configs(problem(1, 8, 32, 32, 9), H100)} == {1}
    assert {c.rows for c in DIRECT.configs(problem(1, 8, 32, 32, 3, stride=2), H100)} == {1}
    assert {c.rows for c in DIRECT.configs(problem(1, 8, 1, 32, 3), H100)} == {1}


def test_issued_macs_count_every_lane():
    p, config = problem(2, 3, 14, 14, 5), DirectConfig(block=64, num_warps=2, rows=2)
    lanes = 2 * 7 * 2  # images, pairs of rows, groups of eight columns: one block of 64 a channel
    assert lanes <= config.block
    assert DIRECT.issued_macs(p, config) == 3 * 64 * OUTPUTS_PER_LANE * 2 * 25
    assert DIRECT.bank_bytes(p, config) == 0


def test_an_estimate_moves_only_with_its_limiter(monkeypatch):
    monkeypatch.setattr(base, "LAUNCH_SECONDS", 0.0)
    facts = {"fma": "fp32_tflops", "smem": "shared_bytes_per_clock", "l2": "l2_gbps", "issue": "issue_per_clock",
             "dram": "dram_gbps"}  # fmt: skip
    limiters = set()
    for k in (3, 5, 7, 31):
        for dtype in ("float16", "float32"):
            p = problem(64, 128, 56, 56, k, dtype)
            for config in DIRECT.configs(p, H100):
                before = DIRECT.estimate(p, config, H100)
                limiters.add(before.limiter)
                for limiter, fact in facts.items():
                    after = DIRECT.estimate(p, config, replace(H100, **{fact: getattr(H100, fact) / 2}))
                    if after.limiter == limiter:
                        assert after.seconds >= before.seconds
                    else:
                        assert after == before
                    assert (after.seconds > before.seconds) or before.limiter != limiter
    assert {"dram", "issue"} <= limiters
