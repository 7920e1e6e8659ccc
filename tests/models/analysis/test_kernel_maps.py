"""Kernel maps: what is found, what is averaged, and the two figures on hand-made kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lk_triton.models import RepLKNet, randomize_
from lk_triton.models.analysis.kernel_maps import centre_mass, effective_size, layers, stages


@pytest.fixture
def network() -> RepLKNet:
    sizes = {"large_kernel_sizes": (9, 7), "layers": (2, 1), "channels": (4, 8), "small_kernel": 3}
    return randomize_(RepLKNet(**sizes, num_classes=2)).eval()  # pyright: ignore[reportArgumentType]


def test_stages_of_replknet(network: RepLKNet) -> None:
    first, second = stages(network)
    assert (first.title, second.title) == ("9x9, 4 channels, 2 layers", "7x7, 8 channels, 1 layer")
    assert first.names == ("stages.0.blocks.0.large_kernel", "stages.0.blocks.2.large_kernel")
    assert network.form == "training"

    merged = network.convert("merged")
    for stage, before in zip(stages(merged), (first, second), strict=True):
        assert stage.before is None
        np.testing.assert_allclose(stage.after, before.after, rtol=1e-5)
    weights = torch.cat([merged.get_submodule(name).lkb_reparam.weight for name in first.names])  # pyright: ignore
    np.testing.assert_allclose(first.after, weights.abs().mean((0, 1)).detach().numpy(), rtol=1e-5)


def test_before_is_the_large_branch_with_its_batch_norm(network: RepLKNet) -> None:
    """Without the small branch before and after are the same kernel; with it they differ in its centre only."""
    for layer in layers(network):
        assert layer.before is not None
        same = torch.isclose(layer.before, layer.after, rtol=1e-4).all(0)
        k = same.shape[0]
        inner = slice(k // 2 - 1, k // 2 + 2)
        assert not same[inner, inner].any()
        same[inner, inner] = True
        assert same.all()


def test_other_networks() -> None:
    import timm

    found = stages(timm.create_model("convnext_atto").eval())
    assert [stage.after.shape for stage in found] == [(7, 7)] * 4
    assert [stage.channels for stage in found] == [40, 80, 160, 320]
    assert all(stage.before is None for stage in found)
    with pytest.raises(ValueError, match="no depthwise convolution of 5x5 or more"):
        stages(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 7), nn.Conv2d(1, 1, 7)))


def test_alternating_layers_of_a_stage_belong_together() -> None:
    """Strips there and back, twice, as in InceptionNeXt: two shapes, two maps."""
    strips = [nn.Conv2d(4, 4, kernel, groups=4) for kernel in ((1, 11), (11, 1)) * 2]
    across, down = stages(nn.Sequential(*strips))
    assert (across.title, across.names) == ("1x11, 4 channels, 2 layers", ("0", "2"))
    assert (down.title, down.names) == ("11x1, 4 channels, 2 layers", ("1", "3"))


def test_effective_size_of_kernels_that_are_not_square() -> None:
    assert effective_size(np.ones((1, 11))) == 11  # 9 taps of 11 are 82 %
    assert effective_size(np.ones((51, 5))) == 47  # 45 of 51 are 88 %
    short = np.zeros((51, 5))
    short[24:27] = 1
    assert effective_size(short) == 5
    assert effective_size(np.ones((6, 6))) == 6


def test_figures_of_hand_made_kernels() -> None:
    flat = np.ones((31, 31))
    assert centre_mass(flat) == pytest.approx(9 / 961)
    assert effective_size(flat) == 31  # 29x29 hold 87.5 %
    peak = np.zeros((31, 31))
    peak[15, 15] = 1
    assert (centre_mass(peak), effective_size(peak)) == (1, 3)
    ring = np.zeros((13, 13))
    ring[2:11, 2:11] = 1
    assert effective_size(ring) == 9
    assert centre_mass(np.ones((3, 3))) == 1
