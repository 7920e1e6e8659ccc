"""Host side of ``direct``: every config is right, vectors fit the rows, the estimate follows its limiter."""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from compilation import compile_all
from drawing import depthwise
from numerics import assert_accurate

import lk_triton
from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import image_vector, with_prepacked
from lk_triton.algorithms.cost import roofline
from lk_triton.algorithms.depthwise.direct.channels_last import channels_last_cost
from lk_triton.algorithms.depthwise.direct.config import OUTPUTS_PER_LANE, DirectConfig
from lk_triton.algorithms.depthwise.direct.cost import blocks, launch_cost
from lk_triton.algorithms.depthwise.direct.host import DirectAlgorithm
from lk_triton.algorithms.depthwise.toeplitz.config import ToeplitzConfig
from lk_triton.ops import layout
from lk_triton.ops.problem import ConvProblem, Epilogue
from lk_triton.planning.plan import plan

DIRECT = DirectAlgorithm()
H100 = gpus.TABLE["h100"]


def problem(n: int, c: int, h: int, w: int, k: int, dtype: str = "float16", stride: int = 1) -> ConvProblem:
    epilogue = Epilogue(bias=True, activation="silu", residual=True)
    return ConvProblem(n, c, h, w, k, k, (stride, stride), (k // 2, k // 2), dtype=dtype, epilogue=epilogue)


def run(p: ConvProblem, config: DirectConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Run ``config`` on random data in the interpreter, against float64; returns x and the bank."""
    dtype, channels = getattr(torch, p.dtype), p.out_shape[1]
    x = torch.randn(p.n, p.c, p.h, p.w).to(dtype)
    weight = (torch.randn(channels, 1, p.kh, p.kw) / (p.kh * p.kw) ** 0.5).to(dtype)
    bias = torch.randn(channels).to(dtype) if p.epilogue.bias else None
    residual = torch.randn(p.out_shape).to(dtype) if p.epilogue.residual else None
    if p.layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    given = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    operands = with_prepacked(DIRECT, p, config, {role: tensor for role, tensor in given.items() if tensor is not None})
    assert operands["weight"].nbytes == DIRECT.prepacked_bytes(p, config) or not config.channels
    out = DIRECT.launch(p, config, operands)
    assert out.stride() == layout.strides(p.out_shape, p.layout)
    options = {"padding": p.padding, "stride": p.stride, "dilation": p.dilation}
    assert_accurate(out, x, weight, bias, p.epilogue.activation, residual, **options)
    return x, operands["weight"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "shape", [(2, 2, 8, 16, 3), (1, 2, 7, 12, 5), (3, 1, 5, 14, 3), (1, 1, 9, 7, 3), (2, 1, 3, 3, 3)], ids=str
)
def test_every_config_is_right(shape: tuple[int, int, int, int, int], dtype: str):
    """Rows of 16, 12, 14, 7 and 3 columns: vectors of eight, four, two and one; numbers of rows that no group divides."""
    p = problem(*shape, dtype)
    configs = DIRECT.configs(p, H100)
    assert {c.rows for c in configs} >= {1, 2}
    for config in configs:
        run(p, config)


@pytest.mark.parametrize(
    "fields",
    [{"kh": 3, "kw": 3, "dilation": (18, 18), "padding": (18, 18), "w": 40},  # atrous pyramids; vectors that nobody reads
     {"kh": 2, "kw": 4, "dilation": (1, 1), "stride": (2, 4), "padding": (0, 0), "w": 32},  # patches
     {"c": 1, "kh": 51, "kw": 5, "padding": (25, 2), "h": 4}, {"c": 1, "kh": 5, "kw": 51, "padding": (2, 25), "h": 4}],
    ids=str,
)  # fmt: skip
def test_wide_footprints(fields: dict):
    p = replace(ConvProblem(1, 2, 16, 32, 3, 3, dtype="float16", multiplier=2), **fields)
    for rows in {c.rows for c in DIRECT.configs(p, H100)}:
        run(p, DirectConfig(64, 2, rows))


def test_counted_work_is_what_the_kernel_does(recorded):
    """Random problems and configs: multiply-adds and bytes of the estimate equal those recorded, and the result is right."""
    rng = random.Random(1)
    shared, kinds = 0, set()
    for _ in range(20):
        p = depthwise(rng, ("float16", "float32"), epilogue=Epilogue())
        along_channels = p.layout == "channels_last"
        configs = [c for c in DIRECT.configs(p, H100) if bool(c.channels) == along_channels]
        several = rng.choice(sorted({c.rows > 1 for c in configs}))
        config = rng.choice([c for c in configs if (c.rows > 1) == several])
        recorded.clear()
        x, weight = run(p, config)
        counted = channels_last_cost(p, config) if along_channels else launch_cost(p, config)
        kinds.add((along_channels, several))
        assert recorded.programs == counted.programs, (p, config)
        assert recorded.products == counted.macs == DIRECT.issued_macs(p, config), (p, config)
        assert recorded.bytes_of(x) == counted.image_bytes, (p, config)
        assert recorded.bytes_of(weight) == counted.weight_bytes, (p, config)
        distinct = recorded.distinct_bytes_of(x)
        assert distinct <= counted.image_distinct_bytes <= counted.image_bytes, (p, config)
        assert counted.weight_distinct_bytes == recorded.distinct_bytes_of(weight), (p, config)
        shared += counted.image_distinct_bytes < counted.image_bytes
    assert shared > 5, "rows that programs read again were drawn"
    assert len(kinds) == 4, "lanes along rows and along channels were drawn, of one row and of several"


def test_distinct_bytes_are_close_where_programs_own_whole_rows(recorded):
    p = ConvProblem(2, 1, 32, 32, 5, 5, padding=(2, 2), dtype="float16")
    for config in DIRECT.configs(p, H100):
        recorded.clear()
        x, _ = run(p, config)
        assert recorded.distinct_bytes_of(x) == launch_cost(p, config).image_distinct_bytes


def test_channels_last_is_read_as_it_is_where_that_is_cheaper():
    """No conversion for small kernels; from 9x9 on tensor cores pay for one."""

    def best(k: int) -> Any:
        return plan(replace(problem(64, 96, 56, 56, k), layout="channels_last"), H100).config

    assert all(best(k).channels for k in (3, 5, 7))
    assert isinstance(best(13), ToeplitzConfig)
    p = replace(problem(2, 4, 9, 9, 3), layout="channels_last")
    assert all(c.channels == 0 for c in DIRECT.configs(replace(p, multiplier=2), H100))
    assert all(c.channels == 0 for c in DIRECT.configs(replace(p, layout="nchw"), H100))
    x, weight = torch.randn(2, 16, 9, 9).contiguous(memory_format=torch.channels_last), torch.randn(16, 1, 3, 3)
    chosen = lk_triton.explain(x, weight).plan
    assert chosen.config.channels, "through the public function"
    y = lk_triton.depthwise_conv2d(x, weight, residual=x.contiguous())
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_accurate(y, x, weight, residual=x, padding=(1, 1))


def test_unaligned_channels_last():
    """A tensor that begins at an odd element is read by narrower vectors."""
    p = ConvProblem(1, 8, 5, 6, 3, 3, padding=(1, 1), dtype="float16", layout="channels_last")
    x = torch.randn(8 * 30 + 1).half()[1:].view(1, 5, 6, 8).permute(0, 3, 1, 2)
    weight = torch.randn(8, 1, 3, 3).half()
    config = DIRECT.configs(p, H100)[0]
    out = DIRECT.launch(p, config, {"x": x, "weight": DIRECT.prepack(weight, p, config)})
    assert_accurate(out, x, weight, padding=(1, 1))


def test_rows_of_a_lane():
    """More than one where output rows share input rows and the compiler can unroll them within seconds."""

    def rows(p: ConvProblem) -> set[int]:
        return {c.rows for c in DIRECT.configs(p, H100)}

    assert rows(problem(1, 8, 32, 32, 3)) == rows(problem(1, 8, 32, 32, 5)) == {1, 2, 4}
    assert rows(problem(1, 8, 56, 56, 7)) == {1, 2}
    assert rows(problem(1, 8, 7, 7, 7)) == rows(problem(1, 8, 32, 32, 9)) == {1}
    assert rows(problem(1, 8, 32, 32, 3, stride=2)) == {1, 2, 4}
    assert rows(problem(1, 8, 1, 32, 3)) == {1}
    assert rows(replace(problem(1, 8, 32, 32, 3), dilation=(2, 2))) == {1}
    assert rows(replace(problem(1, 8, 32, 32, 3, stride=2), dilation=(2, 1))) == {1, 2, 4}
    assert rows(replace(problem(1, 8, 32, 32, 3), stride=(3, 1))) == {1}


def test_refusals():
    assert "at most 108 fit in registers" in str(DIRECT.why_not(problem(1, 1, 8, 200, 103), H100))
    assert DIRECT.why_not(problem(1, 1, 8, 200, 101), H100) is None
    spread = replace(problem(1, 1, 8, 200, 17), dilation=(1, 8))
    assert "dilation 8 use 136 input columns" in str(DIRECT.why_not(spread, H100))
    assert DIRECT.why_not(replace(spread, kw=13), H100) is None
    assert "IEEE" in str(DIRECT.why_not(replace(problem(1, 1, 8, 8, 3, "float32"), precision="tf32"), H100))
    assert "float64" in str(DIRECT.why_not(problem(1, 1, 8, 8, 3, "float64"), H100))


def test_issued_macs_count_every_lane():
    p, config = problem(2, 3, 14, 14, 5), DirectConfig(block=64, num_warps=2, rows=2)
    lanes = 2 * 7 * 2  # images, pairs of rows, groups of eight columns: one block of 64 a channel
    assert lanes <= config.block
    assert blocks(p, config) == 1
    assert DIRECT.issued_macs(p, config) == 3 * 64 * OUTPUTS_PER_LANE * 2 * 25
    assert DIRECT.prepacked_bytes(p, config) == 0


def test_an_estimate_moves_only_with_its_limiter(monkeypatch):
    monkeypatch.setattr(roofline, "LAUNCH_SECONDS", 0.0)
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


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_compiled(arch: str):
    """A sample of problems and configs: hardly a spill, image loads as wide as the pitch, or the channels, allow."""
    rng, cases, posed = random.Random(arch), [], []
    for i in range(4):
        order: dict[str, Any] = {"layout": "channels_last", "multiplier": 1} if i % 2 else {"layout": "nchw"}
        p = depthwise(rng, n=64, c=96, h=56, **order)
        configs = DIRECT.configs(p, gpus.for_arch(arch))
        number = rng.choice([i for i, c in enumerate(configs) if bool(c.channels) == (p.layout != "nchw")])
        epilogue = (p.epilogue.bias, p.epilogue.activation, False)
        fields = {k: v for k, v in asdict(p).items() if k != "epilogue"}
        cases.append((arch, "direct", fields, epilogue, number))
        posed.append(p)
    for p, report in zip(posed, compile_all(cases), strict=True):
        # ptxas gives up a register or two for one more program on an SM
        assert report["spill_bytes"] <= 16, p
        assert report["loop"]["mma"] == 0
        width = image_vector(p) * p.itemsize if p.layout == "nchw" else 16
        assert str(width) in report["loop"]["loads"], p


def test_channels_last_positions_are_counted_in_32_bits():
    """(64, 2, 8192, 8192): 2^31 positions of two columns each, 2^29 of eight."""
    p = ConvProblem(64, 2, 8192, 8192, 3, 3, padding=(1, 1), layout="channels_last")
    h100 = gpus.TABLE["h100"]
    assert registry.get("direct").why_not(p, h100) is None
    offered = {(c.rows, c.columns) for c in registry.get("direct").configs(p, h100) if c.channels}
    assert (1, 8) in offered
    assert (2, 2) in offered
    assert not {(1, 1), (1, 2), (2, 1)} & offered
