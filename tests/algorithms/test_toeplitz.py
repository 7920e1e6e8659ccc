"""Host side of ``toeplitz``: windows, banks, counted work, legal configs."""

from __future__ import annotations

import random
from dataclasses import replace
from math import ceil

import pytest
import torch
from drawing import large_kernels
from numerics import assert_accurate

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import vector_width
from lk_triton.algorithms.cost import roofline
from lk_triton.algorithms.depthwise.toeplitz.config import ToeplitzConfig
from lk_triton.algorithms.depthwise.toeplitz.cost import (
    bank_bytes,
    dot_of,
    issued_macs,
    launch_cost,
    shared_bytes,
    window_of,
)
from lk_triton.algorithms.depthwise.toeplitz.host import ToeplitzAlgorithm, _groups
from lk_triton.ops import layout
from lk_triton.ops.problem import ConvProblem, Epilogue
from lk_triton.planning.plan import plan

TOEPLITZ = ToeplitzAlgorithm()
LAYERS = {"31 on 56": (56, 31), "29 on 28": (28, 29), "27 on 14": (14, 27), "13 on 7": (7, 13)}


def problem(n: int, c: int, h: int, w: int, kh: int, kw: int, dtype: str = "float16", **options) -> ConvProblem:
    options.setdefault("padding", (kh // 2, kw // 2))
    return ConvProblem(n, c, h, w, kh, kw, dtype=dtype, epilogue=Epilogue(bias=True, activation="relu"), **options)


def run(p: ConvProblem, config: ToeplitzConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Run ``config`` on random data in the interpreter, against float64; returns x and the bank."""
    dtype = getattr(torch, p.dtype)
    x = torch.randn(p.n, p.c, p.h, p.w).to(dtype)
    weight = (torch.randn(p.c, 1, p.kh, p.kw) / (p.kh * p.kw) ** 0.5).to(dtype)
    bias = torch.randn(p.c).to(dtype)
    bank = TOEPLITZ.prepack(weight, p, config)
    out = TOEPLITZ.launch(p, config, {"x": x, "weight": bank, "bias": bias})
    assert_accurate(out, x, weight, bias, "relu", padding=p.padding)
    return x, bank


CHANNELS = {31: 128, 29: 256, 27: 512, 13: 1024}
SHARE = {31: 0.335, 29: 0.385, 27: 0.404, 13: 0.290}
"""Least useful share by kernel size, taps that meet a pixel counted."""


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("size", "kernel"), LAYERS.values(), ids=LAYERS.keys())
def test_useful_share_of_the_layers_of_31b(size, kernel, arch, recorded):
    """Batch 64, the plan that would run; one channel stands for all, which run the same program."""
    full = problem(64, CHANNELS[kernel], size, size, kernel, kernel)
    chosen = plan(full, gpus.for_arch(arch), "toeplitz")
    one = problem(64, 1, size, size, kernel, kernel)
    run(one, chosen.config)
    assert recorded.macs == issued_macs(one, chosen.config)
    assert one.useful_macs / recorded.macs >= SHARE[kernel]


@pytest.mark.parametrize("images", [64, 32, 24, 8], ids=lambda n: f"{n} images")
def test_every_way_that_images_fill_blocks_of_tiles(images: int) -> None:
    """Batches that are a multiple of a block's tiles, of which a block holds several row groups, and others: by value."""
    p = problem(images, 1, 6, 8, 5, 5)
    found = {}
    for config in TOEPLITZ.configs(replace(p, n=64), gpus.TABLE["h100"]):
        if config.rows < p.h:
            found.setdefault((config.tiles, config.swap), config)
    ways = {(min(_groups(images, tiles), 2), images > tiles) for tiles, _ in found}  # 2: several groups a block
    several, whole, any_of = (2, False), (1, True), (0, False)
    assert ways >= {64: {whole, (1, False), several}, 32: {whole, several}, 24: {any_of}, 8: {several}}[images]
    for config in found.values():
        run(p, config)


def test_counted_work_is_what_the_kernel_does(recorded):
    """Random problems and configs: multiply-adds and bytes of the estimate equal those recorded, and the result is right."""
    rng = random.Random(0)
    seen = set()
    for _ in range(20):
        p = large_kernels(rng)
        configs = TOEPLITZ.configs(p, gpus.TABLE["h100"])
        kinds = sorted({(c.swap, c.step_rows > 1) for c in configs})
        kind = rng.choice(kinds)
        config = rng.choice([c for c in configs if (c.swap, c.step_rows > 1) == kind])
        seen.add(kind)
        recorded.clear()
        x, bank = run(p, config)
        counted = launch_cost(p, config)
        assert recorded.macs == counted.macs == issued_macs(p, config), (p, config)
        assert recorded.bytes_of(x) == counted.image_bytes, (p, config)
        assert recorded.bytes_of(bank) == counted.bank_bytes, (p, config)
        assert counted.bank_rows_bytes >= (counted.bank_bytes > 0)
    assert len(seen) == 4, "all of plain, swapped, several rows a step, and both were drawn"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("h100", {"mma", "smem", "issue", "l2"}), ("b200", {"smem", "l2", "issue"}), ("mi300x", {"mma", "issue", "l2"})],
)
def test_an_estimate_moves_only_with_its_limiter(name, expected, monkeypatch):
    """Halving one device fact slows exactly the configs that it limits, or that it limits once halved. The launch, which is
    added to all, is taken out."""
    monkeypatch.setattr(roofline, "LAUNCH_SECONDS", 0.0)
    target = gpus.TABLE[name]
    facts = {"mma": "mma_half_tflops", "smem": "shared_bytes_per_clock", "l2": "l2_gbps", "issue": "issue_per_clock",
             "dram": "dram_gbps"}  # fmt: skip
    limiters = set()
    for size, kernel in LAYERS.values():
        for n in (1, 64):
            p = problem(n, 256, size, size, kernel, kernel)
            for config in TOEPLITZ.configs(p, target)[::13]:
                before = TOEPLITZ.estimate(p, config, target)
                limiters.add(before.limiter)
                for limiter, fact in facts.items():
                    half = replace(target, **{fact: getattr(target, fact) / 2})
                    after = TOEPLITZ.estimate(p, config, half)
                    if after.limiter == limiter:
                        assert after.seconds >= before.seconds
                    else:
                        assert after == before
                    if before.limiter == limiter:
                        assert after.seconds > before.seconds
    assert expected <= limiters


@pytest.mark.parametrize(
    ("vector", "dtype"), [(4, torch.float16), (8, torch.bfloat16), (2, torch.float32), (4, torch.float32)]
)
@pytest.mark.parametrize("kw", [1, 5, 31])
def test_bank_holds_shifted_copies(kw, vector, dtype):
    weight = torch.randn(3, 1, 7, kw).to(dtype)
    p = problem(1, 3, 8, 8, 7, kw, str(dtype).removeprefix("torch."))
    config = ToeplitzConfig(4, 8, (64, 0), 16, vector, 4, 2)
    bank = TOEPLITZ.prepack(weight, p, config)
    length = bank.shape[-1]
    assert bank.shape == (3, 7, vector, ceil((kw + vector - 1) / vector) * vector)
    expected = torch.zeros_like(bank)
    for v in range(vector):
        expected[:, :, v, v : v + kw] = weight[:, 0]
    assert torch.equal(bank, expected)
    assert bank.nbytes == bank_bytes(p, vector)
    assert length % vector == 0


def test_banks_of_31b_stay_small():
    """design limits: at most 4 MB a layer in stages 3 and 4, and 150 MB for the network."""
    total = 0
    for (c, blocks), (size, kernel) in zip([(128, 2), (256, 2), (512, 18), (1024, 2)], LAYERS.values(), strict=True):
        p = problem(64, c, size, size, kernel, kernel)
        bank = bank_bytes(p, plan(p, gpus.for_arch("sm_90"), "toeplitz").config.vector)
        assert size > 14 or bank <= 4 * 2**20
        total += blocks * bank
    assert total <= 150 * 2**20


def test_window_shows_every_tile_what_it_reads():
    """The kernel's window start, for every column tile and every alignment that a tensor may have."""
    rng = random.Random(1)
    for _ in range(300):
        kw, w = rng.choice([1, 3, 7, 13, 31, 51]), rng.randint(1, 120)
        p = problem(1, 1, 4, w, 3, kw, rng.choice(["float16", "float32"]), padding=(1, rng.choice([0, kw // 2, kw])))
        columns = rng.choice([8, 16, 32, 64])
        if p.ow < 1:
            continue
        window = window_of(p, columns)
        assert window is not None
        pad, size = p.padding[1], sum(window)
        widest = vector_width(16 // p.itemsize, [], w)
        for xv in (v for v in (1, 2, 4, 8) if v <= widest):
            for column0 in range(0, p.ow, columns):
                start = max(min(max(column0 - pad, 0) // xv, (w - size) // xv), 0) * xv
                needed = [c for c in range(column0 - pad, min(column0 + columns, p.ow) - pad + kw - 1) if 0 <= c < w]
                assert all(start <= c < start + size for c in needed), (p, columns, xv)


def test_windows_beyond_256_columns_are_refused():
    p = problem(1, 1, 8, 600, 3, 401)
    assert window_of(p, 8) is None
    assert TOEPLITZ.configs(p, gpus.TABLE["h100"]) == []


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_configs_fit_the_device(dtype, arch):
    target = gpus.for_arch(arch)
    for size, kernel in LAYERS.values():
        for n in (1, 64):
            p = problem(n, 64, size, size, kernel, kernel, dtype)
            configs = TOEPLITZ.configs(p, target)
            assert configs
            assert len(set(configs)) == len(configs)
            assert all(shared_bytes(p, c, dot_of(p, c, target)) <= target.shared_per_block for c in configs)
            assert all(dot_of(p, c, target).tensor_columns <= target.tensor_columns for c in configs)


def test_refusals():
    p = problem(1, 8, 16, 16, 7, 7)
    assert "sm_75" in str(TOEPLITZ.why_not(p, gpus.for_arch("sm_75")))
    assert TOEPLITZ.why_not(p, gpus.for_arch("sm_80")) is None
    assert "CUDA or ROCm" in str(TOEPLITZ.why_not(p, gpus.CPU))
    strided = problem(1, 8, 16, 16, 3, 3, stride=(2, 2))
    assert "stride" in str(TOEPLITZ.why_not(strided, gpus.TABLE["h100"]))
    assert registry.get("direct").why_not(strided, gpus.TABLE["h100"]) is None
    double = problem(1, 8, 16, 16, 7, 7, "float64")
    assert "float64" in str(TOEPLITZ.why_not(double, gpus.TABLE["h100"]))


def test_b200_is_not_slower_than_h100():
    """31B's large-kernel layers at batch 64, fp16, by the model."""
    for size, kernel in LAYERS.values():
        p = problem(64, CHANNELS[kernel], size, size, kernel, kernel)
        h100, b200 = (
            TOEPLITZ.estimate(p, plan(p, gpus.TABLE[name], "toeplitz").config, gpus.TABLE[name]).seconds
            for name in ("h100", "b200")
        )
        assert b200 <= h100


LIMITERS = ("mma", "smem", "l2", "dram", "issue", "latency", "fma", "launch")


def test_estimates_name_their_limiter():
    p = problem(64, 128, 56, 56, 31, 31)
    for name in ("toeplitz", "direct", "torch"):
        algorithm = registry.get(name)
        h100 = gpus.TABLE["h100"]
        estimates = [algorithm.estimate(p, c, h100) for c in algorithm.configs(p, h100)]
        assert all(e.seconds > 0 and e.limiter in LIMITERS for e in estimates)
    best = {name: min(registry.get(name).estimate(p, c, h100).seconds for c in registry.get(name).configs(p, h100))
            for name in ("toeplitz", "direct")}  # fmt: skip
    assert best["toeplitz"] < best["direct"]


def test_vector_width_follows_pitch_strides_and_address():
    x = torch.empty(2, 4, 8, 16, dtype=torch.float16)
    assert vector_width(8, [x], 16) == 8
    assert vector_width(8, [x], 28) == 4
    assert vector_width(8, [x], 7) == 1
    assert vector_width(8, [x, None], 16) == 8
    shifted = torch.empty(x.numel() + 2, dtype=x.dtype)[2:].view(x.shape)
    assert vector_width(8, [shifted], 16) == 2
    assert layout.has_dense_planes(shifted)
