"""Dense convolutions, 1x1 and a network's first: the problem, and the schema of ``lk_triton::dense_conv2d``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import layout
from .base import Convolution, Epilogue, Operands, picked

SCHEMA = (
    "dense_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? bank, int[2] stride, int[2] padding, "
    "str? activation, str? precision, str? out_layout, str algorithm, str? bank_format) -> Tensor"
)


@dataclass(frozen=True)
class DenseProblem(Convolution):
    """One dense convolution: x (n, c, h, w), weight (out_channels, c, kh, kw), out (n, out_channels, oh, ow).

    ``layout`` is the memory order of x, ``out_layout`` that of out. ``precision`` is for float32 only; None there means
    what torch's flags for convolutions ask for, which the caller has looked up: float32-class accuracy.
    """

    kind: ClassVar[str] = "dense"
    plural: ClassVar[str] = "dense convolutions"

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
    def dilation(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """None: (1, 1)."""
        return 1, 1

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.out_channels, self.c, self.kh, self.kw

    @property
    def pointwise(self) -> bool:
        """Whether this is a 1x1 convolution, one matrix product over all pixels."""
        return (self.kh, self.kw, *self.stride, *self.padding) == (1, 1, 1, 1, 0, 0)

    def of_channels(self, operands: Operands, some: Sequence[int]) -> tuple[DenseProblem, Operands]:
        return replace(self, out_channels=len(some)), picked(operands, some, {"weight": 0, "bias": 0, "residual": 1})

    def __str__(self) -> str:
        what = f"-> {self.out_channels} dense {self.kh}x{self.kw}"
        return self._text(what, stride=(1, 1), layout="nchw", out_layout=self.layout)


def problem_of(
    *,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    precision: str | None,
    out_layout: str | None,
    **geometry: Any,
) -> DenseProblem:
    """The problem that these tensors and options pose. ``precision`` None: what torch's flags for convolutions say."""
    (n, c, h, w), of_x = x.shape, layout.layout_of(x)
    return DenseProblem(
        n, c, h, w, weight.shape[0], weight.shape[2], weight.shape[3], dtype=str(x.dtype).removeprefix("torch."), layout=of_x,
        out_layout=out_layout or of_x, epilogue=Epilogue(bias is not None, activation, residual is not None),
        precision=precision or default_precision(x), **geometry,
    )  # fmt: skip


def default_precision(x: Tensor) -> str | None:
    """What torch's flags for convolutions ask for."""
    return "tf32" if x.dtype == torch.float32 and torch_allows_tf32(x.device) else None


def torch_allows_tf32(device: torch.device) -> bool:
    """Whether torch's own float32 convolutions on ``device`` may round to TF32."""
    if device.type != "cuda":
        return False
    conv = getattr(torch.backends.cudnn, "conv", None)
    # reading the old flag after the new one was set raises
    return torch.backends.cudnn.allow_tf32 if conv is None else conv.fp32_precision == "tf32"
