"""Modules: what they compute, what they load, how they merge and fuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lk_triton import depthwise_conv2d
from lk_triton.nn import ChannelAffine, ConvUnit, DepthwiseConv2d, PointwiseConv2d, ReparamDepthwiseConv2d, from_conv_bn

pytestmark = pytest.mark.usefixtures("one_thread")
UNIREPLKNET = ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))


def randomized(module: Any) -> Any:
    """``module`` in eval mode, its BatchNorms with random statistics and affine parameters."""
    for m in module.modules():
        if isinstance(m, _BatchNorm):
            assert m.running_mean is not None
            assert m.running_var is not None
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.3, 2)
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
    return module.eval()


# DepthwiseConv2d


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"stride": 2},
        {"padding": 3, "dilation": (1, 2)},
        {"padding": "valid"},
        {"multiplier": 2},
        {"padding": (0, 1)},
    ],
)
def test_is_an_nn_conv2d_by_state_dict_and_attributes(options: dict[str, Any]) -> None:
    ours = DepthwiseConv2d(4, (7, 5), **options).eval()
    stride, dilation = options.get("stride", 1), options.get("dilation", 1)
    theirs = nn.Conv2d(4, ours.out_channels, (7, 5), stride, ours.padding, dilation, 4, ours.bias is not None)
    assert isinstance(ours, nn.Conv2d)
    for name in ("in_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "transposed"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert ours.bank_bytes == 0
    x = torch.randn(2, 4, 9, 10)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_padding_is_kept_as_numbers() -> None:
    assert DepthwiseConv2d(2, 31).padding == (15, 15)
    assert DepthwiseConv2d(2, (51, 5)).padding == (25, 2)
    assert DepthwiseConv2d(2, 3, dilation=(1, 4)).padding == (1, 4)
    assert DepthwiseConv2d(2, 4, padding="valid").padding == (0, 0)
    assert DepthwiseConv2d(2, 4, padding=2).padding == (2, 2)


def test_numpy_integers() -> None:
    one: Any = np.int64(1)
    sizes: Any = (np.int32(3), np.uint8(5))
    layer = DepthwiseConv2d(2, sizes, stride=one, padding=(one, one + 1), dilation=one)
    assert layer.kernel_size == (3, 5)
    assert [type(v) for v in (*layer.kernel_size, *layer.stride, *layer.padding)] == [int] * 6
    y = depthwise_conv2d(torch.randn(1, 2, 8, 8), layer.weight, stride=one, padding=(one, one + 1))
    assert y.shape == (1, 2, 8, 8)


def test_depthwise_errors() -> None:
    with pytest.raises(ValueError, match="odd kernel extent"):
        DepthwiseConv2d(2, 4)
    with pytest.raises(ValueError, match="padding must be 'same', 'valid'"):
        DepthwiseConv2d(2, 3, padding="reflect")
    with pytest.raises(ValueError, match="activation must be None or one of"):
        DepthwiseConv2d(2, 3, activation="tanh")
    module = DepthwiseConv2d(2, 3)
    with pytest.raises(RuntimeError, match=r"call \.eval\(\)"):
        module.prepare()
    with pytest.raises(ValueError, match="has 3 channels, this layer has 2"):
        module.eval().prepare((1, 3, 8, 8))
    with pytest.raises(ValueError, match="disagree on the groups"):
        module(torch.zeros(1, 3, 8, 8))


def test_epilogue_and_gradients() -> None:
    module = DepthwiseConv2d(3, 5, activation="silu")
    x, residual = torch.randn(2, 3, 7, 7), torch.randn(2, 3, 7, 7)
    y = module(x, residual)
    expected = nn.functional.silu(nn.functional.conv2d(x, module.weight, module.bias, padding=2, groups=3)) + residual
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert module.weight.grad is not None
    assert "activation=silu" in repr(module)


# ReparamDepthwiseConv2d


@pytest.mark.parametrize(
    ("kernel", "branches"),
    [(13, UNIREPLKNET), (31, ((5, 1),)), (7, ()), ((51, 5), ((5, 1), (3, 1))), (3, ((1, 1),)), (7, ((2, 2),))],
)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_merge_computes_the_same(kernel: Any, branches: tuple[tuple[int, int], ...], activation: str | None) -> None:
    module = randomized(ReparamDepthwiseConv2d(2, kernel, branches, activation)).double()
    x = torch.randn(1, 2, 14, 13, dtype=torch.float64)
    expected = module(x)
    assert module.reparameterize() is module
    torch.testing.assert_close(module(x), expected)
    assert module.merged
    assert {name for name, _ in module.named_children()} == {"lkb_reparam"}
    assert module.state_dict().keys() == {"lkb_reparam.weight", "lkb_reparam.bias"}
    assert module.lkb_reparam.padding == module.padding
    assert module.reparameterize() is module  # again: nothing to do
    fresh = ReparamDepthwiseConv2d(2, kernel, branches, activation, merged=True).double().eval()
    fresh.load_state_dict(module.state_dict())
    torch.testing.assert_close(fresh(x), expected)


def test_names_are_the_published_ones() -> None:
    single = ReparamDepthwiseConv2d(2, 7)
    parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
    assert list(single.state_dict()) == [f"{name}.{part}" for name in ("lkb_origin", "small_conv") for part in parts]
    several = ReparamDepthwiseConv2d(2, 13, UNIREPLKNET)
    assert [n for n, _ in several.named_children()] == ["lkb_origin", *(f"small_conv{i}" for i in range(5))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_merge_keeps_dtype_and_trainability(dtype: torch.dtype) -> None:
    module = randomized(ReparamDepthwiseConv2d(2, 7)).to(dtype)
    module.requires_grad_(False)
    module.reparameterize()
    for parameter in (module.lkb_reparam.weight, module.lkb_reparam.bias):
        assert parameter.dtype == dtype
        assert not parameter.requires_grad
    assert not module.lkb_reparam.training


def test_merge_refuses_training_mode_and_changes_nothing() -> None:
    module = ReparamDepthwiseConv2d(2, 7)
    frozen = ReparamDepthwiseConv2d(2, 7)
    for m in frozen.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()  # frozen statistics in a module that trains
    partly = ReparamDepthwiseConv2d(2, 7).eval()
    partly.get_submodule("small_conv.bn").train()
    for m in (module, frozen, partly):
        keys = list(m.state_dict())
        with pytest.raises(ValueError, match="in training mode"):
            m.reparameterize()
        assert list(m.state_dict()) == keys
        assert m(torch.randn(2, 2, 8, 8)).shape == (2, 2, 8, 8)


@pytest.mark.parametrize("branch", [(4, 1), (9, 1), (3, 4)])
def test_branches_without_an_exact_merge_are_refused(branch: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot merge a"):
        ReparamDepthwiseConv2d(2, 7, (branch,))
    with pytest.raises(ValueError, match="odd kernel extent"):
        ReparamDepthwiseConv2d(2, 8)


def test_training_form_trains() -> None:
    module = ReparamDepthwiseConv2d(2, 7, ((5, 1), (3, 2)), "gelu")
    module(torch.randn(2, 2, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


# from_conv_bn


@pytest.mark.parametrize(
    ("channels", "out", "options"),
    [
        (4, 4, {"kernel_size": 7, "padding": 3}),
        (4, 4, {"kernel_size": (51, 5), "padding": "same", "bias": False}),
        (4, 4, {"kernel_size": 5, "padding": "valid"}),
        (4, 8, {"kernel_size": 3, "stride": 2, "padding": 1}),
        (4, 4, {"kernel_size": (3, 5), "padding": "same", "dilation": (2, 3)}),
        (4, 4, {"kernel_size": 4, "padding": 1}),
        (1, 3, {"kernel_size": 5}),
    ],
)
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_from_conv_bn(channels: int, out: int, options: dict[str, Any], activation: str | None) -> None:
    conv = nn.Conv2d(channels, out, groups=channels, **options).double().eval()
    bn = randomized(nn.BatchNorm2d(out)).double()
    x = torch.randn(2, channels, 60, 13, dtype=torch.float64)
    y = bn(conv(x))
    fused = from_conv_bn(conv, bn, activation)
    torch.testing.assert_close(fused(x), nn.functional.gelu(y) if activation else y)
    assert not fused.training
    assert fused.weight.dtype == torch.float64


def test_from_conv_bn_refuses_what_it_would_change() -> None:
    bn = nn.BatchNorm2d(4).eval()
    refused = {
        "groups=1 for 4 channels": nn.Conv2d(4, 4, 3),
        "padding_mode='reflect'": nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"),
        "BatchNorm has 4 features, the convolution 8": nn.Conv2d(4, 8, 3, groups=4),
        "odd kernel extent": nn.Conv2d(4, 4, 4, groups=4, padding="same"),
        "activation 'relu' stands between": DepthwiseConv2d(4, 3, activation="relu"),
    }
    for text, conv in refused.items():
        with pytest.raises(ValueError, match=text):
            from_conv_bn(conv, bn)
    with pytest.raises(ValueError, match="in training mode"):
        from_conv_bn(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4))


# ConvUnit, ChannelAffine


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("kind", ["pointwise", "dense", "depthwise"])
@pytest.mark.parametrize("bias", [True, False])
def test_unit_fuses(kind: str, activation: str | None, bias: bool) -> None:
    conv = {
        "pointwise": nn.Conv2d(4, 4, 1, bias=bias),
        "dense": nn.Conv2d(4, 4, 3, padding=1, bias=bias),
        "depthwise": DepthwiseConv2d(4, 5, bias=bias),
    }[kind]
    unit = randomized(ConvUnit(conv, activation).double())
    x, residual = torch.randn(2, 4, 6, 6, dtype=torch.float64), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    plain, added = unit(x), unit(x, residual)
    copies = x.clone(), residual.clone()
    assert unit.fuse() is unit
    assert unit.fused
    assert unit.state_dict().keys() == {"conv.weight", "conv.bias"}
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(unit(x), plain)
            torch.testing.assert_close(unit(x, residual), added)
    assert torch.equal(x, copies[0])
    assert torch.equal(residual, copies[1])


@pytest.mark.parametrize("fused_before", [False, True])
def test_unit_fuses_the_norm_in_front(fused_before: bool) -> None:
    norm = randomized(nn.BatchNorm2d(4).double())
    unit = randomized(ConvUnit(nn.Conv2d(4, 6, 1, bias=False), "relu").double())
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    expected = unit(norm(x))
    if fused_before:
        unit.fuse()
    unit.fuse(norm)
    torch.testing.assert_close(unit(x), expected)


def test_unit_that_cannot_fuse_stays_whole() -> None:
    norm = nn.BatchNorm2d(4).eval()
    unit = ConvUnit(nn.Conv2d(4, 4, 3, padding=1)).eval()
    with pytest.raises(ValueError, match="1x1 convolution only"):
        unit.fuse(norm)
    assert not unit.fused
    with pytest.raises(ValueError, match="in training mode"):
        unit.train().fuse()
    assert not unit.fused


def test_unit_keeps_the_weights_dtype() -> None:
    unit = randomized(ConvUnit(nn.Conv2d(4, 4, 1, bias=False)).half()).fuse()
    assert unit.conv.weight.dtype == unit.conv.bias.dtype == torch.float16
    assert ConvUnit(nn.Conv2d(2, 2, 1), fused=True).fused


def test_channel_affine() -> None:
    bn = randomized(nn.BatchNorm2d(4).double())
    affine = ChannelAffine.from_batch_norm(bn)
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(affine(x), bn(x))
    torch.testing.assert_close(affine(x[..., 0, 0]), bn(x)[..., 0, 0])
    assert affine.weight.dtype == torch.float64
    assert ChannelAffine.from_batch_norm(bn.half()).bias.dtype == torch.float16
    identity = ChannelAffine(4, dtype=torch.float64)
    assert torch.equal(identity(x), x)
    with pytest.raises(ValueError, match="in training mode"):
        ChannelAffine.from_batch_norm(nn.BatchNorm2d(4))


def test_bad_arguments_are_named() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"kernel_size": (3,)}, "kernel_size must be an int or"),
        ({"kernel_size": 3, "precision": "foo"}, "precision must be None or one of"),
        ({"kernel_size": 3, "stride": 0}, "stride must be an int or"),
        ({"kernel_size": 3, "padding": True}, "padding must be an int or"),
        ({"kernel_size": 3, "padding": np.float64(1)}, "padding must be an int or"),
    )
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            DepthwiseConv2d(8, **arguments)
    layer = DepthwiseConv2d(8, 31, padding="valid").eval()
    shapes = {(8, 8, 8): r"must be \(N, C, H, W\)", (1, 8, 8, 8): "too small", (1, 4, 64, 64): "has 4 channels"}
    for shape, message in shapes.items():
        with pytest.raises(ValueError, match=message):
            layer.prepare(shape)


@torch.no_grad()
def test_timm_reparameterizes_networks_of_our_modules() -> None:
    class Network(nn.Module):
        """Attributes, lists and nesting, as in networks of others."""

        def __init__(self) -> None:
            super().__init__()
            self.large = ReparamDepthwiseConv2d(4, 13, UNIREPLKNET, "relu")
            self.units = nn.ModuleList([ConvUnit(PointwiseConv2d(4, 4, bias=False), "gelu"), ConvUnit(nn.Conv2d(4, 4, 3))])
            self.plain = DepthwiseConv2d(4, 5, activation="silu")
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.plain(self.units[1](self.units[0](self.large(x)))))

    network = randomized(Network())
    x = torch.randn(2, 4, 9, 9)
    expected = network(x)
    converted: Any = reparameterize_model(network)
    torch.testing.assert_close(converted(x), expected, rtol=1e-4, atol=1e-4)
    assert converted.large.merged
    assert all(unit.fused for unit in converted.units)
    assert not network.large.merged
    torch.testing.assert_close(reparameterize_model(converted)(x), expected, rtol=1e-4, atol=1e-4)
