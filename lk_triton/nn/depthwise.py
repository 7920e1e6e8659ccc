"""``DepthwiseConv2d``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..ops import library
from ..ops.problem import PRECISIONS, ConvProblem, Epilogue, pair, same_padding
from .fused_conv import FusedConv2d
from .prepack import PrepackedConv2d, check_example


class DepthwiseConv2d(FusedConv2d, PrepackedConv2d):
    """Depthwise convolution with a fused epilogue; an ``nn.Conv2d`` by state_dict and attributes.

    Without an activation it is an instance of ``nn.Conv2d`` too (``FusedConv2d`` says why not with one).

    Args:
        channels: C of the input (N, C, H, W).
        kernel_size, stride, dilation: an int or (h, w).
        padding: ``"same"``, ``"valid"``, an int or (h, w); kept as numbers in ``.padding``.
        multiplier: output channels per input channel.
        activation, precision: see ``lk_triton.depthwise_conv2d``.

    ``prepare()`` packs the weight once for repeated inference. The prepacked weight is no parameter or buffer; it is
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
        (weight, bias), (bank, bank_format) = self._weight_and_bias(), self._prepacked_weight()
        return library.depthwise_conv2d(
            x=x, weight=weight, bias=bias, residual=residual, bank=bank, stride=self.stride, padding=self.padding,
            dilation=self.dilation, activation=self._activation, precision=self.precision, algorithm="auto",
            bank_format=bank_format,
        )  # fmt: skip

    def _example(self) -> tuple[int, int, int, int]:
        h, w = (max(56, d * (k - 1) + 1) for k, d in zip(self.kernel_size, self.dilation, strict=True))
        return 64, self.in_channels, h, w

    def _problem(self, shape: Sequence[int]) -> ConvProblem:
        n, c, h, w = check_example(shape, self.in_channels)
        problem = ConvProblem(
            n, c, h, w, *cast("tuple[int, int]", self.kernel_size), cast("tuple[int, int]", self.stride), self.padding,
            cast("tuple[int, int]", self.dilation), self.out_channels // self.in_channels,
            str(self.weight.dtype).removeprefix("torch."), "channels_last" if self._on_cpu else "nchw",
            Epilogue(self.bias is not None, self.activation), self.precision,
        )  # fmt: skip
        if min(problem.out_shape) < 1:
            raise ValueError(f"example shape {tuple(shape)} is too small: the output would be {problem.out_shape}")
        return problem


class _DepthwiseConv2d(DepthwiseConv2d, nn.Conv2d):  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    """Without an activation."""


DepthwiseConv2d.plain = _DepthwiseConv2d
