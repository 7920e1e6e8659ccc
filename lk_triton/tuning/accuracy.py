"""Correctness before speed: nothing is timed, by the tuner or by ``bench``, that fails this gate.

The rule: the error against float64 is at most twice torch's error in the same dtype, plus one rounding of the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .. import layout
from ..algorithms.base import Weights
from ..algorithms.torch_ import activate, convolve
from ..problem import Chain, Problem

TF32_BITS = 13
"""Bits of a float32's significand that TF32 does not have."""


@dataclass(frozen=True)
class Verdict:
    """Errors are the largest absolute ones, relative to the largest exact output; NaN where the output is not finite."""

    error: float
    torch_error: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the result may be timed."""
        return self.error <= self.allowed  # False for NaN


def judge(result: Tensor, torch_result: Tensor, exact: Tensor) -> Verdict:
    """Compare ``result`` with ``exact`` (float64), by what torch reaches in the same dtype.

    Raises:
        ValueError: the result has another shape or dtype than torch's.
    """
    if result.shape != torch_result.shape or result.dtype != torch_result.dtype:
        raise ValueError(
            f"wrong output: {tuple(result.shape)} {result.dtype}, expected {tuple(exact.shape)} {torch_result.dtype}"
        )
    scale = exact.abs().max().clamp_min(1e-30)
    error, torch_error = (((r.double() - exact).abs().max() / scale).item() for r in (result, torch_result))
    return Verdict(error, torch_error, 2 * torch_error + torch.finfo(result.dtype).eps)


class Inputs(NamedTuple):
    """x (N, C, H, W) in the problem's layout, the weight (``weight_shape``), and what the epilogue asks for: bias of the
    output's channels, residual of the output's shape and layout. A chain has tuples of
    both, and a ConvFFN adds x, as in networks."""

    x: Tensor
    weight: Weights
    bias: Weights | None
    residual: Tensor | None


def draw(problem: Problem, device: torch.device, generator: torch.Generator | None = None) -> Inputs:
    """Fresh random tensors of ``problem``; outputs are of the order of 1.

    A problem that asks for ``tf32`` gets values that TF32 holds exactly, so that float64 sees what the tensor cores see.
    """

    if isinstance(problem, Chain):
        xs, weights, biases, _ = zip(*(draw(layer, device, generator) for layer in problem.layers), strict=True)
        return Inputs(xs[0], weights, None if biases[0] is None else biases, xs[0] if problem.epilogue.residual else None)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(shape, device=device, dtype=getattr(torch, problem.dtype), generator=generator)
        if problem.precision == "tf32":
            values.view(torch.int32).bitwise_and_(-1 << TF32_BITS)
        return values

    n, out_channels, oh, ow = problem.out_shape
    weight = normal(*problem.weight_shape)
    scale = 2.0 ** -round(prod(problem.weight_shape[1:]).bit_length() / 2)  # a power of two keeps TF32 values exact
    return Inputs(
        x=layout.conform(normal(n, problem.c, problem.h, problem.w), problem.layout),
        weight=weight * scale,
        bias=normal(out_channels) if problem.epilogue.bias else None,
        residual=layout.conform(normal(n, out_channels, oh, ow), problem.out_layout) if problem.epilogue.residual else None,
    )


def eager(problem: Problem, x: Tensor, weight: Weights, bias: Weights | None, residual: Tensor | None = None) -> Tensor:
    """The problem by torch's own operations, in the dtype of the tensors."""
    if isinstance(problem, Chain):
        for layer, w, b in zip(problem.layers, weight, bias or (None,) * len(weight), strict=True):
            x = eager(layer, x, w, b)
        return x if residual is None else x + residual
    y = activate(convolve(problem, x, weight, bias), problem.epilogue.activation)
    return y if residual is None else y + residual


class Gate:
    """The references of one problem on one set of random inputs, computed once for all candidates."""

    def __init__(self, problem: Problem, device: torch.device, generator: torch.Generator | None = None) -> None:
        self.x, self.weight, self.bias, self.residual = inputs = draw(problem, device, generator)
        # in NCHW torch's own kernels serve; cuDNN, which serves channels_last, may take TF32 and loosen the bound
        self._torch = eager(problem, self.x.contiguous(), *inputs[1:])
        self._exact = eager(problem, *tree_map_only(Tensor, Tensor.double, tuple(inputs)))

    def check(self, run: Callable[[Tensor], Tensor]) -> Verdict:
        """Judge ``run(x)``. The memory that its output is likely to get is filled with NaN first."""
        poison = torch.full_like(self._torch, float("nan"))
        del poison
        return judge(run(self.x), self._torch, self._exact)
