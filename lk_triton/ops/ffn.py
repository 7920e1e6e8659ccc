"""ConvFFNs: the problem, and the schema of ``lk_triton::conv_ffn``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from . import layout
from .base import Chain, Epilogue
from .dense import DenseProblem, default_precision

SCHEMA = (
    "conv_ffn(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor? residual, str activation, str? precision, "
    "str? out_layout, str algorithm) -> Tensor"
)


@dataclass(frozen=True)
class FfnProblem(Chain):
    """A ConvFFN: x (n, c, h, w), w1 (hidden, c, 1, 1), w2 (c, hidden, 1, 1), out (n, c, h, w).

    ``epilogue``: both layers have a bias, the activation stands between them, the residual is added behind the second. The
    rest is as in ``DenseProblem``.
    """

    kind: ClassVar[str] = "ffn"
    plural: ClassVar[str] = "ConvFFNs"

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

    def __str__(self) -> str:
        return self._text(f"-> {self.hidden} -> {self.c} ConvFFN", layout="nchw", out_layout=self.layout)


def problem_of(
    *,
    x: Tensor,
    w1: Tensor,
    residual: Tensor | None,
    activation: str,
    precision: str | None,
    out_layout: str | None,
    **_: Tensor,
) -> FfnProblem:
    """The problem that these tensors and options pose."""
    (n, c, h, w), of_x = x.shape, layout.layout_of(x)
    return FfnProblem(
        n, c, h, w, w1.shape[0], dtype=str(x.dtype).removeprefix("torch."), layout=of_x, out_layout=out_layout or of_x,
        epilogue=Epilogue(True, activation, residual is not None), precision=precision or default_precision(x),
    )  # fmt: skip
