"""Depthwise convolutions: the problem, and the schema of ``lk_triton::depthwise_conv2d``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor

from . import layout
from .base import Convolution, Epilogue, Operands, picked

SCHEMA = (
    "depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? bank, int[2] stride, "
    "int[2] padding, int[2] dilation, str? activation, str? precision, str algorithm, str? bank_format) -> Tensor"
)


@dataclass(frozen=True)
class ConvProblem(Convolution):
    """One depthwise convolution: x (n, c, h, w), weight (c * multiplier, 1, kh, kw), out (n, c * multiplier, oh, ow).

    ``layout`` is the memory order of x and out: ``nchw``, ``channel_major`` or ``channels_last`` (see ``layout.py``).
    ``precision`` is for float32 only; None there means float32-class accuracy (``ieee`` or ``tf32x3``).
    """

    kind: ClassVar[str] = "depthwise"
    plural: ClassVar[str] = "depthwise convolutions"
    sizes: ClassVar[tuple[str, ...]] = ("n", "c", "h", "w")

    n: int
    c: int
    h: int
    w: int
    kh: int
    kw: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    multiplier: int = 1
    dtype: str = "float16"
    layout: str = "nchw"
    epilogue: Epilogue = field(default_factory=Epilogue)
    precision: str | None = None

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.c * self.multiplier, 1, self.kh, self.kw

    @property
    def out_layout(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Memory order of the output: that of x."""
        return self.layout

    def of_channels(self, operands: Operands, some: Sequence[int]) -> tuple[ConvProblem, Operands]:
        own = picked(operands, some, {"weight": 0, "bias": 0, "residual": 1})
        read = picked(operands, [channel // self.multiplier for channel in some], {"x": 1})
        return replace(self, c=len(some), multiplier=1), {**own, "x": read["x"]}

    def __str__(self) -> str:
        return self._text(f"{self.kh}x{self.kw}", stride=(1, 1), dilation=(1, 1), multiplier=1, layout="nchw")


def problem_of(
    *, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str | None, **options: Any
) -> ConvProblem:
    """The problem that these tensors and options pose."""
    n, c, h, w = x.shape
    return ConvProblem(
        n, c, h, w, weight.shape[2], weight.shape[3], multiplier=weight.shape[0] // c if c else 1,
        dtype=str(x.dtype).removeprefix("torch."), layout=layout.layout_of(x),
        epilogue=Epilogue(bias is not None, activation, residual is not None), **options,
    )  # fmt: skip
