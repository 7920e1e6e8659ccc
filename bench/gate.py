"""Correctness before speed: a result that fails this gate gets no figure.

The rule: the error against float64 is at most twice torch's error in the same dtype, plus one rounding of the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lk_triton.algorithms.torch_ import activate
from lk_triton.problem import ConvProblem


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


def draw(problem: ConvProblem, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Fresh random x (N, C, H, W), weight (C, 1, KH, KW) and bias (C,) of ``problem``; outputs are of the order of 1."""
    options = {"device": device, "dtype": getattr(torch, problem.dtype)}
    weight = torch.randn(problem.c, 1, problem.kh, problem.kw, **options) / (problem.kh * problem.kw) ** 0.5
    return torch.randn(problem.n, problem.c, problem.h, problem.w, **options), weight, torch.randn(problem.c, **options)


def eager(problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The problem by torch's own operations, in the dtype of the tensors."""
    y = F.conv2d(x, weight, bias, problem.stride, problem.padding, problem.dilation, problem.c)
    return activate(y, problem.epilogue.activation)


class Gate:
    """The references of one problem on one set of random inputs, computed once for all providers."""

    def __init__(self, problem: ConvProblem, device: torch.device) -> None:
        self.x, self.weight, self.bias = draw(problem, device)
        tensors = (self.x, self.weight, self.bias)
        self._torch = eager(problem, *tensors)
        self._exact = eager(problem, *(t.double() for t in tensors))

    def check(self, run: Callable[[Tensor], Tensor]) -> Verdict:
        """Judge ``run(x)``. The memory that its output is likely to get is filled with NaN first."""
        poison = torch.full_like(self._torch, float("nan"))
        del poison
        return judge(run(self.x), self._torch, self._exact)
