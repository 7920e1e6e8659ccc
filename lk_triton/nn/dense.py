"""``PointwiseConv2d`` and ``StemConv2d``: convolutions that sum over the channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops import library
from ..ops.problem import DenseProblem, Epilogue, pair
from .fused_conv import FusedConv2d
from .prepack import PrepackedConv2d, check_example


class PointwiseConv2d(FusedConv2d, PrepackedConv2d):
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
        (weight, bias), (bank, bank_format) = self._weight_and_bias(), self._prepacked_weight()
        return library.dense_conv2d(
            x=x, weight=weight, bias=bias, residual=residual, bank=bank, stride=1, padding=0,
            activation=self._activation, out_layout=out_layout, algorithm="auto", bank_format=bank_format,
        )  # fmt: skip

    def _example(self) -> tuple[int, int, int, int]:
        return 64, self.in_channels, 14, 14

    def _problem(self, shape: Sequence[int]) -> DenseProblem:
        n, c, h, w = check_example(shape, self.in_channels)
        layout = "channels_last" if self._on_cpu else "channel_major"
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
        return library.dense_conv2d(
            x=x, weight=self.weight, bias=self.bias, residual=residual, stride=self.stride, padding=self.padding,
            activation=self.activation, out_layout=out_layout, algorithm="auto",
        )  # fmt: skip


class _PointwiseConv2d(PointwiseConv2d, nn.Conv2d):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Without an activation."""


class _StemConv2d(StemConv2d, nn.Conv2d):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Without an activation."""


PointwiseConv2d.plain, StemConv2d.plain = _PointwiseConv2d, _StemConv2d
