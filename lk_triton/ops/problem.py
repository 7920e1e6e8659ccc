"""What is to be computed: plain frozen data, no tensors. A problem is hashable and becomes a tuning key.

A ``ConvProblem`` is a depthwise convolution, a ``DenseProblem`` one that sums over the channels: 1x1, or the stem's 3x3. An
``FfnProblem`` is two 1x1 convolutions with an activation between them, a ``StemProblem`` the first three layers of a stem.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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

    @property
    def useful_macs(self) -> int:
        """Multiply-adds of the taps that meet a pixel, not the padding."""
        return self.n * self.c * self.multiplier * _taps_on_pixels(self)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weight, (c * multiplier, 1, kh, kw)."""
        return self.c * self.multiplier, 1, self.kh, self.kw

    @property
    def groups(self) -> int:
        """Groups of the convolution: every channel is one."""
        return self.c

    @property
    def out_layout(self) -> str:
        """Memory order of the output: that of x."""
        return self.layout

    def __str__(self) -> str:
        text = f"({self.n}, {self.c}, {self.h}, {self.w}) {self.kh}x{self.kw} {self.dtype}"
        usual = {"stride": (1, 1), "dilation": (1, 1), "multiplier": 1, "layout": "nchw"}
        return text + _unusual(self, usual)


@dataclass(frozen=True)
class DenseProblem:
    """One dense convolution: x (n, c, h, w), weight (out_channels, c, kh, kw), out (n, out_channels, oh, ow).

    ``layout`` is the memory order of x, ``out_layout`` that of out. ``precision`` is for float32 only; None there means
    what torch's flags for convolutions ask for, which the caller has looked up: float32-class accuracy.
    """

    n: int
    c: int
    h: int
    w: int
    out_channels: int
    kh: int = 1
    kw: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dtype: str = "float16"
    layout: str = "nchw"
    out_layout: str = "nchw"
    epilogue: Epilogue = field(default_factory=Epilogue)
    precision: str | None = None

    @property
    def dilation(self) -> tuple[int, int]:
        """None: (1, 1)."""
        return 1, 1

    @property
    def groups(self) -> int:
        """Groups of the convolution: all channels are one."""
        return 1

    @property
    def oh(self) -> int:
        """Output rows."""
        return output_size(self.h, self.kh, self.stride[0], self.padding[0], 1)

    @property
    def ow(self) -> int:
        """Output columns."""
        return output_size(self.w, self.kw, self.stride[1], self.padding[1], 1)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the output, (n, out_channels, oh, ow)."""
        return self.n, self.out_channels, self.oh, self.ow

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weight, (out_channels, c, kh, kw)."""
        return self.out_channels, self.c, self.kh, self.kw

    @property
    def pointwise(self) -> bool:
        """Whether this is a 1x1 convolution, one matrix product over all pixels."""
        return (self.kh, self.kw, *self.stride, *self.padding) == (1, 1, 1, 1, 0, 0)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEMSIZE[self.dtype]

    @property
    def nominal_macs(self) -> int:
        """Multiply-adds with every tap counted, those on the padding too."""
        n, out_channels, oh, ow = self.out_shape
        return n * out_channels * oh * ow * self.c * self.kh * self.kw

    @property
    def useful_macs(self) -> int:
        """Multiply-adds of the taps that meet a pixel, not the padding."""
        return self.n * self.out_channels * self.c * _taps_on_pixels(self)

    def __str__(self) -> str:
        text = f"({self.n}, {self.c}, {self.h}, {self.w}) -> {self.out_channels} dense {self.kh}x{self.kw} {self.dtype}"
        return text + _unusual(self, {"stride": (1, 1), "layout": "nchw", "out_layout": self.layout})


@dataclass(frozen=True)
class FfnProblem:
    """A ConvFFN: x (n, c, h, w), weights (hidden, c, 1, 1) and (c, hidden, 1, 1), out (n, c, h, w).

    Wherever a convolution has a weight and a bias, this has a pair of each. ``epilogue``: both layers have a bias, the
    activation stands between them, the residual is added behind the second. The rest is as in ``DenseProblem``.
    """

    n: int
    c: int
    h: int
    w: int
    hidden: int
    dtype: str = "float16"
    layout: str = "nchw"
    out_layout: str = "nchw"
    epilogue: Epilogue = field(default_factory=lambda: Epilogue(True, "gelu", True))
    precision: str | None = None

    @property
    def oh(self) -> int:
        """Output rows."""
        return self.h

    @property
    def ow(self) -> int:
        """Output columns."""
        return self.w

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the output, (n, c, h, w)."""
        return self.n, self.c, self.h, self.w

    @property
    def layers(self) -> tuple[DenseProblem, DenseProblem]:
        """The two convolutions that together compute it; the map between them is in the layout of x."""
        bias, activation, residual = self.epilogue.bias, self.epilogue.activation, self.epilogue.residual
        first = DenseProblem(
            self.n, self.c, self.h, self.w, self.hidden, dtype=self.dtype, layout=self.layout, out_layout=self.layout,
            epilogue=Epilogue(bias, activation), precision=self.precision,
        )  # fmt: skip
        second = replace(
            first, c=self.hidden, out_channels=self.c, out_layout=self.out_layout, epilogue=Epilogue(bias, None, residual)
        )
        return first, second

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEMSIZE[self.dtype]

    @property
    def nominal_macs(self) -> int:
        """Multiply-adds of both layers."""
        return sum(layer.nominal_macs for layer in self.layers)

    @property
    def useful_macs(self) -> int:
        """Of those, the ones whose taps meet a pixel."""
        return sum(layer.useful_macs for layer in self.layers)

    def __str__(self) -> str:
        text = f"({self.n}, {self.c}, {self.h}, {self.w}) -> {self.hidden} -> {self.c} ConvFFN {self.dtype}"
        return text + _unusual(self, {"layout": "nchw", "out_layout": self.layout})


@dataclass(frozen=True)
class StemProblem:
    """The first three layers of a stem: dense 3x3 with stride 2, depthwise 3x3, 1x1, each with a bias and the activation.

    x (n, c, h, w), weights (channels, c, 3, 3), (channels, 1, 3, 3) and (channels, channels, 1, 1), out (n, channels, oh, ow);
    padding 1. Wherever a convolution has a weight and a bias, this has three of each. ``precision`` is that of the dense
    layers; the rest is as in ``DenseProblem``.
    """

    n: int
    c: int
    h: int
    w: int
    channels: int
    dtype: str = "float16"
    layout: str = "nchw"
    out_layout: str = "nchw"
    epilogue: Epilogue = field(default_factory=lambda: Epilogue(True, "relu"))
    precision: str | None = None

    @property
    def oh(self) -> int:
        """Output rows."""
        return output_size(self.h, 3, 2, 1, 1)

    @property
    def ow(self) -> int:
        """Output columns."""
        return output_size(self.w, 3, 2, 1, 1)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the output, (n, channels, oh, ow)."""
        return self.n, self.channels, self.oh, self.ow

    @property
    def layers(self) -> tuple[DenseProblem, ConvProblem, DenseProblem]:
        """The three convolutions that together compute it; the maps between them are in the layout of the output."""
        first = DenseProblem(
            self.n, self.c, self.h, self.w, self.channels, 3, 3, (2, 2), (1, 1), self.dtype, self.layout, self.out_layout,
            self.epilogue, self.precision,
        )  # fmt: skip
        second = ConvProblem(
            *self.out_shape, 3, 3, padding=(1, 1), dtype=self.dtype, layout=self.out_layout, epilogue=self.epilogue
        )
        third = DenseProblem(
            *self.out_shape, self.channels, dtype=self.dtype, layout=self.out_layout, out_layout=self.out_layout,
            epilogue=self.epilogue, precision=self.precision,
        )  # fmt: skip
        return first, second, third

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEMSIZE[self.dtype]

    @property
    def nominal_macs(self) -> int:
        """Multiply-adds of the three layers."""
        return sum(layer.nominal_macs for layer in self.layers)

    @property
    def useful_macs(self) -> int:
        """Of those, the ones whose taps meet a pixel."""
        return sum(layer.useful_macs for layer in self.layers)

    def __str__(self) -> str:
        text = f"({self.n}, {self.c}, {self.h}, {self.w}) -> {self.channels} stem {self.dtype}"
        return text + _unusual(self, {"layout": "nchw", "out_layout": self.layout})


Convolution = ConvProblem | DenseProblem
Chain = FfnProblem | StemProblem
"""Several convolutions, one after the other: ``layers``."""
Problem = Convolution | Chain


def _unusual(problem: Problem, usual: dict[str, object]) -> str:
    """The fields that differ from ``usual``, in words."""
    fields = ((name, getattr(problem, name)) for name in usual)
    return "".join(f" {name} {value}" for name, value in fields if value != usual[name])


def _taps_on_pixels(p: Convolution) -> int:
    """(Output, tap) pairs of one image and channel whose pixel exists."""
    rows = _taps_along(p.h, p.oh, p.kh, p.stride[0], p.padding[0], p.dilation[0])
    return rows * _taps_along(p.w, p.ow, p.kw, p.stride[1], p.padding[1], p.dilation[1])


def _taps_along(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """The same along one axis."""
    positions = (o * stride - padding + k * dilation for o in range(outputs) for k in range(kernel))
    return sum(0 <= position < size for position in positions)


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
    given = tuple(value) if isinstance(value, Sequence) else (value, value)
    both = [v if type(v) is int else _index(v) for v in given]
    h, w = both if len(both) == 2 else (None, None)
    if h is None or w is None or min(h, w) < least:
        raise ValueError(f"{name} must be an int or (h, w) of at least {least}, got {value!r}")
    return h, w


def _index(value: Any) -> int | None:
    """Another type's integer, such as numpy's, as an int; None for what is none, and for bool."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
