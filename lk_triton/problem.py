"""What is to be computed: plain frozen data, no tensors. A ``ConvProblem`` is hashable and becomes a tuning key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

ACTIVATIONS = ("relu", "gelu", "silu")
"""Fused activations. ``gelu`` is the exact one (erf)."""

PRECISIONS = ("ieee", "tf32x3", "tf32")
"""How float32 products are formed: IEEE, three TF32 products (float32-class accuracy), or one TF32 product."""

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
"""Bytes per element of each supported dtype."""


@dataclass(frozen=True)
class Epilogue:
    """From the accumulator to the store: + bias, activation, + residual, cast to the output's dtype."""

    bias: bool = False
    activation: str | None = None
    residual: bool = False


@dataclass(frozen=True)
class ConvProblem:
    """One depthwise convolution: x (n, c, h, w), weight (c * multiplier, 1, kh, kw), out (n, c * multiplier, oh, ow).

    ``layout`` is the memory order of x and out: ``nchw``, ``channel_major`` or ``channels_last`` (see ``layout.py``).
    ``precision`` is for float32 only; None there means float32-class accuracy (``ieee`` or ``tf32x3``).
    """

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
    def oh(self) -> int:
        """Output rows."""
        return output_size(self.h, self.kh, self.stride[0], self.padding[0], self.dilation[0])

    @property
    def ow(self) -> int:
        """Output columns."""
        return output_size(self.w, self.kw, self.stride[1], self.padding[1], self.dilation[1])

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the output, (n, c * multiplier, oh, ow)."""
        return self.n, self.c * self.multiplier, self.oh, self.ow

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEMSIZE[self.dtype]

    @property
    def nominal_macs(self) -> int:
        """Multiply-adds with every tap counted, those on the padding too."""
        n, c, oh, ow = self.out_shape
        return n * c * oh * ow * self.kh * self.kw

    def __str__(self) -> str:
        text = f"({self.n}, {self.c}, {self.h}, {self.w}) {self.kh}x{self.kw} {self.dtype}"
        for name, value, usual in (("stride", self.stride, (1, 1)), ("dilation", self.dilation, (1, 1)),
                                   ("multiplier", self.multiplier, 1), ("layout", self.layout, "nchw")):
            if value != usual:
                text += f" {name} {value}"
        return text


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Length of a convolution's output along one axis."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def same_padding(kernel: int, dilation: int = 1) -> int:
    """The padding on each side that keeps the size at stride 1.

    Raises:
        ValueError: the dilated kernel has an even extent, so no symmetric padding keeps the size.
    """
    extent = dilation * (kernel - 1)
    if extent % 2:
        raise ValueError(
            f"padding='same' needs an odd kernel extent, got kernel {kernel} with dilation {dilation}; "
            "pad the input yourself and pass padding='valid', or give the padding as numbers"
        )
    return extent // 2


def pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """``value`` as (h, w).

    Raises:
        ValueError: it is neither an int nor two, or one is below ``least``.
    """
    both = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(both) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v >= least for v in both):
        raise ValueError(f"{name} must be an int or (h, w) of at least {least}, got {value!r}")
    return both[0], both[1]
