"""The kernel-size study: counts against the published tables, and what the estimates are made of."""

from __future__ import annotations

import pytest

from lk_triton import gpu as gpus
from lk_triton.models.analysis import published
from lk_triton.models.analysis.kernel_size import VARIANTS, accuracies, cost, estimate


@pytest.mark.parametrize(("kernels", "name"), VARIANTS.items())
def test_counts_are_the_published_ones(kernels: str, name: str) -> None:
    """Parameters within 0.3 M, FLOPs (multiply-adds) within 0.1 G, both without the small branch."""
    found, row = cost(name), accuracies()[kernels]
    assert found.parameters / 1e6 == pytest.approx(float(row["parameters, M"]), abs=0.3)
    assert found.macs / 1e9 == pytest.approx(float(row["GFLOPs"]), abs=0.11)


@pytest.mark.parametrize(("network", "name"), [("31B", "replknet_31b"), ("31L", "replknet_31l"), ("XL", "replknet_xl")])
def test_counts_of_the_published_networks(network: str, name: str) -> None:
    """The README rounds parameters down to whole millions; FLOPs to one part in a hundred at each size."""
    for row in published.table("imagenet").records():
        if row["network"] == network:
            found = cost(name, int(row["input"]))
            assert int(found.parameters / 1e6) == int(row["parameters, M"])
            assert found.macs / 1e9 == pytest.approx(float(row["GFLOPs"]), rel=0.01)


def test_large_kernels_of_31b() -> None:
    """2.443 G nominal multiply-adds by hand: K * K * C * H * W over the layers of each stage."""
    by_hand = sum(
        layers * k * k * c * s * s
        for layers, k, c, s in ((2, 31, 128, 56), (2, 29, 256, 28), (18, 27, 512, 14), (2, 13, 1024, 7))
    )
    assert cost("replknet_31b").large_macs == by_hand
    assert by_hand / 1e9 == pytest.approx(2.443, abs=0.001)


def test_estimates_grow_with_the_kernel_and_ours_least() -> None:
    h100 = gpus.for_arch("h100")
    small, large = (estimate(name, h100, 64, 224, "float16") for name in ("replknet_3", "replknet_31b"))
    assert 0 < small.ours < large.ours < large.torch
    assert small.torch < large.torch
    assert large.torch / small.torch > large.ours / small.ours
