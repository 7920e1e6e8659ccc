"""What a fused network is made of besides its convolutions: ``ConvUnit``, ``ChannelAffine``, and ``from_conv_bn``."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import reparam
from ..algorithms.torch_ import activate_
from ..ops.problem import activate
from .depthwise import DepthwiseConv2d
from .fused_conv import FusedConv2d, check_activation, with_parameters


class ConvUnit(nn.Module):
    """Convolution, BatchNorm, activation, with children ``conv`` and ``bn``; fuses into one convolution with bias.

    ``forward(x, residual)``: ``activation(bn(conv(x))) + residual``. After ``fuse()`` there is no ``bn``, and a
    dense convolution can be asked for its output's memory order (``out_layout`` of ``dense_conv2d``).
    """

    conv: nn.Conv2d | FusedConv2d

    def __init__(self, conv: nn.Conv2d | FusedConv2d, activation: str | None = None, *, fused: bool = False) -> None:
        super().__init__()
        check_activation(activation)
        self.conv = conv
        self.activation = activation
        if fused:
            self._fuse_activation()
        else:
            self.bn = nn.BatchNorm2d(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype)

    @property
    def fused(self) -> bool:
        """Whether the BatchNorm is folded into the convolution."""
        return "bn" not in self._modules

    def forward(self, x: Tensor, residual: Tensor | None = None, out_layout: str | None = None) -> Tensor:
        if not self.fused:
            y = activate(self.bn(self.conv(x)), self.activation)
            return y if residual is None else residual + y
        conv = self.conv
        if isinstance(conv, DepthwiseConv2d):
            return conv(x, residual)
        if isinstance(conv, FusedConv2d):
            return conv(x, residual, out_layout)
        return _epilogue(conv(x), self.activation, residual)

    @torch.no_grad()
    def fuse(self, pre_norm: _BatchNorm | None = None) -> ConvUnit:
        """Fold ``bn``, and the BatchNorm that stands in front of a 1x1 convolution, into the convolution, in place.

        Does nothing where there is none of both.
        """
        if self.fused and pre_norm is None:
            return self
        weight, bias = self.conv.weight, self.conv.bias
        dtype = weight.dtype
        weight, bias = weight.double(), None if bias is None else bias.double()
        if not self.fused:
            weight, bias = reparam.fold_batch_norm(weight, bias, self.bn)
        if pre_norm is not None:
            weight, bias = reparam.fold_pre_batch_norm(pre_norm, weight, bias)
        if not self.fused:
            del self.bn
        if bias is not None:
            with_parameters(self.conv, weight.to(dtype), bias.to(dtype), self.conv.weight)
        self._fuse_activation()
        return self

    def _fuse_activation(self) -> None:
        if isinstance(self.conv, FusedConv2d):
            self.conv = self.conv.with_activation(self.activation)


class ChannelAffine(nn.Module):
    """y = x * weight + bias per channel, on (N, C) or (N, C, H, W): what a BatchNorm is once its statistics are fixed."""

    def __init__(self, channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    @classmethod
    def from_batch_norm(cls, bn: _BatchNorm) -> ChannelAffine:
        """The affine map of an eval-mode BatchNorm, in its dtype and on its device."""
        affine = reparam.batch_norm_affine(bn)
        like = cast("Tensor", bn.running_mean)
        new = cls(affine.scale.numel(), device="meta")
        new.weight = nn.Parameter(affine.scale.to(like))
        new.bias = nn.Parameter(affine.shift.to(like))
        return new.train(bn.training)

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *(1,) * (x.dim() - 2))
        return torch.addcmul(self.bias.view(shape), x, self.weight.view(shape))


def from_conv_bn(conv: nn.Conv2d | FusedConv2d, bn: _BatchNorm, activation: str | None = None) -> DepthwiseConv2d:
    """``activation(bn(conv(x)))`` of anybody's network as one fused depthwise module, prepared for inference.

    Raises:
        ValueError: ``conv`` is not depthwise, not zero-padded or has an activation, or ``bn`` is in training mode.
    """
    if conv.groups != conv.in_channels or conv.transposed:
        raise ValueError(f"expected a depthwise convolution, got groups={conv.groups} for {conv.in_channels} channels")
    if conv.padding_mode != "zeros":
        raise ValueError(f"expected zero padding, got padding_mode={conv.padding_mode!r}")
    if getattr(conv, "activation", None) is not None:
        raise ValueError(f"activation {conv.activation!r} stands between the convolution and the BatchNorm: no fold exists")
    if bn.num_features != conv.out_channels:
        raise ValueError(f"the BatchNorm has {bn.num_features} features, the convolution {conv.out_channels} channels")
    with torch.no_grad():
        weight, bias = reparam.fold_batch_norm(conv.weight, conv.bias, bn)
        fused = DepthwiseConv2d(
            conv.in_channels, cast("tuple[int, int]", conv.kernel_size), stride=cast("tuple[int, int]", conv.stride),
            padding=cast("tuple[int, int]", conv.padding), dilation=cast("tuple[int, int]", conv.dilation),
            multiplier=conv.out_channels // conv.in_channels, activation=activation,
            precision=getattr(conv, "precision", None), device="meta",
        )  # fmt: skip
        with_parameters(fused, weight, bias, conv.weight)
    return fused.eval().prepare()


def _epilogue(y: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
    """``activation(y) + residual``; overwrites ``y``, a fresh tensor, where no gradient needs it."""
    if y.requires_grad:
        y = activate(y, activation)
        return y if residual is None else residual + y
    y = activate_(y, activation)
    return y if residual is None else y.add_(residual)
