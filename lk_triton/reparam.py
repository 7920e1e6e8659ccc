"""Structural re-parameterization as pure tensor functions: BatchNorms into convolutions, branches into one kernel.

Every fold is computed in float64 and stored in the dtype and on the device of the weight it came from.
RepLKNet (CVPR 2022), section 3; RepVGG (CVPR 2021), section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


class Affine(NamedTuple):
    """A per-channel affine map y = x * scale + shift; both (C,) float64."""

    scale: Tensor
    shift: Tensor


def batch_norm_affine(bn: _BatchNorm) -> Affine:
    """What ``bn`` does in eval mode, any BatchNorm1d/2d or SyncBatchNorm.

    Raises:
        ValueError: ``bn`` is in training mode, or keeps no running statistics, so that it is no fixed map.
    """
    if bn.training:
        raise ValueError(f"cannot fold {type(bn).__name__} in training mode: call .eval() on the module first")
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError(f"cannot fold {type(bn).__name__} without running statistics (track_running_stats=False)")
    mean, var = bn.running_mean.double(), bn.running_var.double()
    scale = torch.rsqrt(var + bn.eps)
    if bn.weight is not None:
        scale = scale * bn.weight.detach().double()
    shift = -mean * scale
    if bn.bias is not None:
        shift = shift + bn.bias.detach().double()
    return Affine(scale, shift)


def fold_batch_norm(weight: Tensor, bias: Tensor | None, bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Fold ``bn(conv(x))`` into one convolution.

    weight (Cout, Cin/groups, KH, KW), bias (Cout,) or None -> weight and bias of the same shapes, dtype and device.
    """
    scale, shift = batch_norm_affine(bn)
    folded = weight.detach().double() * scale.view(-1, 1, 1, 1)
    if bias is not None:
        shift = shift + bias.detach().double() * scale
    return folded.to(weight.dtype), shift.to(weight.dtype)


def fold_pre_batch_norm(bn: _BatchNorm, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Fold ``conv(bn(x))`` into one 1x1 convolution; exact because a 1x1 convolution has no padding.

    weight (Cout, Cin, 1, 1), bias (Cout,) or None -> weight and bias of the same shapes, dtype and device.
    """
    if tuple(weight.shape[2:]) != (1, 1):
        raise ValueError(
            "a BatchNorm in front can be folded into a 1x1 convolution only (padding would see the shift), "
            f"got a weight of shape {tuple(weight.shape)}"
        )
    scale, shift = batch_norm_affine(bn)
    if scale.numel() != weight.shape[1]:
        raise ValueError(f"the BatchNorm has {scale.numel()} channels, the 1x1 convolution reads {weight.shape[1]}")
    matrix = weight.detach().double().flatten(1)
    out = matrix @ shift
    if bias is not None:
        out = out + bias.detach().double()
    return (matrix * scale).to(weight.dtype).view_as(weight), out.to(weight.dtype)


def expand_kernel(weight: Tensor, kernel_size: tuple[int, int], dilation: int = 1) -> Tensor:
    """The (C, 1, kh, kw) kernel of a parallel branch as the (C, 1, KH, KW) kernel that computes the same.

    Taps are spread by ``dilation`` and zero-padded around the centre.

    Raises:
        ValueError: the branch is larger than ``kernel_size``, or the difference is odd, so that the two centres
            do not coincide and no exact merge exists.
    """
    extents = [dilation * (k - 1) + 1 for k in weight.shape[2:]]
    for extent, size in zip(extents, kernel_size, strict=True):
        if extent > size or (size - extent) % 2:
            raise ValueError(
                f"cannot merge a {weight.shape[2]}x{weight.shape[3]} branch with dilation {dilation} into a "
                f"{kernel_size[0]}x{kernel_size[1]} kernel: its extent {extents[0]}x{extents[1]} must be at most that "
                "and differ by an even number"
            )
    full = weight.new_zeros(*weight.shape[:2], *kernel_size)
    top, left = ((size - extent) // 2 for extent, size in zip(extents, kernel_size, strict=True))
    full[:, :, top : top + extents[0] : dilation, left : left + extents[1] : dilation] = weight
    return full


def merge_branches(branches: Sequence[tuple[Tensor, Tensor | None, int]]) -> tuple[Tensor, Tensor | None]:
    """Sum parallel depthwise branches, each (weight, bias, dilation), into the first one's kernel size.

    Returns (weight, bias) in the first weight's dtype; the sum is taken in float64. All branches must have the
    same stride and be padded so that they keep the size ("same").
    """
    first, _, dilation = branches[0]
    if dilation != 1:
        raise ValueError(f"the first branch holds the full kernel and must have dilation 1, got {dilation}")
    size = (first.shape[2], first.shape[3])
    weight = torch.stack([expand_kernel(w.detach().double(), size, d) for w, _, d in branches]).sum(0)
    biases = [b.detach().double() for _, b, _ in branches if b is not None]
    bias = torch.stack(biases).sum(0).to(first.dtype) if biases else None
    return weight.to(first.dtype), bias
