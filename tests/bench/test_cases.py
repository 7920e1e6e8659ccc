"""The cases are the published layers, each once, and their work is what hand arithmetic says."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from lk_triton import gpu as gpus
from lk_triton.bench import conv
from lk_triton.bench.cases import cases, layer, select, tiny
from lk_triton.bench.floor import compulsory_bytes, floor, mma_tflops
from lk_triton.cli.tune import problems
from lk_triton.ops.problem import ConvProblem

H100 = gpus.TABLE["h100"]


def shapes(*patterns: str) -> list[tuple[int, ...]]:
    return [(p.n, p.c, p.h, p.w, p.kh, p.kw) for p in select(cases(), patterns).values()]


def test_cases_are_the_published_layers() -> None:
    for n in (64, 8, 1):
        at_224 = [(n, 128, 56, 56, 31, 31), (n, 256, 28, 28, 29, 29), (n, 512, 14, 14, 27, 27), (n, 1024, 7, 7, 13, 13)]
        at_384 = [(n, 128, 96, 96, 31, 31), (n, 256, 48, 48, 29, 29), (n, 512, 24, 24, 27, 27), (n, 1024, 12, 12, 13, 13)]
        assert shapes(f"31b-224-*-n{n}") == at_224
        assert shapes(f"31b-384-*-n{n}") == ([] if n == 8 else at_384)
    wide = [(1, 128, 256, 512, 31, 31), (1, 256, 128, 256, 29, 29), (1, 512, 64, 128, 27, 27), (1, 1024, 32, 64, 13, 13)]
    assert shapes("wide-*") == wide
    kernels = (3, 5, 7, 9, 13, 17, 21, 27, 29, 31)
    assert shapes("table1-*") == [(64, 384, r, r, k, k) for r, k in product((16, 32, 64), kernels)]
    assert [s[-2:] for s in shapes("slak-*")] == [(51, 51), (51, 5), (5, 51)]
    convnext = [(96, 56, 56, 7, 7), (192, 28, 28, 7, 7), (384, 14, 14, 7, 7), (768, 7, 7, 7, 7)]
    assert [s[1:] for s in shapes("convnext-*")] == convnext


def test_cases_are_what_a_fused_network_poses() -> None:
    """Every field, the layout too: the plans that tuning a network saves are those of these cases."""
    for size, batches in ((224, (64, 8, 1)), (384, (64, 1))):
        posed = {p for p in problems("replknet_31b", list(batches), [size], ["float16"]) if isinstance(p, ConvProblem)}
        assert set(select(cases(), [f"31b-{size}-*"]).values()) == {p for p in posed if p.kh > 3}


def test_layouts_are_those_of_the_networks() -> None:
    layouts = {name.split("-")[0]: p.layout for name, p in cases(batches=(64,)).items()}
    expected = {"31b": "channel_major", "wide": "channel_major", "convnext": "channels_last"}
    assert layouts == {"table1": "nchw", "slak": "nchw"} | expected
    assert [p.layout for p in select(cases(), ["31b-224-*-n1"]).values()] == ["nchw", "nchw", "channel_major", "channel_major"]


def test_cases_are_unique_and_complete() -> None:
    found = cases()
    assert len(found) == len(set(found.values())) == 20 + 4 + 30 + 3 + 4
    assert all((p.oh, p.ow) == (p.h, p.w) for p in found.values())
    assert {p.epilogue.activation for name, p in found.items() if name.startswith(("31b", "wide"))} == {"relu"}
    assert not any(p.epilogue.bias for p in select(found, ["table1-*"]).values())


def test_batches_and_dtype_are_the_callers() -> None:
    found = cases("bfloat16", (8, 2))
    assert {(p.n, p.dtype) for p in found.values()} == {(8, "bfloat16"), (2, "bfloat16")}
    assert all(name.endswith(f"-n{p.n}") for name, p in found.items())


def test_patterns_give_the_order_and_no_case_twice() -> None:
    assert list(select(cases(), ["wide-stage2*", "31b-224-stage1-*", "*-stage2-n1"])) == [
        "wide-stage2-n1", "31b-224-stage1-n64", "31b-224-stage1-n8", "31b-224-stage1-n1", "31b-224-stage2-n1",
        "31b-384-stage2-n1",
    ]  # fmt: skip


def test_defaults_choose_something() -> None:
    for defaults in (conv.GPU, conv.CPU):
        assert select(cases(defaults.dtype, defaults.batches), defaults.cases)


@pytest.mark.parametrize("problem", cases().values(), ids=cases().keys())
def test_tiny_cases_are_small_and_of_the_same_kind(problem: ConvProblem) -> None:
    small = tiny(problem)
    assert small.nominal_macs < 1e5
    assert (small.kh >= 2 * small.h - 1) == (problem.kh >= 2 * problem.h - 1)
    assert (small.kh > small.kw, small.kh < small.kw) == (problem.kh > problem.kw, problem.kh < problem.kw)
    assert small.epilogue == problem.epilogue


def test_useful_macs_of_31b_stage_1_by_hand() -> None:
    """Of 56 * 31 taps along an axis, each edge loses 15 + 14 + ... + 1 = 120: 1736 - 240 = 1496."""
    problem = layer(64, 128, 56, 56, 31)
    assert problem.nominal_macs == 64 * 128 * 56 * 56 * 31 * 31
    assert problem.useful_macs == 64 * 128 * 1496**2


def test_useful_macs_of_a_whole_plane_by_hand() -> None:
    """13x13 on 7x7: every output meets every pixel."""
    assert layer(64, 1024, 7, 7, 13).useful_macs == 64 * 1024 * 49 * 49


@pytest.mark.parametrize(
    "problem",
    [
        layer(2, 3, 5, 9, 5, 3),
        ConvProblem(1, 2, 9, 8, 3, 4, stride=(2, 1), padding=(1, 3), dilation=(1, 2), multiplier=2),
        ConvProblem(1, 1, 3, 3, 7, 7, padding=(5, 4)),
    ],
    ids=str,
)
def test_useful_macs_count_what_a_convolution_of_ones_sums(problem: ConvProblem) -> None:
    x, out_channels = torch.ones(problem.n, problem.c, problem.h, problem.w), problem.c * problem.multiplier
    weight = torch.ones(out_channels, 1, problem.kh, problem.kw)
    y = F.conv2d(x, weight, None, problem.stride, problem.padding, problem.dilation, problem.c)
    assert problem.useful_macs == y.sum().item()


def test_the_floor_is_the_larger_of_two() -> None:
    stage1 = layer(64, 128, 56, 56, 31)
    assert compulsory_bytes(stage1) == 2 * (2 * 64 * 128 * 56 * 56 + 128 * 961)
    least = floor(stage1, H100)
    assert (least.us, least.limiter) == (pytest.approx(2 * 64 * 128 * 1496**2 / 989e6), "MMA")
    small = layer(64, 128, 56, 56, 3)
    least = floor(small, H100)
    assert (least.us, least.limiter) == (pytest.approx(2 * (2 * 64 * 128 * 56 * 56 + 128 * 9) / 3000e3), "DRAM")


def test_rates_of_float32() -> None:
    assert mma_tflops(H100, "float16") == 989
    assert mma_tflops(H100, "float32", "tf32") == 494
    assert mma_tflops(H100, "float32", "ieee") == 66.9
    assert mma_tflops(H100, "float32") == pytest.approx(494 / 3)
    assert mma_tflops(gpus.TABLE["rtx4090"], "float32") == 82.6  # faster than a third of its TF32
