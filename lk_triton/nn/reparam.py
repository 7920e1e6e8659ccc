"""``ReparamDepthwiseConv2d``: a large depthwise kernel and its branches, which merge into one kernel."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import reparam
from ..ops.problem import activate, pair, same_padding
from .depthwise import DepthwiseConv2d
from .fused_conv import FusedConv2d, check_activation, with_parameters


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
        self.lkb_reparam = with_parameters(merged, weight.to(old.dtype), cast("Tensor", bias).to(old.dtype), old)
        for name in names:
            delattr(self, name)
        self.lkb_reparam.eval()
        if prepare:
            self.lkb_reparam.prepare()
        return self

    switch_to_deploy = merge_kernel = reparameterize


def _conv_bn(conv: nn.Conv2d | FusedConv2d) -> nn.Sequential:
    bn = nn.BatchNorm2d(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype)
    return nn.Sequential(OrderedDict(conv=conv, bn=bn))
