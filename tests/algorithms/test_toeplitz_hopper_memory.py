"""Which memory a launch of ``toeplitz_hopper`` touches, address by address, on the layers of RepLKNet-31B.

What its arguments say is done in numpy as the kernel does it. Loads lie inside the tensors or are masked, windows inside T,
every output is written once, and what comes out is the convolution, exactly.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.depthwise.toeplitz import host as toeplitz
from lk_triton.ops.problem import ConvProblem

H100 = gpus.TABLE["h100"]
TOEPLITZ_HOPPER: Any = registry.get("toeplitz_hopper")
LAYERS = ((128, 56, 31), (256, 28, 29), (512, 14, 27), (1024, 7, 13))
"""Channels, size of the map, kernel."""

CONFIGS = 3


class Launched:
    """A launch on one channel of small whole numbers, which float64 and float32 hold exactly."""

    def __init__(self, problem: ConvProblem, config: Any) -> None:
        self.p = problem
        generator = torch.Generator().manual_seed(1)
        shape = (problem.n, 1, problem.h, problem.w)
        x = torch.randint(-3, 4, shape, generator=generator).half()
        weight = torch.randint(-3, 4, problem.weight_shape, generator=generator).half()
        bank, out = toeplitz.pack(weight, 4), torch.empty(problem.out_shape, dtype=torch.float16)
        launch = TOEPLITZ_HOPPER.kernel_launch(problem, config, {"x": x, "weight": bank}, out)
        self.a, self.programs = launch.args, launch.grid[0]
        self.x, self.bank = x[:, 0].double().numpy(), bank.double().numpy().reshape(-1)
        self.expected = F.conv2d(x.double(), weight.double(), padding=problem.padding)[:, 0].numpy()
        self.out = np.full(self.expected.shape, np.nan)
        self.parts = [(0, self.a["KIN_A"])] + ([(self.a["KIN_A"], self.a["KIN_B"])] if self.a["KIN_B"] else [])

    def check(self) -> None:
        """Raises AssertionError where something is wrong."""
        self.run()
        np.testing.assert_array_equal(self.out, self.expected, err_msg=str((self.p, self.a)))

    def run(self) -> None:
        """All programs, and in each the warp groups one after the other."""
        a = self.a
        groups = 2 if a["SECOND_REGISTERS"] else 1
        for program in range(self.programs):
            share, column_tile = program % a["SPLIT"], program // a["SPLIT"] % a["column_tiles"]
            assert program // a["SPLIT"] // a["column_tiles"] == 0, "a second channel"
            column0 = column_tile * a["WT"]
            vectors = a["W_v"] - sum(kin for _, kin in self.parts) // a["XV"]
            window = max(min(max(column0 - a["pad_w"], 0) // a["XV"], vectors), 0) * a["XV"]
            matrices = [self.matrix(column, kin, window - column0 + a["pad_w"]) for column, kin in self.parts]
            for group in range(groups):
                first = share * groups + group
                for block in range(first, a["groups"] * a["image_blocks"], a["SPLIT"] * groups):
                    self.block(block, column0, window, matrices)

    def matrix(self, column: int, kin: int, tap0: int) -> NDArray[np.float64]:
        """T [NQ, WT, D * kin], filled QB blocks at a time from the bank."""
        a = self.a
        q, row = np.arange(a["D"] * kin), np.arange(a["QB"] * a["WT"])
        tap = tap0 - row % a["WT"]
        copy = -tap & (a["V"] - 1)
        start = np.trunc((tap + copy) / a["V"]).astype(int) * a["V"]
        i = column + q[None] % kin + start[:, None]
        inside = (i >= 0) & (i < a["L"])
        ky = a["S_HI"] + q[None] // kin - row[:, None] // a["WT"]
        assert a["NQ"] % a["QB"] == 0
        found = np.empty((a["NQ"], a["WT"], a["D"] * kin))
        for b in range(0, a["NQ"], a["QB"]):
            loaded = inside & (ky - b >= 0) & (ky - b < a["KH"])
            offset = copy[:, None] * a["L"] + i + (ky - b) * a["V"] * a["L"]
            assert ((offset >= 0) & (offset < self.bank.size))[loaded].all(), "a load outside the bank"
            values = np.where(loaded, self.bank[np.clip(offset, 0, self.bank.size - 1)], 0.0)
            found[b : b + a["QB"]] = values.reshape(a["QB"], a["WT"], -1)
        return found

    def block(self, block: int, column0: int, window: int, matrices: list[NDArray[np.float64]]) -> None:
        """BM images of one group of R output rows."""
        a, p = self.a, self.p
        g, ib = divmod(block, a["image_blocks"])
        lo = max(g * a["R"] - a["pad_h"], 0)
        hi = max(min(g * a["R"] + a["R"] + a["KH"] - 1 - a["pad_h"], p.h), lo + 1)
        acc = np.zeros((a["BM"], a["R"] * a["WT"]))
        for i in range(lo, hi, a["D"]):
            first = a["S_HI"] - (i + a["pad_h"] - g * a["R"])
            assert 0 <= first <= a["NQ"] - a["R"], "a window outside T"
            for (column, kin), matrix in zip(self.parts, matrices, strict=True):
                read = self.images(ib, i, window + column, kin)
                acc += read @ matrix[first : first + a["R"]].reshape(a["R"] * a["WT"], -1).T
        rows, columns = min(a["R"], p.oh - g * a["R"]), min(a["WT"], p.ow - column0)
        images = slice(ib * a["BM"], min((ib + 1) * a["BM"], p.n))
        device = self.out[images, g * a["R"] : g * a["R"] + rows, column0 : column0 + columns]
        assert np.isnan(device).all(), "an output is written twice"
        device[...] = acc.reshape(a["BM"], a["R"], a["WT"])[: len(device), :rows, :columns]

    def images(self, ib: int, i: int, column: int, kin: int) -> NDArray[np.float64]:
        """x [BM, D * kin] of rows i .. i + D - 1, masked as the kernel masks."""
        a, p = self.a, self.p
        q, m = np.arange(a["D"] * kin), np.arange(a["BM"])[:, None]
        image, row, k = ib * a["BM"] + m, i + q // kin, column + q % kin
        loaded = np.full((a["BM"], a["D"] * kin), True)
        if a["MASK_N"] or a["MASK_X"] or a["D"] > 1:
            loaded &= (k < p.w) & (m < p.n - ib * a["BM"]) & ((q // kin < p.h - i) | (a["D"] == 1))
        assert ((image < p.n) & (row < p.h) & (k < p.w) & (k >= 0))[loaded].all(), "a load outside x"
        at = (np.minimum(image, p.n - 1), np.minimum(row, p.h - 1), np.clip(k, 0, p.w - 1))
        return np.where(loaded, self.x[at], 0.0)


@pytest.mark.parametrize(("channels", "size", "kernel"), LAYERS)
def test_the_layers_of_31b(channels: int, size: int, kernel: int) -> None:
    """Batches that fill blocks of images and that do not; configs drawn from those of all channels."""
    rng = random.Random(kernel)
    problem = ConvProblem(64, channels, size, size, kernel, kernel, padding=(kernel // 2, kernel // 2))
    configs = TOEPLITZ_HOPPER.configs(problem, H100)
    best = min(configs, key=lambda config: TOEPLITZ_HOPPER.estimate(problem, config, H100).seconds)
    for config in [best, *rng.sample(configs, min(CONFIGS, len(configs)))]:
        for n in (64, 3):
            one = replace(problem, n=n, c=1)
            Launched(one, config).check()


@pytest.mark.parametrize(
    ("argument", "change", "seen"),
    [
        ("S_HI", 16, "a window outside T"),
        ("groups", -1, "not equal"),
        ("MASK_N", -1, "a load outside x"),
        ("W_v", -1, "not equal"),
        ("KH", 1, "a load outside the bank"),
        ("pad_h", 1, "not equal"),
        ("pad_w", 1, "not equal"),
    ],
)
def test_wrong_arguments_are_seen(argument: str, change: int, seen: str) -> None:
    problem = ConvProblem(3, 1, 56, 56, 13, 13, padding=(6, 6))
    config = next(c for c in TOEPLITZ_HOPPER.configs(problem, H100) if sum(c.window) <= 56 and c.step_rows == 1)
    found = Launched(problem, config)
    found.a[argument] += change
    with pytest.raises(AssertionError, match=seen):
        found.check()
