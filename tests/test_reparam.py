"""Folds and merges as pure tensor functions, against float64 eager modules."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lk_triton import reparam


def batch_norm(channels: int, kind: type[_BatchNorm] = nn.BatchNorm2d, affine: bool = True, eps: float = 1e-3) -> _BatchNorm:
    """An eval-mode BatchNorm with random statistics, in float64."""
    bn = kind(channels, eps=eps, affine=affine).double().eval()
    assert bn.running_mean is not None
    assert bn.running_var is not None
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.2, 3)
    if affine:
        nn.init.normal_(bn.weight)
        nn.init.normal_(bn.bias)
    return bn


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_affine(affine: bool) -> None:
    bn, x = batch_norm(4, affine=affine), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    scale, shift = reparam.batch_norm_affine(bn)
    torch.testing.assert_close(x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1), bn(x))
    flat = batch_norm(4, nn.BatchNorm1d)
    scale, shift = reparam.batch_norm_affine(flat)
    torch.testing.assert_close(x[..., 0, 0] * scale + shift, flat(x[..., 0, 0]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("groups", "kernel"), [(1, 1), (1, 3), (2, 3), (4, 7)])
def test_fold_batch_norm(bias: bool, groups: int, kernel: int) -> None:
    conv = nn.Conv2d(4, 8, kernel, padding=kernel // 2, groups=groups, bias=bias).double()
    bn, x = batch_norm(8), torch.randn(2, 4, 9, 8, dtype=torch.float64)
    weight, shift = reparam.fold_batch_norm(conv.weight, conv.bias, bn)
    torch.testing.assert_close(F.conv2d(x, weight, shift, padding=kernel // 2, groups=groups), bn(conv(x)))
    assert not weight.requires_grad


@pytest.mark.parametrize("bias", [True, False])
def test_fold_pre_batch_norm(bias: bool) -> None:
    conv, bn = nn.Conv2d(4, 6, 1, bias=bias).double(), batch_norm(4)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    weight, shift = reparam.fold_pre_batch_norm(bn, conv.weight, conv.bias)
    assert weight.shape == conv.weight.shape
    torch.testing.assert_close(F.conv2d(x, weight, shift), conv(bn(x)))


def test_fold_pre_batch_norm_refuses_what_is_not_exact() -> None:
    with pytest.raises(ValueError, match="1x1 convolution only"):
        reparam.fold_pre_batch_norm(batch_norm(4), torch.randn(6, 4, 3, 3), None)
    with pytest.raises(ValueError, match="BatchNorm has 4 channels, the 1x1 convolution reads 2"):
        reparam.fold_pre_batch_norm(batch_norm(4), torch.randn(6, 2, 1, 1), None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_folds_are_computed_in_float64_and_stored_in_the_weights_dtype(dtype: torch.dtype) -> None:
    """One rounding of the exact fold: what a fold computed in half precision would not reach."""
    bn = batch_norm(64)
    weight = torch.randn(64, 1, 5, 5).to(dtype)
    folded, shift = reparam.fold_batch_norm(weight, None, bn)
    exact, exact_shift = reparam.fold_batch_norm(weight.double(), None, bn)
    assert (folded.dtype, shift.dtype) == (dtype, dtype)
    assert torch.equal(folded, exact.to(dtype))
    assert torch.equal(shift, exact_shift.to(dtype))
    pre, pre_shift = reparam.fold_pre_batch_norm(bn, torch.ones(8, 64, 1, 1, dtype=dtype), None)
    assert (pre.dtype, pre_shift.dtype) == (dtype, dtype)
    merged, bias = reparam.merge_branches([(weight, shift, 1), (weight[:, :, 1:4, 1:4], shift, 1)])
    assert bias is not None
    assert (merged.dtype, bias.dtype) == (dtype, dtype)


def test_no_fold_of_a_changing_batch_norm() -> None:
    with pytest.raises(ValueError, match=r"BatchNorm2d in training mode: call \.eval"):
        reparam.batch_norm_affine(nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="without running statistics"):
        reparam.batch_norm_affine(nn.BatchNorm2d(4, track_running_stats=False).eval())


@pytest.mark.parametrize(
    ("kernel", "dilation", "size"),
    [((5, 5), 1, (31, 31)), ((3, 3), 4, (13, 13)), ((1, 1), 1, (7, 7)), ((5, 3), 1, (51, 5)), ((3, 3), 2, (5, 5)),
     ((2, 2), 2, (7, 7)), ((4, 4), 1, (6, 6))],
)  # fmt: skip
def test_expand_kernel(kernel: tuple[int, int], dilation: int, size: tuple[int, int]) -> None:
    weight = torch.randn(3, 1, *kernel, dtype=torch.float64)
    full = reparam.expand_kernel(weight, size, dilation)
    assert full.shape == (3, 1, *size)
    assert torch.count_nonzero(full) == weight.numel()
    x = torch.randn(1, 3, 60, 60, dtype=torch.float64)
    extents = [dilation * (k - 1) + 1 for k in kernel]
    small = F.conv2d(x, weight, dilation=dilation, groups=3)
    top, left = ((s - e) // 2 for s, e in zip(size, extents, strict=True))
    inner = small[:, :, top : small.shape[2] - top, left : small.shape[3] - left]
    torch.testing.assert_close(F.conv2d(x, full, groups=3), inner)


@pytest.mark.parametrize(
    ("kernel", "dilation", "size"),
    [((4, 4), 1, (7, 7)), ((5, 5), 1, (8, 8)), ((3, 3), 1, (51, 4)), ((9, 9), 1, (7, 7)), ((3, 3), 4, (7, 7))],
)  # fmt: skip
def test_expand_kernel_refuses_what_is_not_exact(kernel: tuple[int, int], dilation: int, size: tuple[int, int]) -> None:
    text = f"cannot merge a {kernel[0]}x{kernel[1]} branch with dilation {dilation} into a {size[0]}x{size[1]} kernel"
    with pytest.raises(ValueError, match=text):
        reparam.expand_kernel(torch.ones(1, 1, *kernel), size, dilation)


def test_merge_branches() -> None:
    branches: Sequence[tuple[Tensor, Tensor | None, int]] = [
        (torch.randn(3, 1, 13, 13, dtype=torch.float64), torch.randn(3, dtype=torch.float64), 1),
        (torch.randn(3, 1, 5, 5, dtype=torch.float64), None, 1),
        (torch.randn(3, 1, 3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64), 5),
    ]
    x = torch.randn(2, 3, 16, 15, dtype=torch.float64)
    expected = sum(
        F.conv2d(x, w, b, padding=d * (w.shape[2] // 2), dilation=d, groups=3) for w, b, d in branches
    )  # fmt: skip
    weight, bias = reparam.merge_branches(branches)
    torch.testing.assert_close(F.conv2d(x, weight, bias, padding=6, groups=3), expected)
    assert reparam.merge_branches([(w, None, d) for w, _, d in branches])[1] is None
    with pytest.raises(ValueError, match="first branch holds the full kernel"):
        reparam.merge_branches(branches[::-1])
