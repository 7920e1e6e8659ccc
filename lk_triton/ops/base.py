"""What every kind of problem offers, and what convolutions and chains of them share. Each kind has a module of its own.

A problem says what is to be computed: plain frozen data, no tensors. It is hashable and becomes a tuning key. Its operands are
tensors by role, as the arguments of the op's schema are named: ``x``, ``weight``, ``bias``, ``residual``, ...
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

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


Operands = Mapping[str, Tensor]
"""Role -> tensor. A role that is absent is not in it."""


def operands_of(**tensors: Tensor | None) -> Operands:
    """Role -> tensor, without those that are absent."""
    return {role: tensor for role, tensor in tensors.items() if tensor is not None}


class Spec(NamedTuple):
    """What a tensor of a problem is like. ``layout``: the memory order of a map (N, C, H, W), see ``layout.py``; None of all
    other tensors, such as weights and biases, which are contiguous."""

    shape: tuple[int, ...]
    dtype: str
    layout: str | None = None


KINDS: dict[str, type[Problem]] = {}
"""Kind, as JSON names it -> class. A class that has a ``kind`` is in it."""


class Problem:
    """What every kind of problem offers. A kind is a frozen dataclass that has ``n``, ``dtype`` and ``precision`` too.

    Attributes:
        kind: its name in JSON.
        plural: what its problems are called.
        sizes: the fields in which problems that are alike may differ.
        batched: whether the output's first dimension is that of the images; channels are the next one, else the first.
    """

    kind: ClassVar[str]
    plural: ClassVar[str]
    sizes: ClassVar[tuple[str, ...]] = ("n", "h", "w")
    batched: ClassVar[bool] = True
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    n: int
    dtype: str
    precision: str | None

    def __init_subclass__(cls) -> None:
        if "kind" in vars(cls):
            KINDS[cls.kind] = cls

    def inputs(self) -> dict[str, Spec]:
        """What is read, by role, in the order of the op's arguments."""
        raise NotImplementedError

    def output(self) -> Spec:
        """What is computed."""
        raise NotImplementedError

    def reference(self, operands: Operands) -> Tensor:
        """The output by torch's own operations, which can be differentiated, in the dtype of the operands; its memory order is
        torch's choice."""
        raise NotImplementedError

    @property
    def nominal_macs(self) -> int:
        """Multiply-adds with every tap counted, those on the padding too."""
        raise NotImplementedError

    @property
    def useful_macs(self) -> int:
        """Multiply-adds of the taps that meet a pixel, not the padding."""
        return self.nominal_macs

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output."""
        return self.output().shape

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEMSIZE[self.dtype]

    def maps(self) -> dict[str, Spec]:
        """The inputs that are maps."""
        return {role: spec for role, spec in self.inputs().items() if spec.layout is not None}

    def alike(self, other: Problem) -> bool:
        """Whether ``other`` differs from this in sizes alone."""
        return type(self) is type(other) and replace(self, **{size: getattr(other, size) for size in self.sizes}) == other

    def of_images(self, operands: Operands, some: slice) -> tuple[Self, Operands]:
        """The same problem for some images, and its operands. Only where the problem is ``batched``."""
        maps = self.maps()
        return replace(self, n=len(range(self.n)[some])), {r: t[some] if r in maps else t for r, t in operands.items()}

    def of_channels(self, operands: Operands, some: Sequence[int]) -> tuple[Self, Operands] | None:
        """The problem whose output is some of this one's channels, and its operands; None where all are computed together."""
        return None

    def _text(self, what: str, **usual: object) -> str:
        """Size of x, ``what`` and dtype, and the fields that differ from what they usually are."""
        (n, c, h, w) = self.inputs()["x"].shape
        fields = ((name, getattr(self, name)) for name in usual)
        unusual = "".join(f" {name} {value}" for name, value in fields if value != usual[name])
        return f"({n}, {c}, {h}, {w}) {what} {self.dtype}{unusual}"


class Convolution(Problem):
    """One convolution with its epilogue: ``activation(conv(x, weight) + bias) + residual``."""

    c: int
    h: int
    w: int
    kh: int
    kw: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    layout: str
    out_layout: str
    epilogue: Epilogue

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weight: output channels, input channels of a group, and the kernel."""
        raise NotImplementedError

    @property
    def groups(self) -> int:
        """Groups of channels, of which each is summed over for itself."""
        return self.c // self.weight_shape[1]

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
        """Shape of the output, (n, output channels, oh, ow)."""
        return self.n, self.weight_shape[0], self.oh, self.ow

    def inputs(self) -> dict[str, Spec]:
        x = Spec((self.n, self.c, self.h, self.w), self.dtype, self.layout)
        found = {"x": x, "weight": Spec(self.weight_shape, self.dtype)}
        if self.epilogue.bias:
            found["bias"] = Spec(self.weight_shape[:1], self.dtype)
        if self.epilogue.residual:
            found["residual"] = self.output()
        return found

    def output(self) -> Spec:
        return Spec(self.out_shape, self.dtype, self.out_layout)

    def reference(self, operands: Operands) -> Tensor:
        y = activate(convolve(self, operands["x"], operands["weight"], operands.get("bias")), self.epilogue.activation)
        return y + operands["residual"] if "residual" in operands else y

    @property
    def nominal_macs(self) -> int:
        n, out_channels, oh, ow = self.out_shape
        return n * out_channels * oh * ow * self.weight_shape[1] * self.kh * self.kw

    @property
    def useful_macs(self) -> int:
        rows = _taps_along(self.h, self.oh, self.kh, self.stride[0], self.padding[0], self.dilation[0])
        columns = _taps_along(self.w, self.ow, self.kw, self.stride[1], self.padding[1], self.dilation[1])
        return self.n * self.weight_shape[0] * self.weight_shape[1] * rows * columns


def picked(operands: Operands, some: Sequence[int], dims: Mapping[str, int]) -> Operands:
    """``operands`` with some channels only of those roles that ``dims`` has the dimension of."""
    given = list(some)
    return {role: t[(slice(None),) * dims[role] + (given,)] if role in dims else t for role, t in operands.items()}


class Chain(Problem):
    """Several convolutions, one after the other.

    Layer i reads the weight ``w<i>`` and the bias ``b<i>``, counted from 1; the last one adds ``residual``.
    """

    @property
    def layers(self) -> tuple[Convolution, ...]:
        """The convolutions that together compute it."""
        raise NotImplementedError

    def inputs(self) -> dict[str, Spec]:
        layers = [layer.inputs() for layer in self.layers]
        found = {"x": layers[0]["x"]}
        for i, layer in enumerate(layers, 1):
            found |= {f"{role[0]}{i}": spec for role, spec in layer.items() if role in ("weight", "bias")}
        return found | {role: spec for role, spec in layers[-1].items() if role == "residual"}

    def output(self) -> Spec:
        return self.layers[-1].output()

    def layer_operands(self, operands: Operands) -> list[dict[str, Tensor]]:
        """The operands of each layer, but for ``x``, which is the output of the layer before."""
        names = {"weight": "w", "bias": "b"}
        found = [
            {role: operands[f"{name}{i}"] for role, name in names.items() if f"{name}{i}" in operands}
            for i in range(1, len(self.layers) + 1)
        ]
        if "residual" in operands:
            found[-1]["residual"] = operands["residual"]
        return found

    def in_turn(self, operands: Operands, compute: Callable[[Convolution, Operands], Tensor]) -> Tensor:
        """The output, where ``compute`` computes one layer."""
        y = operands["x"]
        for layer, own in zip(self.layers, self.layer_operands(operands), strict=True):
            y = compute(layer, {"x": y, **own})
        return y

    def reference(self, operands: Operands) -> Tensor:
        return self.in_turn(operands, lambda layer, own: layer.reference(own))

    @property
    def nominal_macs(self) -> int:
        return sum(layer.nominal_macs for layer in self.layers)

    @property
    def useful_macs(self) -> int:
        return sum(layer.useful_macs for layer in self.layers)


def convolve(problem: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution alone, differentiable.

    bfloat16 on a CPU is computed in float32: oneDNN's bfloat16 depthwise convolution in channels_last does not return for
    wide kernels of up to 16 channels (``algorithms/onednn.py``, which serves the others).
    """
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and problem.groups > 1:
        y = convolve(problem, x.float(), weight.float(), None if bias is None else bias.float())
        return y.to(x.dtype)
    return F.conv2d(x, weight, bias, problem.stride, problem.padding, problem.dilation, problem.groups)


def activate(y: Tensor, activation: str | None) -> Tensor:
    """``y`` through the activation, differentiable."""
    if activation is None:
        return y
    return {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}[activation](y)


def _taps_along(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """(Output, tap) pairs along one axis whose pixel exists."""
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
