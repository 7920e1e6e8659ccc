"""The registered op ``lk_triton::conv_stem``, for inference; see ``registration.py``. Gradients: its three layers."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dense as library_dense
from . import layout
from .problem import Epilogue, StemProblem, operands_of, output_size
from .registration import register_autocast, run

NAME = "lk_triton::conv_stem"

_library = torch.library.Library("lk_triton", "FRAGMENT")
_library.define(
    "conv_stem(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor w3, Tensor b3, str activation, str? precision, "
    "str? out_layout, str algorithm) -> Tensor",
    tags=(torch.Tag.needs_exact_strides,),
)


def problem_of(x: Tensor, w1: Tensor, activation: str, precision: str | None, out_layout: str | None) -> StemProblem:
    """The problem that these tensors and options pose."""
    first = library_dense.problem_of(x, w1, None, None, (2, 2), (1, 1), None, precision, out_layout)
    return StemProblem(
        first.n, first.c, first.h, first.w, first.out_channels, first.dtype, first.layout, first.out_layout,
        Epilogue(True, activation), first.precision,
    )  # fmt: skip


@torch.library.impl(_library, "conv_stem", "CompositeExplicitAutograd")
def _implementation(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    w3: Tensor,
    b3: Tensor,
    activation: str,
    precision: str | None,
    out_layout: str | None,
    algorithm: str,
) -> Tensor:
    problem = problem_of(x, w1, activation, precision, out_layout)
    return run(problem, operands_of(x=x, w1=w1, b1=b1, w2=w2, b2=b2, w3=w3, b3=b3), algorithm)


@torch.library.register_fake(NAME, lib=_library)
def fake(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    w3: Tensor,
    b3: Tensor,
    activation: str,
    precision: str | None,
    out_layout: str | None,
    algorithm: str,
) -> Tensor:
    oh, ow = (output_size(size, 3, 2, 1, 1) for size in x.shape[2:])
    return layout.empty((x.shape[0], w1.shape[0], oh, ow), out_layout or layout.layout_of(x), x)


op = torch.ops.lk_triton.conv_stem.default
register_autocast(_library, op)
