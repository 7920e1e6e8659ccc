"""What several algorithms need: each function answers None, or the sentence that says what is missing."""

from __future__ import annotations

from ..gpu import Gpu
from ..ops.problem import DenseProblem, Problem
from .cost.dot import precisions


def needs_tensor_cores(gpu: Gpu) -> str | None:
    """Tensor cores that take 16-bit types of both kinds, or any matrix units of AMD."""
    if gpu.backend == "cuda" and gpu.capability < 80:
        return f"{gpu.arch} has no usable tensor cores: sm_80 or newer is needed"
    return None


def needs_precision(problem: Problem, gpu: Gpu) -> str | None:
    """A dot precision that answers the problem's request."""
    return None if precisions(problem, gpu) else f"precision {problem.precision} is not offered on {gpu.arch}, ieee is"


def needs_half(problem: Problem) -> str | None:
    """A 16-bit type."""
    if problem.dtype not in ("float16", "bfloat16"):
        return f"dtype {problem.dtype} is not one of float16, bfloat16"
    return None


def needs_pointwise(problem: DenseProblem) -> str | None:
    """A 1x1 kernel that moves by one."""
    if not problem.pointwise:
        return f"a {problem.kh}x{problem.kw} kernel with stride {problem.stride} is no 1x1 convolution"
    return None
