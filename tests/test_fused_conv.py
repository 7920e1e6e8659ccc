"""Which convolution modules are an ``nn.Conv2d``: those without an activation, through every copy and conversion."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao.quantization import fuse_modules
from torch.nn.utils import fuse_conv_bn_eval

from lk_triton import nn as layers
from lk_triton.models import RepLKNet
from lk_triton.models.analysis import kernel_maps
from lk_triton.models.reference import randomize_, torch_form
from lk_triton.nn import ConvUnit, DepthwiseConv2d, PointwiseConv2d, StemConv2d
from lk_triton.nn.fused_conv import FusedConv2d
from lk_triton.nn.prepack import PrepackedConv2d

pytestmark = pytest.mark.usefixtures("one_thread", "no_interpreter")
ACTIVATIONS = [None, "relu", "gelu", "silu"]
KINDS: dict[Any, tuple[int, int]] = {DepthwiseConv2d: (4, 3), PointwiseConv2d: (4, 4), StemConv2d: (4, 4)}


def saved(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file, pickle_protocol=2)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda layer: layer, "copy": copy.copy, "deepcopy": copy.deepcopy, "torch.save": saved,
    **{f"pickle {p}": lambda layer, p=p: pickle.loads(pickle.dumps(layer, p)) for p in range(2, pickle.HIGHEST_PROTOCOL + 1)},
}  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_layers_saved_while_all_were_nn_conv2d(activation: str | None) -> None:
    """Such a pickle names the public class, gives its constructor nothing, and holds the activation as an attribute."""
    layer, x = DepthwiseConv2d(4, 3, activation=activation).eval(), torch.randn(2, 4, 6, 6)
    state = {**layer.__getstate__(), "activation": activation}
    del state["_activation"]
    loaded = DepthwiseConv2d.__new__(DepthwiseConv2d)
    loaded.__setstate__(state)
    assert type(loaded) is type(layer)
    torch.testing.assert_close(loaded(x), layer(x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", COPIES)
@torch.no_grad()
def test_an_nn_conv2d_exactly_where_there_is_no_activation(kind: Any, activation: str | None, copied: str) -> None:
    layer = kind(*KINDS[kind], activation=activation).eval()
    other, x = COPIES[copied](layer), torch.randn(2, 4, 6, 6)
    assert isinstance(other, kind)
    assert isinstance(other, PrepackedConv2d) == (kind is not StemConv2d)
    assert isinstance(other, nn.Conv2d) == (activation is None)
    assert type(other) is type(layer)
    assert repr(other).startswith(f"{kind.__name__}(4, 4, kernel_size=")
    assert other.activation == activation
    assert list(other.state_dict()) == ["weight", "bias"]
    assert torch.equal(other(x), layer(x))


def test_every_public_convolution_is_looked_at() -> None:
    public = [v for v in map(layers.__dict__.get, layers.__all__) if isinstance(v, type) and issubclass(v, FusedConv2d)]
    assert set(public) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_with_activation(kind: Any) -> None:
    layer, x = kind(*KINDS[kind]).eval(), torch.randn(2, 4, 6, 6)
    relu = layer.with_activation("relu")
    back = relu.with_activation(None)
    assert relu.weight is layer.weight is back.weight
    assert [isinstance(m, nn.Conv2d) for m in (layer, relu, back)] == [True, False, True]
    assert type(back) is type(layer)
    assert torch.equal(relu(x), layer(x).relu())
    assert torch.equal(back(x), layer(x))
    relu.weight = nn.Parameter(torch.zeros_like(relu.weight))
    assert layer.weight is back.weight
    with pytest.raises(ValueError, match="activation must be None or one of"):
        layer.with_activation("tanh")
    with pytest.raises(AttributeError, match="activation"):
        layer.activation = "relu"  # type: ignore[misc]


def test_subclasses_keep_their_class() -> None:
    class Named(DepthwiseConv2d):
        def __init__(self, channels: int, activation: str | None = None) -> None:
            super().__init__(channels, 3, activation=activation)

    for activation in ACTIVATIONS:
        layer = Named(4, activation=activation)
        assert type(layer) is type(copy.deepcopy(layer)) is type(layer.with_activation("relu")) is Named
        assert repr(layer).startswith("Named(")


def fold_batch_norms(network: nn.Module) -> None:
    """As mmcv's ``fuse_conv_bn`` and others: every BatchNorm goes into the nn.Conv2d in front of it."""
    last: tuple[str, nn.Conv2d] | None = None
    for name, child in list(network.named_children()):
        if isinstance(child, nn.BatchNorm2d) and last is not None:
            setattr(network, last[0], fuse_conv_bn_eval(last[1], child))
            setattr(network, name, nn.Identity())
        last = (name, child) if isinstance(child, nn.Conv2d) else None
        fold_batch_norms(child)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_no_batch_norm_is_folded_through_an_activation(kind: Any, activation: str | None) -> None:
    layer = kind(*KINDS[kind], activation=activation)
    network, x = nn.Sequential(layer, nn.BatchNorm2d(4)), torch.randn(2, 4, 6, 6)
    network(2 * x + 1)  # for statistics to fold
    network.eval()
    expected = network(x)
    fold_batch_norms(network)
    assert isinstance(network[1], nn.BatchNorm2d) == (activation is not None)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_network_survives_tools_that_fold() -> None:
    x = torch.randn(1, 3, 64, 64)
    for form in ("training", "merged", "fused"):
        network = randomize_(RepLKNet((7, 5), (1, 1), (8, 16), num_classes=5)).eval()
        if form != "training":
            network.convert(form)
        expected = network(x)
        fold_batch_norms(network)
        torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-4)


def test_torch_refuses_to_fuse_ours_by_type() -> None:
    network = nn.Sequential(DepthwiseConv2d(4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    with pytest.raises((AssertionError, NotImplementedError), match="fuse"):
        fuse_modules(network, ["0", "1"])


def test_what_looks_for_convolutions_finds_those_with_an_activation() -> None:
    fused = RepLKNet((5,), (1,), (8,), num_classes=5, fused=True).eval()
    assert not any(isinstance(m, FusedConv2d) for m in torch_form(fused).modules())
    (stage,) = kernel_maps.stages(nn.Sequential(DepthwiseConv2d(4, 7, activation="relu")))
    assert stage.names == ("0",)
    unit = ConvUnit(DepthwiseConv2d(4, 3, bias=False), "relu").eval().fuse()
    assert (unit.conv.activation, isinstance(unit.conv, nn.Conv2d)) == ("relu", False)
