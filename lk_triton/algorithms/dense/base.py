"""What the Triton algorithms of dense convolutions share: what they refuse, and pixels of a batch as rows of a matrix."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...gpu import Gpu
from ...ops import layout
from ...ops.problem import DenseProblem, FfnProblem, StemProblem
from ..base import TritonAlgorithm, why_no_kernel

EPILOGUE_INSTRUCTIONS = {None: 6, "relu": 8, "gelu": 18, "silu": 17}
"""Of one warp for 32 outputs, store and layout change included; counted in offline compilations of ``pointwise`` for sm_90."""


class PixelMatrixAlgorithm(TritonAlgorithm):
    """Products of matrices whose columns are the pixels of a batch: dense convolutions, and what is fused of them."""

    problems = (DenseProblem,)

    def why_not(self, problem: Any, gpu: Gpu) -> str | None:
        """What every one of them refuses."""
        if (reason := why_no_kernel(self, problem, gpu)) is not None:
            return reason
        if max(pixels(problem), problem.oh * problem.ow, problem.h * problem.w) >= 2**31 - 2**16:
            return f"{problem} has 2^31 pixels or more: split the batch"
        return None


def pixels(problem: DenseProblem | FfnProblem | StemProblem) -> int:
    """Columns of the matrix product: output pixels of all images."""
    return problem.n * problem.oh * problem.ow


def weight_bytes(problem: DenseProblem) -> int:
    """Memory of the weight."""
    return problem.out_channels * problem.c * problem.kh * problem.kw * problem.itemsize


def epilogue_instructions(problem: DenseProblem) -> int:
    """Of one warp for 32 outputs."""
    return EPILOGUE_INSTRUCTIONS[problem.epilogue.activation] + (4 if problem.epilogue.residual else 0)


def one_row(problem: DenseProblem | FfnProblem) -> bool:
    """Whether all pixels of a channel lie one after another."""
    return problem.layout == "channel_major" or problem.n == 1


def rows_are_aligned(problem: DenseProblem | FfnProblem) -> bool:
    """Whether x is a matrix of rows that begin at multiples of 16 bytes, as a tensor descriptor wants them."""
    aligned = problem.layout == "channel_major" or problem.h * problem.w * problem.itemsize % 16 == 0
    return one_row(problem) and aligned


def describable(*matrices: Tensor) -> bool:
    """Whether tensor descriptors can be made of them: rows and their distance, which is not 0, at multiples of 16 bytes."""
    return not any(t.stride(0) == 0 or t.stride(0) * t.element_size() % 16 or t.data_ptr() % 16 for t in matrices)


def row_arguments(prefix: str, t: Tensor | None, widest: int) -> dict[str, Any]:
    """Kernel arguments of a tensor (N, C, H, W) of dense planes whose pixels are columns, named after ``prefix``.

    For ``x``: ``X_ROW``, whether all pixels of a channel lie in one row; ``XV``, elements of a vector, at most ``widest``;
    ``x_plane_v``, ``stride_xn`` and ``stride_xc``, counted in vectors. None, no tensor, has none of all that.
    """
    upper = prefix.upper()
    names = (f"{prefix}_plane_v", f"stride_{prefix}n", f"stride_{prefix}c", f"{upper}_ROW", f"{upper}V")
    if t is None:
        return dict(zip(names, (1, 0, 0, True, 1), strict=True))
    n, c, h, w = t.shape
    one_row = n == 1 or t.stride(0) == h * w
    # behind a whole row there is room for the rest of a vector; elsewhere there is the next image or nothing
    roomy = one_row and c > 1 and t.stride(1) == layout.row_length(n, h, w)
    values = [] if roomy else [n * h * w] if one_row else [h * w, t.stride(0)]
    values += [t.stride(1)] if c > 1 else []
    values += [] if t.device.type == "meta" else [t.data_ptr() // t.element_size()]
    v = widest
    while any(value % v for value in values):
        v //= 2
    return dict(zip(names, (h * w // v, t.stride(0) // v, t.stride(1) // v, one_row, v), strict=True))
