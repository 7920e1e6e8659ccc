"""1x1 convolutions on a CPU against float64, and where they are left to torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lk_triton.algorithms.onednn import pointwise
from lk_triton.algorithms.torch_ import activate
from lk_triton.nn import PointwiseConv2d

SHAPES = [(1, 8, 5, 7), (2, 16, 1, 1), (3, 1, 4, 4), (1, 3, 1, 9), (2, 130, 14, 14)]


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("activation", "residual"), [(None, False), ("relu", False), ("gelu", False), ("silu", False), (None, True)]
)
@torch.no_grad()
def test_equals_float64(shape: tuple[int, ...], bias: bool, activation: str | None, residual: bool) -> None:
    torch.manual_seed(0)
    n, cin, h, w = shape
    x, weight = channels_last(*shape), torch.randn(24, cin, 1, 1) / cin**0.5
    b = torch.randn(24) if bias else None
    r = channels_last(n, 24, h, w) if residual else None
    y = pointwise(x, weight, b, activation, r)
    reference = activate(F.conv2d(x.double(), weight.double(), None if b is None else b.double()), activation)
    reference = reference if r is None else reference + r.double()
    assert y is not None
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.double(), reference, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_inputs_are_not_written_to() -> None:
    x, r, conv = channels_last(2, 8, 4, 4), channels_last(2, 8, 4, 4), PointwiseConv2d(8, 8)
    before = x.clone(), r.clone()
    conv(x, r)
    assert torch.equal(x, before[0])
    assert torch.equal(r, before[1])


@torch.no_grad()
def test_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = channels_last(2, 8, 4, 4), torch.randn(8, 8, 1, 1)
    assert pointwise(x, weight, None, None, None) is not None
    assert pointwise(x.contiguous(), weight, None, None, None) is None
    assert pointwise(x, weight, None, None, x.contiguous()) is None
    assert pointwise(x, weight, None, "relu", x) is None
    assert pointwise(x.double(), weight.double(), None, None, None) is None
    assert pointwise(x[:0], weight, None, None, None) is None
    assert pointwise(x.to("meta"), weight.to("meta"), None, None, None) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert pointwise(x, weight, None, None, None) is None
    with torch.enable_grad():
        assert pointwise(x, weight.clone().requires_grad_(), None, None, None) is None
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert pointwise(x, weight, None, None, None) is None


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
def test_module_is_one_conv2d_on_every_path(activation: str | None) -> None:
    torch.manual_seed(0)
    conv, x, r = PointwiseConv2d(6, 6, activation=activation), channels_last(2, 6, 5, 5), channels_last(2, 6, 5, 5)
    assert list(conv.state_dict()) == ["weight", "bias"]
    wanted = activate(F.conv2d(x, conv.weight, conv.bias), activation)
    for residual in (None, r):
        reference = wanted if residual is None else wanted + residual
        torch.testing.assert_close(conv(x, residual), reference)
        assert conv(x, residual).requires_grad
        with torch.no_grad():
            torch.testing.assert_close(conv(x, residual), reference)
            torch.testing.assert_close(conv(x.contiguous(), residual), reference)
            torch.testing.assert_close(torch.compile(conv, fullgraph=True, backend="eager")(x, residual), reference)
