"""The parts of RepLKNet: RepLKBlock, ConvFFN, the stage, and the small units around them.

Names of children are those of the published checkpoints. Every part has three forms, see ``replknet.py``.
Ding et al., Scaling Up Your Kernels to 31x31, CVPR 2022, figure 4; github.com/DingXiaoH/RepLKNet-pytorch (MIT).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

from lk_triton.nn import (
    ChannelAffine,
    ConvFFN2d,
    ConvUnit,
    DepthwiseConv2d,
    PointwiseConv2d,
    ReparamDepthwiseConv2d,
    StemConv2d,
)
from lk_triton.nn.memory_order import between_layers


def dense3x3(in_channels: int, out_channels: int, fused: bool, **options: Any) -> ConvUnit:
    """The stem's first unit: dense 3x3, stride 2, BatchNorm, ReLU."""
    conv = StemConv2d(in_channels, out_channels, bias=fused, **options)
    return ConvUnit(conv, "relu", fused=fused)


def depthwise3x3(channels: int, stride: int, fused: bool, **options: Any) -> ConvUnit:
    """Depthwise 3x3, BatchNorm, ReLU."""
    conv = DepthwiseConv2d(channels, 3, stride=stride, padding=1, bias=fused, **options)
    return ConvUnit(conv, "relu", fused=fused)


def pointwise(in_channels: int, out_channels: int, activation: str | None, fused: bool, **options: Any) -> ConvUnit:
    """1x1 convolution, BatchNorm, activation."""
    return ConvUnit(PointwiseConv2d(in_channels, out_channels, bias=fused, **options), activation, fused=fused)


def channel_norm(channels: int, fused: bool, **options: Any) -> nn.BatchNorm2d | ChannelAffine:
    """A BatchNorm, or in the fused form the per-channel affine map that it becomes."""
    return ChannelAffine(channels, **options) if fused else nn.BatchNorm2d(channels, **options)


class Transition(nn.Sequential):
    """Between stages: 1x1 to the next width and depthwise 3x3 of stride 2, each with BatchNorm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, fused: bool, **options: Any) -> None:
        super().__init__(
            pointwise(in_channels, out_channels, "relu", fused, **options), depthwise3x3(out_channels, 2, fused, **options)
        )

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x (N, Cin, H, W) -> (N, Cout, H/2, W/2), halves rounded up.

        On a GPU the fused form asks for channel-major again: the strides of a single image do not tell where H*W is a
        multiple of 64, and those of the smaller maps behind it then would not be rounded up.
        """
        return self[1](self[0](x, None, between_layers(x)))


class DropPath(nn.Module):
    """Stochastic depth: in training, drops whole samples with probability ``p`` and rescales the others."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> the same shape."""
        if not self.training:
            return x
        keep = 1 - self.p
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"p={self.p:.3g}"


class _ResidualBlock(nn.Module):
    """What RepLKBlock and ConvFFN share: the last unit adds the block's input."""

    pw1: ConvUnit
    pw2: ConvUnit
    drop_path: nn.Module

    def _close(self, branch: Callable[..., Tensor], y: Tensor, x: Tensor, out_layout: str | None) -> Tensor:
        """``branch(y)`` + x; the branch itself adds x, but where samples of it may be dropped."""
        if self.training and isinstance(self.drop_path, DropPath):
            return x + self.drop_path(branch(y))
        return branch(y, x, out_layout)

    def fuse(self) -> Self:
        """Merge the kernels and fold every BatchNorm, in place; does nothing where that is done. ``timm`` calls this too."""
        raise NotImplementedError

    def _fuse(self, pre_norm: nn.Module) -> nn.Module:
        """Fold every BatchNorm; returns what stands in the place of ``pre_norm``."""
        self.pw1.fuse(pre_norm if isinstance(pre_norm, _BatchNorm) else None)
        self.pw2.fuse()
        return nn.Identity().eval()


class RepLKBlock(_ResidualBlock):
    """x + pw2(ReLU(large_kernel(ReLU(pw1(prelkb_bn(x)))))); fused: three convolutions with their epilogues."""

    def __init__(
        self, channels: int, dw_channels: int, kernel_size: int, small_kernel: int | None, drop_path: float,
        merged: bool, fused: bool, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        branches = () if small_kernel is None else ((small_kernel, 1),)
        self.pw1 = pointwise(channels, dw_channels, "relu", fused, **options)
        self.pw2 = pointwise(dw_channels, channels, None, fused, **options)
        self.large_kernel = ReparamDepthwiseConv2d(
            dw_channels, kernel_size, branches, "relu", merged=merged or fused, **options
        )
        self.prelkb_bn = nn.Identity() if fused else nn.BatchNorm2d(channels, **options)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, out_layout: str | None = None) -> Tensor:
        """x (N, C, H, W) -> the same shape, in ``out_layout`` where the block is fused."""
        return self._close(self.pw2, self.large_kernel(self.pw1(self.prelkb_bn(x))), x, out_layout)

    def fuse(self) -> Self:
        self.large_kernel.reparameterize(prepare=False)
        self.prelkb_bn = self._fuse(self.prelkb_bn)
        return self


class ConvFFN(_ResidualBlock, ConvFFN2d):
    """x + pw2(GELU(pw1(preffn_bn(x)))), with the exact GELU; fused: two convolutions with their epilogues, or one kernel."""

    def __init__(self, channels: int, hidden_channels: int, drop_path: float, fused: bool, **options: Any) -> None:
        nn.Module.__init__(self)  # the children in the order of the published parameters
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.preffn_bn = nn.Identity() if fused else nn.BatchNorm2d(channels, **options)
        self.pw1 = pointwise(channels, hidden_channels, "gelu", fused, **options)
        self.pw2 = pointwise(hidden_channels, channels, None, fused, **options)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, out_layout: str | None = None
    ) -> Tensor:
        """x (N, C, H, W) -> the same shape, in ``out_layout`` where the block is fused."""
        return self._close(super().forward, self.preffn_bn(x), x, out_layout)

    def fuse(self) -> Self:
        self.preffn_bn = self._fuse(self.preffn_bn)
        return self


class RepLKNetStage(nn.Module):
    """Blocks of one width, RepLKBlock and ConvFFN in turn, and a ``norm`` for maps that leave the network.

    ``drop_path`` has one rate per pair of blocks. ``norm`` is applied by the network, not by ``forward``.
    """

    def __init__(
        self, channels: int, kernel_size: int, small_kernel: int | None, dw_ratio: float, ffn_ratio: float,
        drop_path: Sequence[float], norm: bool, merged: bool, fused: bool, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList()
        for rate in drop_path:
            dw_channels, hidden_channels = int(channels * dw_ratio), int(channels * ffn_ratio)
            self.blocks.append(RepLKBlock(channels, dw_channels, kernel_size, small_kernel, rate, merged, fused, **options))
            self.blocks.append(ConvFFN(channels, hidden_channels, rate, fused, **options))
        self.norm = channel_norm(channels, fused, **options) if norm else nn.Identity()

    def forward(self, x: Tensor, out_layout: str | None = None) -> Tensor:
        """x (N, C, H, W) -> the same shape, stored in ``out_layout`` by the last block where that is fused."""
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = run(block, x, self.grad_checkpointing, out_layout if i == last else None)
        return x

    def merge(self) -> None:
        """Merge the small kernels into the large ones, in place."""
        for block in self.blocks:
            if isinstance(block, RepLKBlock):
                block.large_kernel.reparameterize(prepare=False)

    def fuse(self) -> Self:
        """Merge the kernels and fold every BatchNorm, in place; does nothing where that is done. ``timm`` calls this too."""
        for block in self.blocks:
            cast("_ResidualBlock", block).fuse()
        if isinstance(self.norm, _BatchNorm):
            self.norm = ChannelAffine.from_batch_norm(self.norm)
        return self


def run(module: nn.Module, x: Tensor, checkpointed: bool, *options: Any) -> Tensor:
    """``module(x)``; with ``checkpointed``, its activations are computed again in the backward pass instead of kept."""
    if checkpointed and torch.is_grad_enabled():
        return cast("Tensor", checkpoint(module, x, *options, use_reentrant=False))
    return module(x, *options)
