"""A reference independent of the library, and the library's tolerance rule (``planning/accuracy.py``) as an assertion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lk_triton.planning.accuracy import judge

ACTIVATION = {None: lambda y: y, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    padding: tuple[int, int] = (0, 0),
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """``activation(conv(x) + bias) + residual`` by torch, in the dtype of the arguments."""
    y = ACTIVATION[activation](F.conv2d(x, weight, bias, stride, padding, dilation, x.shape[1]))
    return y if residual is None else y + residual


def assert_accurate(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None,
                    residual: Tensor | None = None, **options: tuple[int, int]) -> None:  # fmt: skip
    """Compare ``out`` with the float64 reference, by the largest absolute error."""
    b64, r64 = (t if t is None else t.detach().cpu().double() for t in (bias, residual))
    exact = reference(x.detach().cpu().double(), weight.detach().cpu().double(), b64, activation, r64, **options)
    own = reference(x, weight, bias, activation, residual, **options).detach().cpu()
    result = out.detach().cpu()
    assert torch.isfinite(result).all(), "an output was not written, or is not finite"
    verdict = judge(result, own, exact)
    print(verdict)
    assert verdict.ok, verdict
