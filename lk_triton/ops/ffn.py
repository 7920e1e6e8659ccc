"""The registered op ``lk_triton::conv_ffn``, for inference; see ``registration.py``. Gradients: two ``dense_conv2d``."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dense as library_dense
from . import layout
from .problem import Epilogue, FfnProblem, operands_of
from .registration import register_autocast, run

NAME = "lk_triton::conv_ffn"

_library = torch.library.Library("lk_triton", "FRAGMENT")
_library.define(
    "conv_ffn(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor? residual, str activation, str? precision, "
    "str? out_layout, str algorithm) -> Tensor",
    tags=(torch.Tag.needs_exact_strides,),
)


def problem_of(
    x: Tensor, w1: Tensor, residual: Tensor | None, activation: str, precision: str | None, out_layout: str | None
) -> FfnProblem:
    """The problem that these tensors and options pose."""
    first = library_dense.problem_of(x, w1, None, None, (1, 1), (0, 0), None, precision, None)
    return FfnProblem(
        first.n, first.c, first.h, first.w, first.out_channels, first.dtype, first.layout, out_layout or first.layout,
        Epilogue(True, activation, residual is not None), first.precision,
    )  # fmt: skip


@torch.library.impl(_library, "conv_ffn", "CompositeExplicitAutograd")
def _implementation(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    residual: Tensor | None,
    activation: str,
    precision: str | None,
    out_layout: str | None,
    algorithm: str,
) -> Tensor:
    problem = problem_of(x, w1, residual, activation, precision, out_layout)
    return run(problem, operands_of(x=x, w1=w1, b1=b1, w2=w2, b2=b2, residual=residual), algorithm)


@torch.library.register_fake(NAME, lib=_library)
def fake(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    residual: Tensor | None,
    activation: str,
    precision: str | None,
    out_layout: str | None,
    algorithm: str,
) -> Tensor:
    n, c, h, w = x.shape
    return layout.empty((n, c, h, w), out_layout or layout.layout_of(x), x)


op = torch.ops.lk_triton.conv_ffn.default
register_autocast(_library, op)
