"""What a dot becomes on each family of matrix units. ``test_inspector.py`` compares it with compiled code."""

from __future__ import annotations

import pytest

from lk_triton import gpu as gpus
from lk_triton.algorithms.cost.dot import Dot, kind_of


def dot(kind: str, m: int, n: int, k: int = 32, warps: int = 4, split: bool = False) -> Dot:
    lanes = 64 if kind == "mfma" else 32
    return Dot(kind, m, n, k, itemsize=4 if split else 2, warps=warps, warp_size=lanes, split=split)


def test_families():
    expected = {"a100": "mma", "l4": "mma", "rtx4090": "mma", "h100": "wgmma", "h200": "wgmma", "b200": "tcgen05",
                "rtx5090": "mma", "mi300x": "mfma"}  # fmt: skip
    assert {name: d.mma_family for name, d in gpus.TABLE.items()} == expected
    for arch, family in (("sm_103", "tcgen05"), ("sm_110", "tcgen05"), ("sm_121", "mma"), ("gfx950", "mfma")):
        assert gpus.for_arch(arch).mma_family == family
    assert {name for name, d in gpus.TABLE.items() if d.tensor_columns} == {"b200"}


def test_kinds():
    """Newer families want 64 rows; IEEE float32 has matrix units on AMD only."""
    for name, family in (("h100", "wgmma"), ("b200", "tcgen05"), ("a100", "mma"), ("mi300x", "mfma")):
        target = gpus.TABLE[name]
        assert kind_of(target, 64, "ieee", 2) == kind_of(target, 128, "tf32", 4) == family
        assert kind_of(target, 32, "ieee", 2) == ("mfma" if name == "mi300x" else "mma")
        assert kind_of(target, 64, "ieee", 4) == ("mfma" if name == "mi300x" else "fma")


@pytest.mark.parametrize(
    ("m", "n", "columns"),
    [(64, 32, 32), (64, 128, 128), (128, 128, 128), (128, 256, 256), (256, 256, 512), (128, 16, 32)],
)
def test_tensor_columns(m, n, columns):
    """As Triton allocates them for sm_100."""
    assert dot("tcgen05", m, n, k=48).tensor_columns == columns


def test_split_operands_take_tensor_columns():
    """As Triton 3.6 allocates them; 3.8 needs fewer."""
    assert dot("tcgen05", 64, 16, split=True).tensor_columns == 128
    assert dot("tcgen05", 64, 64, split=True).tensor_columns == 256
    assert dot("wgmma", 64, 64, split=True).tensor_columns == 0


def test_operand_reads():
    """wgmma: B per 64 rows; tcgen05: B per 128; mma.sync and mfma: fragments per warp."""
    assert dot("wgmma", 128, 256).operand_reads == 128 + 2 * 256
    assert dot("tcgen05", 128, 256).operand_reads == dot("tcgen05", 128, 256, warps=8).operand_reads == 128 + 256
    assert dot("tcgen05", 256, 64).operand_reads == 256 + 2 * 64
    assert dot("mma", 64, 64).operand_reads == dot("mfma", 64, 64).operand_reads == 2 * 64 + 2 * 64


def test_share_of_peak():
    h100, b200, a100, mi300x = (gpus.TABLE[name] for name in ("h100", "b200", "a100", "mi300x"))
    assert dot("mma", 32, 64).share_of_peak(a100) == dot("wgmma", 64, 64).share_of_peak(h100) == 1
    assert dot("mma", 32, 64).share_of_peak(h100) < 1
    assert dot("tcgen05", 64, 64).share_of_peak(b200) == 0.5 * dot("tcgen05", 128, 64).share_of_peak(b200)
    # two 32x32 tiles for four warps, one row of tiles, a tile each
    assert [dot("mfma", m, n).share_of_peak(mi300x) for m, n in ((64, 32), (32, 64), (64, 64))] == [1 / 2, 1 / 4, 1]


def test_lanes_of_the_device():
    """64 lanes hold half of what 32 do."""
    assert dot("mfma", 64, 64).elements_per_lane == dot("mma", 64, 64).elements_per_lane / 2
