"""Host side of ``toeplitz_hopper``: the kernel's index arithmetic, counted work, legal configs, refusals, offline compilation.

The kernel cannot be interpreted: Gluon has no interpreter. What it computes is tested on a GPU (``test_on_gpu.py``); here,
where its windows lie, and what the same arithmetic makes of them.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from math import ceil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from compilation import compile_all, run_compiling
from torch import Tensor

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.depthwise.toeplitz_hopper import host as hopper
from lk_triton.algorithms.depthwise.toeplitz_hopper.config import ToeplitzHopperConfig
from lk_triton.algorithms.depthwise.toeplitz_hopper.cost import (
    IMAGES,
    issued_macs,
    matrix_elements,
    programs,
    shared_bytes,
    steps,
    steps_of,
    tile_blocks,
)
from lk_triton.algorithms.depthwise.toeplitz_hopper.host import WIDEST_ROW, ToeplitzHopperAlgorithm
from lk_triton.ops import layout
from lk_triton.ops.problem import ConvProblem, Epilogue
from lk_triton.planning import tuner
from lk_triton.planning.plan import plan
from lk_triton.tools.disassembly import main_loop
from lk_triton.tools.inspector import meta_launch

TOEPLITZ_HOPPER = ToeplitzHopperAlgorithm()
H100 = gpus.TABLE["h100"]

MEASURED = (
    (128, 56, 31, ToeplitzHopperConfig(8, 32, (32, 16), 1, 4, 4, 2, 1)),
    (128, 56, 31, ToeplitzHopperConfig(8, 32, (32, 16), 1, 5, 8, 1, 1)),
    (256, 28, 29, ToeplitzHopperConfig(8, 32, (32, 0), 1, 5, 4, 2, 1)),
    (256, 28, 29, ToeplitzHopperConfig(4, 32, (32, 0), 1, 5, 4, 1, 1)),
    (512, 14, 27, ToeplitzHopperConfig(16, 16, (16, 0), 1, 16, 2, 1, 1)),
    (512, 14, 27, ToeplitzHopperConfig(8, 16, (16, 0), 1, 16, 2, 1, 2)),
    (1024, 7, 13, ToeplitzHopperConfig(8, 8, (8, 0), 4, 3, 1, 1, 1)),
    (1024, 7, 13, ToeplitzHopperConfig(8, 8, (8, 0), 8, 3, 1, 1, 1)),
    (1024, 7, 13, ToeplitzHopperConfig(8, 8, (8, 0), 2, 3, 1, 1, 1)),
)
"""(channels, map, kernel, config) at batch 64, float16: measured on an H100, the fastest of each layer first."""


def problem(n: int, c: int, h: int, w: int, kh: int, kw: int, dtype: str = "float16", **options) -> ConvProblem:
    options.setdefault("padding", (kh // 2, kw // 2))
    options.setdefault("epilogue", Epilogue(bias=True, activation="relu"))
    return ConvProblem(n, c, h, w, kh, kw, dtype=dtype, **options)


def random_problem(rng: random.Random) -> ConvProblem:
    """What a GPU is asked to compute: batches around 64, odd sizes, every epilogue."""
    kh, kw = rng.choice([(7, 7), (13, 13), (31, 31), (51, 5), (5, 51)])
    h, w = rng.choice([(rng.randint(1, 20), rng.randint(1, 40)), (7, 7), (14, 14), (28, 28), (56, 56)])
    padding = rng.choice([(kh // 2, kw // 2), (kh - 1, kw - 1)])
    epilogue = Epilogue(rng.random() < 0.5, rng.choice([None, "relu", "gelu", "silu"]), rng.random() < 0.4)
    order = rng.choice(["nchw", "channel_major", "channels_last"])
    return problem(
        rng.choice([1, 3, 64, 100]), rng.choice([1, 5, 16]), h, w, kh, kw, rng.choice(["float16", "bfloat16"]),
        padding=padding, epilogue=epilogue, layout=order,
    )  # fmt: skip


def emulate(p: ConvProblem, args: SimpleNamespace, x: Tensor, bank: Tensor) -> tuple[Tensor, int]:
    """The convolution of one channel, x (N, H, W), as the kernel does it with these arguments; and how many steps it takes."""
    a, pitch = args, p.w
    kin = a.KIN_A + a.KIN_B
    n = x.shape[0]
    out = torch.full((n, p.oh, p.ow), float("nan"), dtype=torch.float64)
    taken = 0
    for column0 in range(0, a.column_tiles * a.WT, a.WT):
        window = max(min(max(column0 - a.pad_w, 0) // a.XV, (a.W_v * a.XV) // a.XV - kin // a.XV), 0) * a.XV
        tap = window - column0 + a.pad_w - torch.arange(a.WT)[:, None]
        copy = (-tap) & (a.V - 1)
        i = torch.arange(kin)[None] + torch.div(tap + copy, a.V, rounding_mode="trunc") * a.V
        table = torch.zeros(a.NQ, a.WT, a.D, kin, dtype=torch.float64)
        for q in range(a.NQ):
            for d in range(a.D):
                ky = a.S_HI - q + d
                if 0 <= ky < a.KH:
                    row = bank[ky][copy.expand_as(i), i.clamp(0, a.L - 1)]
                    table[q, :, d] = torch.where((i >= 0) & (i < a.L), row, 0.0)
        table = table.reshape(a.NQ * a.WT, a.D * kin)
        for g in range(a.groups):
            lo, hi = max(g * a.R - a.pad_h, 0), min(g * a.R + a.R + a.KH - 1 - a.pad_h, p.h)
            assert lo < hi
            acc = torch.zeros(n, a.R * a.WT, dtype=torch.float64)
            for step in range(lo, hi, a.D):
                taken += 1
                read = torch.zeros(n, a.D, kin, dtype=torch.float64)
                rows, columns = min(a.D, p.h - step), min(kin, pitch - window)
                read[:, :rows, :columns] = x[:, step : step + rows, window : window + columns]
                q = a.S_HI - (step + a.pad_h - g * a.R)
                assert q >= 0
                assert q + a.R <= a.NQ
                acc += read.reshape(n, -1) @ table[q * a.WT : (q + a.R) * a.WT].T
            inside = out[:, g * a.R : (g + 1) * a.R, column0 : column0 + a.WT]
            inside.copy_(acc.view(n, a.R, a.WT)[:, : inside.shape[1], : inside.shape[2]])
    return out, taken


def check_arithmetic(p: ConvProblem, config: ToeplitzHopperConfig) -> None:
    one = replace(p, n=2, c=1, epilogue=Epilogue())
    args = SimpleNamespace(**meta_launch(one, "toeplitz_hopper", config).args)
    x = torch.randn(2, p.h, p.w, dtype=torch.float64)
    weight = torch.randn(p.kh, p.kw, dtype=torch.float64)
    bank = torch.zeros(p.kh, args.V, args.L, dtype=torch.float64)
    for v in range(args.V):
        bank[:, v, v : v + p.kw] = weight
    out, taken = emulate(one, args, x, bank)
    expected = F.conv2d(x[:, None], weight[None, None], padding=p.padding)[:, 0]
    torch.testing.assert_close(out, expected, msg=str((p, config)))
    assert taken == steps(one, config)


def test_arithmetic_on_the_measured_configs(one_thread):
    for c, size, kernel, config in MEASURED:
        check_arithmetic(problem(64, c, size, size, kernel, kernel), config)


def test_arithmetic_on_random_problems_and_configs(one_thread):
    rng = random.Random(0)
    checked = 0
    for _ in range(40):
        p = random_problem(rng)
        for config in rng.sample(configs := TOEPLITZ_HOPPER.configs(p, H100), min(2, len(configs))):
            check_arithmetic(p, config)
            checked += 1
    assert checked >= 50


def test_counted_work():
    """(64, 128, 56, 56), 31x31, 8 x 32 tiles: 7 row groups of 23, 31, 38, 38, 38, 31, 23 rows."""
    p = problem(64, 128, 56, 56, 31, 31)
    config = ToeplitzHopperConfig(8, 32, (32, 16), 1, 4, 4, 2, 1)
    assert steps_of(p, 8, 1).steps == 222
    assert steps(p, config) == 128 * 2 * 222
    assert issued_macs(p, config) == 128 * 2 * 222 * 64 * 8 * 32 * 48 == TOEPLITZ_HOPPER.issued_macs(p, config)
    assert programs(p, config) == 256
    assert tile_blocks(p, config) == 7
    assert matrix_elements(p, config) == steps_of(p, 8, 1).blocks * 32 * 48
    # 65 images are as dear as 128
    assert steps(replace(p, n=65), config) == steps(replace(p, n=128), config) == 2 * steps(p, config)
    # and one is nearly as dear as 64
    one, all_of_them = (TOEPLITZ_HOPPER.estimate(replace(p, n=n), config, H100).seconds for n in (1, 64))
    assert one > 0.8 * all_of_them


@pytest.mark.parametrize(("c", "size", "kernel", "config"), [MEASURED[i] for i in (0, 4, 6)])
def test_the_plan_is_what_was_measured_best(monkeypatch, c, size, kernel, config):
    """But for the vectors of stores and, where single elements are copied, for buffers: the estimate does not see these."""
    monkeypatch.setattr(ToeplitzHopperAlgorithm, "why_not", lambda self, problem, device: None)
    p = problem(64, c, size, size, kernel, kernel, layout="channel_major")
    chosen = plan(p, H100)
    assert chosen.algorithm == "toeplitz_hopper"
    assert replace(chosen.config, store=0, buffers=0) == replace(config, store=0, buffers=0)
    if size == 14:
        assert (chosen.config, config.buffers) == (config, 16)
    tried = {replace(found.config, store=0) for found in tuner.candidates(p, H100) if found.algorithm == "toeplitz_hopper"}
    assert replace(chosen.config, store=0) in tried


def test_buffers_cost_no_resident_program():
    """The first of equal estimates has the most buffers of those that leave as many programs on an SM."""
    for c, size, kernel in ((128, 56, 31), (256, 28, 29), (512, 14, 27), (384, 14, 7), (192, 28, 7)):
        p = problem(64, c, size, size, kernel, kernel)
        groups: dict[ToeplitzHopperConfig, list[ToeplitzHopperConfig]] = {}
        for config in TOEPLITZ_HOPPER.configs(p, H100):
            groups.setdefault(replace(config, buffers=0), []).append(config)
        for configs in groups.values():
            keys = [(hopper.resident_programs(p, config, H100), config.buffers) for config in configs]
            assert keys == sorted(keys, reverse=True)
    single = {config.buffers for config in TOEPLITZ_HOPPER.configs(problem(64, 8, 57, 57, 31, 31), H100)}
    assert single == {min(hopper.BUFFERS)}


def test_rows_of_single_elements_have_configs():
    """Odd widths, where no copy can be asynchronous: two parts of a window, and images that all exist."""
    p = problem(64, 8, 57, 57, 31, 31)
    configs = TOEPLITZ_HOPPER.configs(p, H100)
    assert any(c.window[1] and c.step_rows == 1 for c in configs)
    assert meta_launch(p, "toeplitz_hopper", configs[0]).args["XV"] == 1


def test_small_batches_are_left_to_toeplitz():
    toeplitz = registry.get("toeplitz")
    for size, kernel, c in ((56, 31, 128), (28, 29, 256), (14, 27, 512), (7, 13, 1024)):
        p = problem(1, c, size, size, kernel, kernel)
        best = {
            a.name: min(a.estimate(p, config, H100).seconds for config in a.configs(p, H100))
            for a in (TOEPLITZ_HOPPER, toeplitz)
        }
        assert best["toeplitz"] < best["toeplitz_hopper"]


def test_configs_are_legal():
    rng = random.Random(1)
    for _ in range(40):
        p = random_problem(rng)
        configs = TOEPLITZ_HOPPER.configs(p, H100)
        assert len(set(configs)) == len(configs)
        for config in configs:
            assert shared_bytes(p, config) <= H100.shared_per_block
            assert 64 <= config.outputs <= 256
            assert 16 <= config.step_rows * config.window[0] <= WIDEST_ROW
            assert config.buffers >= 4
            assert config.groups * config.split <= max(tile_blocks(p, config), 1)
            assert p.ow % config.store == 0 or config.store == 1
            assert TOEPLITZ_HOPPER.estimate(p, config, H100).seconds > 0


def test_bank_is_that_of_toeplitz():
    p = problem(2, 3, 14, 14, 13, 13)
    weight = torch.randn(3, 1, 13, 13).half()
    config = TOEPLITZ_HOPPER.configs(p, H100)[0]
    toeplitz = registry.get("toeplitz")
    same = next(c for c in toeplitz.configs(p, H100) if toeplitz.weight_format(c) == TOEPLITZ_HOPPER.weight_format(config))
    assert same.vector == 4
    assert torch.equal(TOEPLITZ_HOPPER.prepack(weight, p, config), toeplitz.prepack(weight, p, same))
    assert TOEPLITZ_HOPPER.prepacked_bytes(p, config) == TOEPLITZ_HOPPER.prepack(weight, p, config).nbytes


@pytest.mark.parametrize(
    ("changed", "arch", "reason"),
    [
        ({}, "sm_80", "sm_80 has no wgmma"),
        ({}, "sm_100", "sm_100 has no wgmma"),
        ({}, "gfx942", "gfx942 has no wgmma"),
        ({"dtype": "float32"}, "sm_90", "float32 is not one of float16, bfloat16"),
        ({"stride": (2, 2)}, "sm_90", "stride"),
        ({"dilation": (2, 2)}, "sm_90", "dilation"),
        ({"multiplier": 2}, "sm_90", "multiplier 2 is not 1"),
        ({"kh": 8}, "sm_90", "8x13 is not odd"),
        ({"padding": (13, 6)}, "sm_90", "padding (13, 6) leaves outputs that see no input"),
    ],
)
def test_refusals(changed, arch, reason):
    p = replace(problem(64, 8, 28, 28, 13, 13), **changed)
    assert reason in str(TOEPLITZ_HOPPER.why_not(p, gpus.for_arch(arch)))


def test_refusals_of_the_environment(monkeypatch):
    p = problem(64, 8, 28, 28, 13, 13)
    assert "cannot be interpreted" in str(TOEPLITZ_HOPPER.why_not(p, H100))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    import triton

    for version, served in (("3.5.1", False), ("3.6.0", True), ("3.7.1+git", True), ("3.8.0", True), ("3.9.0", False)):
        hopper.why_no_gluon.cache_clear()
        monkeypatch.setattr(triton, "__version__", version)
        reason = TOEPLITZ_HOPPER.why_not(p, H100)
        assert (reason is None) == served
        assert served or f"needs Triton 3.6, 3.7 or 3.8, this is {version}" in str(reason)
    hopper.why_no_gluon.cache_clear()


@pytest.fixture(params=["installed", "oldest"])
def folder(request) -> str | None:
    """Where the Triton lies that is to compile: None for the installed one, or a folder with the oldest that can."""
    if request.param == "installed":
        return None
    if where := os.environ.get("LK_TRITON_TEST_TRITON"):
        return where
    pytest.skip("LK_TRITON_TEST_TRITON names no folder with Triton 3.6: pip install --no-deps --target FOLDER triton==3.6.0")


def test_windows_lie_where_plain_blocks_do(folder):
    """The view that overlaps its neighbours reads and writes, by its PTX, what an allocation of whole windows does."""
    assert len(run_compiling(["-m", "tests.algorithms.toeplitz_hopper_windows"], folder).splitlines()) == 5


def test_compiled_for_slices_and_single_rows(folder):
    """x that begins at no multiple of 16 bytes, of which Triton learns nothing, and a size of 1, which it makes a constant."""
    cases = []
    for size, kernel, offset in ((56, (13, 13), 4), (28, (13, 13), 4), (14, (13, 13), 2), (7, (13, 13), 1), (14, (1, 11), 0)):
        fields = {"n": 64, "c": 8, "h": size, "w": size, "kh": kernel[0], "kw": kernel[1],
                  "padding": (kernel[0] // 2, kernel[1] // 2)}  # fmt: skip
        configs = TOEPLITZ_HOPPER.configs(ConvProblem(**fields, epilogue=Epilogue(True)), H100)
        groups = [config.groups for config in configs]
        firsts = [groups.index(g) for g in (1, 2) if g in groups]
        cases += [("sm_90", "toeplitz_hopper", fields, (True, None, False), first, offset) for first in firsts]
    assert len(compile_all(cases, folder)) == len(cases) > 5


def test_compiled_for_sm_90(folder):
    """Random legal configs of the layers of 31B and of odd maps: no spills, shared memory as estimated, wgmma."""
    rng = random.Random(2)
    cases = []
    for c, size, kernel, epilogue in (
        (128, 56, 31, (True, "relu", False)), (256, 28, 29, (True, None, True)), (512, 14, 27, (True, "gelu", False)),
        (1024, 7, 13, (False, "silu", True)), (64, 57, 31, (True, "relu", False)),
    ):  # fmt: skip
        fields = {"n": 64 if size == 57 else rng.choice([64, 3]), "c": c, "h": size, "w": size, "kh": kernel, "kw": kernel,
                  "padding": (kernel // 2, kernel // 2), "dtype": rng.choice(["float16", "bfloat16"]),
                  "layout": "channel_major"}  # fmt: skip
        p = ConvProblem(**fields, epilogue=Epilogue(*epilogue))
        configs = TOEPLITZ_HOPPER.configs(p, H100)
        drawn = rng.sample(range(len(configs)), min(3, len(configs)))
        cases += [(p, configs[i], ("sm_90", "toeplitz_hopper", fields, epilogue, i)) for i in drawn]
    reports = compile_all([case for _, _, case in cases], folder)
    for (p, config, _), report in zip(cases, reports, strict=True):
        assert report["spill_bytes"] == 0, (p, config)
        assert report["shared_bytes"] <= shared_bytes(p, config), (p, config)
        assert report["num_warps"] == 4 * config.groups
        assert report["loop"]["mma_kind"].startswith(f"HGMMA.{IMAGES}x{config.outputs}x16"), (p, config)


FENCES = """
import sys
from lk_triton.tools import inspector
from lk_triton.algorithms.depthwise.toeplitz_hopper.config import ToeplitzHopperConfig
from lk_triton.ops.problem import ConvProblem, Epilogue
for line in sys.stdin:
    problem, config = eval(line)
    print(inspector.compile_launch(inspector.meta_launch(problem, "toeplitz_hopper", config), "sm_90").disassembly, end="\\f")
"""


def test_a_fence_stands_before_the_products(folder):
    """Once, behind a step's wait for its copies: wgmma reads through another proxy than copies write."""
    layers = [
        (problem(64, c, size, size, kernel, kernel), replace(config, buffers=4))
        for c, size, kernel, config in (MEASURED[i] for i in (0, 4, 6))
    ]
    listings = run_compiling(["-c", FENCES], folder, "\n".join(map(repr, layers))).split("\f")[:-1]
    assert len(listings) == len(layers)
    for listing in listings:
        loop = [text.split()[0] for text in main_loop(listing)]
        fences = [i for i, name in enumerate(loop) if name.startswith("FENCE.VIEW.ASYNC")]
        wait, product = (next(i for i, name in enumerate(loop) if name.startswith(n)) for n in ("DEPBAR", "HGMMA"))
        assert len(fences) == 1
        assert wait < fences[0] < product


def test_plan_with_a_triton_that_can(monkeypatch):
    """Batch 64 of the first stage: the cost model prefers it where it serves."""
    p = problem(64, 128, 56, 56, 31, 31)
    assert plan(p, H100).algorithm == "toeplitz"
    monkeypatch.setattr(ToeplitzHopperAlgorithm, "why_not", lambda self, problem, device: None)
    chosen = plan(replace(p, c=132), H100)
    assert chosen.algorithm == "toeplitz_hopper"
    assert (chosen.config.rows, chosen.config.columns, chosen.config.groups) == (8, 32, 2)


def test_launch_arguments_follow_strides():
    p = problem(64, 8, 28, 28, 13, 13)
    x = layout.empty((64, 8, 28, 28), "nchw", torch.empty(0, dtype=torch.float16, device="meta"))
    config = TOEPLITZ_HOPPER.configs(p, H100)[0]
    launch = TOEPLITZ_HOPPER.kernel_launch(p, config, {"x": x, "weight": x}, x)
    assert launch.args["stride_xn"] * launch.args["XV"] == 8 * 28 * 28
    assert launch.grid == (8 * ceil(28 / config.columns) * config.split,)
