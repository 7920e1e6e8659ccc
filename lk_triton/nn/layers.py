"""Modules: ``DepthwiseConv2d``, ``ReparamDepthwiseConv2d``, and the units that a fused network is made of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import gpu as gpus
from .. import reparam
from ..algorithms.torch_ import activate, activate_
from ..functional import dispatch, dispatch_dense
from ..ops.problem import PRECISIONS, ConvProblem, DenseProblem, Epilogue, pair, same_padding
from .fused_conv import FusedConv2d, check_activation
from .prepack import Banked, check_example


class DepthwiseConv2d(FusedConv2d, Banked):
    """Depthwise convolution with a fused epilogue; an ``nn.Conv2d`` by state_dict and attributes.

    Without an activation it is an instance of ``nn.Conv2d`` too (``FusedConv2d`` says why not with one).

    Args:
        channels: C of the input (N, C, H, W).
        kernel_size, stride, dilation: an int or (h, w).
        padding: ``"same"``, ``"valid"``, an int or (h, w); kept as numbers in ``.padding``.
        multiplier: output channels per input channel.
        activation, precision: see ``lk_triton.depthwise_conv2d``.

    ``prepare()`` packs the weight once for repeated inference. The packed copy (the bank) is no parameter or buffer; it is
    dropped by ``train()``, ``.to()``, ``.half()``, ``load_state_dict``, ``deepcopy`` and pickling. After writing into the
    weight in place (an optimizer step, ``weight.data``), call ``prepare()`` again.
    """

    padding: tuple[int, int]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = "same",
        dilation: int | tuple[int, int] = 1,
        multiplier: int = 1,
        bias: bool = True,
        activation: str | None = None,
        precision: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel_size, dilation = pair("kernel_size", kernel_size, 1), pair("dilation", dilation, 1)
        stride = pair("stride", stride, 1)
        if precision is not None and precision not in PRECISIONS:
            raise ValueError(f"precision must be None or one of {', '.join(PRECISIONS)}, got {precision!r}")
        if padding == "same":
            padding = (same_padding(kernel_size[0], dilation[0]), same_padding(kernel_size[1], dilation[1]))
        elif padding == "valid":
            padding = (0, 0)
        elif isinstance(padding, str):
            raise ValueError(f"padding must be 'same', 'valid', an int or (h, w), got {padding!r}")
        else:
            padding = pair("padding", padding, 0)
        super().__init__(channels, channels * multiplier, kernel_size, stride, padding, dilation, channels, bias, activation,
                         device, dtype)  # fmt: skip
        self.precision = precision

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        """x (N, C, H, W), residual of the output's shape or None -> (N, C * multiplier, OH, OW)."""
        bank, bank_format = self._bank()
        return dispatch(
            x, self.weight, self.bias, residual, self.activation, self.padding, cast("tuple[int, int]", self.stride),
            cast("tuple[int, int]", self.dilation), self.precision, "auto", bank, bank_format,
        )  # fmt: skip

    def _example(self) -> tuple[int, int, int, int]:
        h, w = (max(56, d * (k - 1) + 1) for k, d in zip(self.kernel_size, self.dilation, strict=True))
        return 64, self.in_channels, h, w

    def _problem(self, shape: Sequence[int]) -> ConvProblem:
        n, c, h, w = check_example(shape, self.in_channels)
        problem = ConvProblem(
            n, c, h, w, *cast("tuple[int, int]", self.kernel_size), cast("tuple[int, int]", self.stride), self.padding,
            cast("tuple[int, int]", self.dilation), self.out_channels // self.in_channels,
            str(self.weight.dtype).removeprefix("torch."),
            epilogue=Epilogue(self.bias is not None, self.activation), precision=self.precision,
        )  # fmt: skip
        if min(problem.out_shape) < 1:
            raise ValueError(f"example shape {tuple(shape)} is too small: the output would be {problem.out_shape}")
        return problem


class ReparamDepthwiseConv2d(nn.Module):
    """A large depthwise kernel with parallel branches, each with its BatchNorm; merges into one kernel.

    Training form: ``activation(sum of bn(conv(x)) over the branches)``, children ``lkb_origin`` (the large kernel) and
    ``small_conv`` (with more branches ``small_conv0``, ``small_conv1``, ...), each with children ``conv`` and ``bn``.
    Merged form, after ``reparameterize()`` or with ``merged=True``: one child ``lkb_reparam`` with weight and bias. These
    are the names of the published RepLKNet checkpoints.

    Args:
        channels: C.
        kernel_size: odd, an int or (h, w); the layer keeps the size ("same").
        branches: (kernel, dilation) of each parallel branch. A branch merges exactly only if its dilated extent differs
            from ``kernel_size`` by an even number; other branches are refused here.
        activation: fused after the sum.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        branches: Sequence[tuple[int, int]] = ((5, 1),),
        activation: str | None = None,
        *,
        merged: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_activation(activation)
        self.channels = channels
        self.kernel_size = pair("kernel_size", kernel_size, 1)
        self.padding = (same_padding(self.kernel_size[0]), same_padding(self.kernel_size[1]))
        self.branches = tuple((int(k), int(d)) for k, d in branches)
        self.activation = activation
        for k, d in self.branches:
            reparam.expand_kernel(torch.empty(1, 1, k, k, device="meta"), self.kernel_size, d)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        if merged:
            self.lkb_reparam = DepthwiseConv2d(channels, self.kernel_size, activation=activation, **options)
            return
        self.lkb_origin = _conv_bn(DepthwiseConv2d(channels, self.kernel_size, bias=False, **options))
        for name, (k, d) in zip(self._branch_names, self.branches, strict=True):
            conv = DepthwiseConv2d(channels, k, dilation=d, bias=False, **options)
            self.add_module(name, _conv_bn(conv))

    @property
    def _branch_names(self) -> list[str]:
        return ["small_conv"] if len(self.branches) == 1 else [f"small_conv{i}" for i in range(len(self.branches))]

    @property
    def merged(self) -> bool:
        """Whether this is the merged form."""
        return hasattr(self, "lkb_reparam")

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> the same shape."""
        if self.merged:
            return self.lkb_reparam(x)
        y = self.lkb_origin(x)
        for name in self._branch_names if self.branches else ():
            y += self.get_submodule(name)(x)
        return activate(y, self.activation)

    @torch.no_grad()
    def reparameterize(self, *, prepare: bool = True) -> ReparamDepthwiseConv2d:
        """Merge the branches and their BatchNorms into ``lkb_reparam``, in place; does nothing where merged already.

        The parameters keep dtype and device. Exact up to the rounding of the stored weight. ``prepare=False`` leaves the
        weight unpacked, for a caller that knows the input shapes to come and calls ``lkb_reparam.prepare`` itself.

        Raises:
            ValueError: the module, or one of its BatchNorms, is in training mode.
        """
        if self.merged:
            return self
        if self.training:
            raise ValueError("cannot merge a module in training mode: call .eval() on it first")
        names = ["lkb_origin", *(self._branch_names if self.branches else ())]
        folded = []
        for name in names:
            unit = self.get_submodule(name)
            conv, bn = cast("DepthwiseConv2d", unit.get_submodule("conv")), unit.get_submodule("bn")
            weight, bias = reparam.fold_batch_norm(conv.weight.double(), None, cast("_BatchNorm", bn))
            folded.append((weight, bias, cast("tuple[int, int]", conv.dilation)[0]))
        weight, bias = reparam.merge_branches(folded)
        old = cast("DepthwiseConv2d", self.get_submodule("lkb_origin.conv")).weight
        merged = DepthwiseConv2d(self.channels, self.kernel_size, activation=self.activation, device="meta")
        self.lkb_reparam = _with_parameters(merged, weight.to(old.dtype), cast("Tensor", bias).to(old.dtype), old)
        for name in names:
            delattr(self, name)
        self.lkb_reparam.eval()
        if prepare:
            self.lkb_reparam.prepare()
        return self

    switch_to_deploy = merge_kernel = reparameterize


class PointwiseConv2d(FusedConv2d, Banked):
    """1x1 convolution with an epilogue, ``activation(conv(x)) + residual``; an ``nn.Conv2d`` as ``DepthwiseConv2d`` is."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        one, zero = (1, 1), (0, 0)
        super().__init__(in_channels, out_channels, one, one, zero, one, 1, bias, activation, device, dtype)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, residual: Tensor | None = None, out_layout: str | None = None
    ) -> Tensor:
        """x (N, Cin, H, W), residual (N, Cout, H, W) or None -> (N, Cout, H, W) in ``out_layout``, see ``dense_conv2d``."""
        bank, bank_format = self._bank()
        return dispatch_dense(
            x, self.weight, self.bias, residual, self.activation, 1, 0, None, out_layout, "auto", bank, bank_format
        )

    def _example(self) -> tuple[int, int, int, int]:
        return 64, self.in_channels, 14, 14

    def _problem(self, shape: Sequence[int]) -> DenseProblem:
        n, c, h, w = check_example(shape, self.in_channels)
        on_cpu = self.weight.device.type == "cpu" and not gpus.interpreted()
        layout = "channels_last" if on_cpu else "channel_major"
        return DenseProblem(
            n, c, h, w, self.out_channels, dtype=str(self.weight.dtype).removeprefix("torch."), layout=layout,
            out_layout=layout, epilogue=Epilogue(self.bias is not None, self.activation),
        )  # fmt: skip


class StemConv2d(FusedConv2d):
    """Dense convolution of a few channels with a fused activation; an ``nn.Conv2d`` as ``DepthwiseConv2d`` is."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        stride: int | tuple[int, int] = 2,
        padding: int | tuple[int, int] = 1,
        bias: bool = True,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel_size, stride = pair("kernel_size", kernel_size, 1), pair("stride", stride, 1)
        super().__init__(in_channels, out_channels, kernel_size, stride, pair("padding", padding, 0), (1, 1), 1, bias,
                         activation, device, dtype)  # fmt: skip

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, residual: Tensor | None = None, out_layout: str | None = None
    ) -> Tensor:
        """x (N, Cin, H, W), residual of the output's shape or None -> (N, Cout, OH, OW) in ``out_layout``."""
        stride, padding = cast("tuple[int, int]", self.stride), cast("tuple[int, int]", self.padding)
        return dispatch_dense(x, self.weight, self.bias, residual, self.activation, stride, padding, None, out_layout)


class _DepthwiseConv2d(DepthwiseConv2d, nn.Conv2d):  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    """Without an activation."""


class _PointwiseConv2d(PointwiseConv2d, nn.Conv2d):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Without an activation."""


class _StemConv2d(StemConv2d, nn.Conv2d):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Without an activation."""


DepthwiseConv2d.plain, PointwiseConv2d.plain, StemConv2d.plain = _DepthwiseConv2d, _PointwiseConv2d, _StemConv2d


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
        return not hasattr(self, "bn")

    def forward(self, x: Tensor, residual: Tensor | None = None, out_layout: str | None = None) -> Tensor:
        if not self.fused:
            y = activate(self.bn(self.conv(x)), self.activation)
            return y if residual is None else residual + y
        if isinstance(self.conv, DepthwiseConv2d):
            return self.conv(x, residual)
        if isinstance(self.conv, FusedConv2d):
            return self.conv(x, residual, out_layout)
        return _epilogue(self.conv(x), self.activation, residual)

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
            _with_parameters(self.conv, weight.to(dtype), bias.to(dtype), self.conv.weight)
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
        _with_parameters(fused, weight, bias, conv.weight)
    return fused.eval().prepare()


def _epilogue(y: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
    """``activation(y) + residual``; overwrites ``y``, a fresh tensor, where no gradient needs it."""
    if y.requires_grad:
        y = activate(y, activation)
        return y if residual is None else residual + y
    y = activate_(y, activation)
    return y if residual is None else y.add_(residual)


def _with_parameters(module: Any, weight: Tensor, bias: Tensor, old: Tensor) -> Any:
    """Set weight and bias of ``module``, trainable where ``old`` was."""
    module.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    module.bias = nn.Parameter(bias, requires_grad=old.requires_grad)
    return module


def _conv_bn(conv: nn.Conv2d | FusedConv2d) -> nn.Sequential:
    bn = nn.BatchNorm2d(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype)
    return nn.Sequential(OrderedDict(conv=conv, bn=bn))


__all__ = ["ChannelAffine", "ConvUnit", "DepthwiseConv2d", "PointwiseConv2d", "ReparamDepthwiseConv2d",
           "StemConv2d", "from_conv_bn"]  # fmt: skip
