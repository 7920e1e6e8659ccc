"""The registered op of dense convolutions: its rules, fake strides, autocast, and a compiled and an exported network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lk_triton import dense_conv2d, pointwise_conv2d
from lk_triton.models import RepLKNet
from lk_triton.ops import layout, library

pytestmark = pytest.mark.usefixtures("one_thread", "no_interpreter")
LAYOUTS = ("nchw", "channel_major", "channels_last")


def arguments(order: str, kernel: int, out_layout: str | None = None, grad: bool = False) -> tuple[Any, ...]:
    torch.manual_seed(0)
    x = layout.conform(torch.randn(2, 3, 6, 5), order)
    weight, bias = torch.randn(4, 3, kernel, kernel), torch.randn(4)
    tensors = [t.requires_grad_() for t in (x, weight, bias)] if grad else [x, weight, bias]
    stride, padding = ([1, 1], [0, 0]) if kernel == 1 else ([2, 2], [1, 1])
    return (*tensors, None, None, stride, padding, "relu", None, out_layout, "auto", None)


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize(("kernel", "out_layout"), [(1, None), (1, "nchw"), (3, "channel_major")])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "grad"])
def test_opcheck(order: str, kernel: int, out_layout: str | None, grad: bool) -> None:
    results = torch.library.opcheck(library.dense_conv2d.op, arguments(order, kernel, out_layout, grad))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("out_layout", [None, "nchw", "channel_major"])
def test_fake_strides_are_the_real_ones(order: str, out_layout: str | None) -> None:
    args = arguments(order, 3, out_layout)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = library.dense_conv2d.op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args))
    assert fake.stride() == library.dense_conv2d.op(*args).stride() == layout.strides((2, 4, 3, 3), out_layout or order)


def test_gradients_and_autocast() -> None:
    x, weight = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(5, 3, 1, 1, dtype=torch.float64)
    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w: pointwise_conv2d(x, w, activation="gelu"), inputs)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert pointwise_conv2d(x.float(), weight.float()).dtype == torch.bfloat16


def test_a_fused_network_compiles_and_exports() -> None:
    torch.manual_seed(0)
    model = RepLKNet((5, 5), (1, 1), (8, 16), 3, num_classes=4).eval().reparameterize()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
        exported = torch.export.export(model, (x,))
        torch.testing.assert_close(exported.module()(x), expected)
    names = {str(node.target) for node in exported.graph.nodes}
    assert {"lk_triton.dense_conv2d.default", "lk_triton.depthwise_conv2d.default"} <= names


def test_wrong_calls() -> None:
    x, weight = torch.randn(1, 3, 4, 4), torch.randn(5, 3, 1, 1)
    with pytest.raises(ValueError, match=r"must be \(Cout, 3, KH, KW\).*two more dimensions"):
        pointwise_conv2d(x, weight[:, :, 0, 0])
    with pytest.raises(ValueError, match="use dense_conv2d"):
        pointwise_conv2d(x, torch.randn(5, 3, 3, 3))
    with pytest.raises(ValueError, match="the weight for 3 channels"):
        pointwise_conv2d(x, torch.randn(5, 4, 1, 1))
    with pytest.raises(ValueError, match="out_layout must be None or one of nchw, channel_major, got 'nhwc'"):
        dense_conv2d(x, weight, out_layout="nhwc")
    with pytest.raises(ValueError, match="toeplitz is not for dense convolutions"):
        pointwise_conv2d(x, weight, algorithm="toeplitz")
    with pytest.raises(ValueError, match="residual must have the output's shape"):
        pointwise_conv2d(x, weight, residual=x)
    with pytest.raises(TypeError, match=r"weight must be a torch\.Tensor"):
        pointwise_conv2d(x, None)  # pyright: ignore[reportArgumentType]
