"""What is measured: named problems, the layers of RepLKNet-31B at 224x224 and one wide map."""

from __future__ import annotations

from dataclasses import replace

from lk_triton.problem import ConvProblem, Epilogue, same_padding

STAGES = ((128, 56, 31), (256, 28, 29), (512, 14, 27), (1024, 7, 13))
"""RepLKNet-31B at 224x224: (channels, map size, kernel size) of each stage's large-kernel layer."""

BATCHES = (64, 1)


def layer(n: int, c: int, h: int, w: int, kernel: int, dtype: str = "float16") -> ConvProblem:
    """A "same" layer of stride 1 with the epilogue of a fused block: bias and ReLU."""
    pad = same_padding(kernel)
    return ConvProblem(n, c, h, w, kernel, kernel, padding=(pad, pad), dtype=dtype, epilogue=Epilogue(True, "relu"))


def cases(dtype: str = "float16") -> dict[str, ConvProblem]:
    """Name -> problem; the names are ``31b-stage1-n64`` and so on."""
    found = {
        f"31b-stage{stage}-n{n}": layer(n, c, size, size, kernel, dtype)
        for n in BATCHES
        for stage, (c, size, kernel) in enumerate(STAGES, 1)
    }
    return found | {"wide-256x512-n1": layer(1, 128, 256, 512, 31, dtype)}


def tiny(problem: ConvProblem) -> ConvProblem:
    """A problem of the same kind that Triton's interpreter computes within a second; whole planes stay whole planes."""
    h, w = (3, 3) if problem.kh >= 2 * problem.h - 1 else (min(problem.h, 7), min(problem.w, 10))
    return replace(layer(min(problem.n, 2), 1, h, w, 5, problem.dtype), layout=problem.layout)
