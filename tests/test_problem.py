"""``ConvProblem``: plain data."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lk_triton.ops.problem import ConvProblem, Epilogue, output_size, same_padding


def test_is_frozen_hashable_data() -> None:
    a = ConvProblem(64, 128, 56, 56, 31, 31, padding=(15, 15))
    assert a == dataclasses.replace(a)
    assert len({a, dataclasses.replace(a), dataclasses.replace(a, epilogue=Epilogue(bias=True))}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.n = 1  # type: ignore[misc]


def test_derived_sizes() -> None:
    problem = ConvProblem(2, 3, 9, 8, 5, 3, (2, 1), (2, 0), (1, 2), multiplier=4, dtype="float32")
    assert problem.out_shape == (2, 12, 5, 4)
    assert (problem.oh, problem.ow, problem.itemsize) == (5, 4, 4)
    assert problem.nominal_macs == 2 * 12 * 5 * 4 * 5 * 3


@pytest.mark.parametrize(("dtype", "size"), [("float16", 2), ("bfloat16", 2), ("float32", 4), ("float64", 8)])
def test_itemsize(dtype: str, size: int) -> None:
    assert ConvProblem(1, 1, 1, 1, 1, 1, dtype=dtype).itemsize == size == getattr(torch, dtype).itemsize


def test_text_names_what_is_unusual() -> None:
    assert str(ConvProblem(1, 8, 7, 5, 3, 3)) == "(1, 8, 7, 5) 3x3 float16"
    text = str(ConvProblem(1, 8, 7, 5, 3, 3, (2, 2), layout="channel_major", multiplier=2, dilation=(1, 3)))
    assert text == "(1, 8, 7, 5) 3x3 float16 stride (2, 2) dilation (1, 3) multiplier 2 layout channel_major"


@given(
    size=st.integers(1, 40), kernel=st.integers(1, 20), stride=st.integers(1, 4), padding=st.integers(0, 20),
    dilation=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_output_size_is_torchs(size: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
    expected = output_size(size, kernel, stride, padding, dilation)
    if size + 2 * padding < dilation * (kernel - 1) + 1:
        assert expected < 1
        return
    x, weight = torch.empty(1, 1, 1, size, device="meta"), torch.empty(1, 1, 1, kernel, device="meta")
    assert F.conv2d(x, weight, stride=(1, stride), padding=(0, padding), dilation=(1, dilation)).shape[3] == expected


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (31, 1), (5, 3), (4, 2), (2, 6)])
def test_same_padding_keeps_the_size(kernel: int, dilation: int) -> None:
    assert output_size(17, kernel, 1, same_padding(kernel, dilation), dilation) == 17


@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (4, 3)])
def test_no_same_padding_for_an_even_extent(kernel: int, dilation: int) -> None:
    with pytest.raises(ValueError, match=f"odd kernel extent, got kernel {kernel} with dilation {dilation}; pad the input"):
        same_padding(kernel, dilation)
