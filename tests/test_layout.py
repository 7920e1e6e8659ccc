"""Memory orders: recognized, kept, allocated."""

from __future__ import annotations

import pytest
import torch

from lk_triton.ops import layout

SHAPES = [(2, 3, 5, 7), (1, 3, 5, 7), (2, 1, 5, 7), (2, 3, 1, 7), (2, 3, 5, 1), (2, 3, 1, 1), (1, 1, 1, 1), (4, 64, 8, 8)]
LAYOUTS = ("nchw", "channels_last", "channel_major")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", LAYOUTS)
def test_a_fresh_tensor_keeps_its_layout(shape: tuple[int, int, int, int], order: str) -> None:
    """Where two layouts coincide on a shape, the one recognized must lead to the same memory order."""
    like = torch.zeros(1, dtype=torch.float16)
    x = layout.empty(shape, order, like)
    assert (x.shape, x.dtype) == (shape, torch.float16)
    recognized = layout.layout_of(x)
    y = layout.empty(shape, recognized, x)
    for size, mine, again in zip(shape, x.stride(), y.stride(), strict=True):
        assert size == 1 or mine == again or order == "channel_major"
    if all(s > 1 for s in shape):
        assert recognized == order


def test_strides_are_torchs() -> None:
    x = torch.empty(2, 3, 5, 7)
    assert layout.strides((2, 3, 5, 7), "nchw") == x.stride()
    assert layout.strides((2, 3, 5, 7), "channels_last") == x.to(memory_format=torch.channels_last).stride()


@pytest.mark.parametrize(("n", "stride"), [(1, 64), (2, 128), (3, 128), (64, 64 * 35)])
def test_channel_major_rounds_the_channel_stride(n: int, stride: int) -> None:
    assert layout.strides((n, 3, 5, 7), "channel_major") == (35, stride, 7, 1)
    x = layout.empty((n, 3, 5, 7), "channel_major", torch.zeros(1))
    assert x.untyped_storage().nbytes() >= (2 * stride + n * 35) * 4
    assert x[:, 1].is_contiguous()  # one channel of the whole batch is one dense row


def test_channel_slices_are_read_in_place() -> None:
    whole = torch.zeros(2, 8, 5, 7)
    part = whole[:, 2:5]
    assert layout.layout_of(part) == "nchw"
    assert layout.with_dense_planes(part) is part
    major = layout.empty((2, 8, 5, 7), "channel_major", whole)[:, 2:5]
    assert layout.layout_of(major) == "channel_major"
    assert layout.with_dense_planes(major) is major


@pytest.mark.parametrize("view", [lambda x: x[..., ::2], lambda x: x[..., 1:], lambda x: x.mT, lambda x: x[:, :, ::2]])
def test_gaps_are_copied_once(view) -> None:  # type: ignore[no-untyped-def]
    x = view(torch.randn(2, 3, 6, 6))
    assert not layout.has_dense_planes(x)
    assert layout.layout_of(x) == "nchw"
    dense = layout.with_dense_planes(x)
    assert layout.has_dense_planes(dense)
    torch.testing.assert_close(dense, x, rtol=0, atol=0)


def test_strides_of_size_one_are_ignored() -> None:
    storage = torch.zeros(4096)
    assert layout.has_dense_planes(storage.as_strided((2, 3, 1, 7), (21, 7, 999, 1)))
    assert layout.has_dense_planes(storage.as_strided((2, 3, 7, 1), (21, 7, 1, 99)))
    assert layout.layout_of(storage.as_strided((1, 3, 5, 7), (1, 35, 7, 1))) == "nchw"
    assert layout.layout_of(storage.as_strided((2, 1, 5, 7), (35, 1, 7, 1))) == "nchw"


def test_empty_and_expanded_tensors() -> None:
    assert layout.layout_of(torch.empty(0, 3, 5, 7)) == "nchw"
    assert layout.layout_of(torch.zeros(1, 3, 5, 7).expand(4, 3, 5, 7)) == "nchw"
    assert layout.layout_of(torch.zeros(4, 1, 5, 7).expand(4, 3, 5, 7)) == "nchw"
    assert layout.strides((0, 3, 5, 7), "channel_major") == (35, 0, 7, 1)


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_conform(source: str, target: str) -> None:
    x = layout.empty((2, 3, 5, 7), source, torch.zeros(1)).copy_(torch.randn(2, 3, 5, 7))
    y = layout.conform(x, target)
    assert (y is x) == (source == target)
    assert layout.layout_of(y) == target
    torch.testing.assert_close(y, x, rtol=0, atol=0)
