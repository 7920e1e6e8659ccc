"""The first layers of a network: the problem, and the schema of ``lk_triton::conv_stem``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from . import layout
from .base import Chain, Epilogue, output_size
from .dense import DenseProblem, default_precision
from .depthwise import ConvProblem

SCHEMA = (
    "conv_stem(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor w3, Tensor b3, str activation, str? precision, "
    "str? out_layout, str algorithm) -> Tensor"
)


@dataclass(frozen=True)
class StemProblem(Chain):
    """The first three layers of a stem: dense 3x3 with stride 2, depthwise 3x3, 1x1, each with a bias and the activation.

    x (n, c, h, w), w1 (channels, c, 3, 3), w2 (channels, 1, 3, 3), w3 (channels, channels, 1, 1), out (n, channels, oh, ow);
    padding 1. ``precision`` is that of the dense layers; the rest is as in ``DenseProblem``.
    """

    kind: ClassVar[str] = "stem"
    plural: ClassVar[str] = "stems"

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

    def __str__(self) -> str:
        return self._text(f"-> {self.channels} stem", layout="nchw", out_layout=self.layout)


def problem_of(
    *, x: Tensor, w1: Tensor, activation: str, precision: str | None, out_layout: str | None, **_: Tensor
) -> StemProblem:
    """The problem that these tensors and options pose."""
    (n, c, h, w), of_x = x.shape, layout.layout_of(x)
    return StemProblem(
        n, c, h, w, w1.shape[0], dtype=str(x.dtype).removeprefix("torch."), layout=of_x, out_layout=out_layout or of_x,
        epilogue=Epilogue(True, activation), precision=precision or default_precision(x),
    )  # fmt: skip
