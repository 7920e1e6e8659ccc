"""What is measured: named problems. A name is family, member and batch, such as ``31b-224-stage1-n64``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product

import torch

from lk_triton.ops.layout import layout_of, strides
from lk_triton.ops.problem import ConvProblem, Epilogue, same_padding

STAGES = ((128, 56, 31), (256, 28, 29), (512, 14, 27), (1024, 7, 13))
"""RepLKNet-31B at 224x224: (channels, map size, kernel size) of each stage's large-kernel layer."""

CONVNEXT = ((96, 56), (192, 28), (384, 14), (768, 7))
"""ConvNeXt-T at 224x224: (channels, map size) of each stage; the kernel is 7x7."""

TABLE1_MAPS = (16, 32, 64)
TABLE1_KERNELS = (3, 5, 7, 9, 13, 17, 21, 27, 29, 31)
"""Table 1 of the RepLKNet paper: 384 channels, batch 64."""

SLAK = ((51, 51), (51, 5), (5, 51))
"""SLaK's kernels, whole and as the two strips that it is made of."""

PLAIN, BIASED, FUSED = Epilogue(), Epilogue(True), Epilogue(True, "relu")


@dataclass(frozen=True)
class Member:
    """A case but for its batch and dtype: the layer for one image, in the layout that the network has there."""

    name: str
    layer: ConvProblem
    batches: tuple[int, ...] = (64,)
    behind_transition: bool = False


def _members() -> Iterator[Member]:
    """Those that say most come first. The epilogue and the layout are what the network has there: a fused RepLKNet is
    channel-major, ConvNeXt runs in channels_last, Table 1's layers have no epilogue."""
    for image, batches in ((224, (64, 8, 1)), (384, (64, 1))):
        for stage, (c, size, k) in enumerate(STAGES, 1):
            size = size * image // 224
            yield Member(f"31b-{image}-stage{stage}", layer(1, c, size, size, k, layout="channel_major"), batches, stage > 1)
    for stage, (c, size, k) in enumerate(STAGES, 1):  # street scenes, 1024x2048: maps of 256x512 in stage 1
        h, w = 256 * size // 56, 512 * size // 56
        yield Member(f"wide-stage{stage}", layer(1, c, h, w, k, layout="channel_major"), (1,), stage > 1)
    for size, k in product(TABLE1_MAPS, TABLE1_KERNELS):
        yield Member(f"table1-r{size}-k{k}", layer(1, 384, size, size, k, epilogue=PLAIN))
    for kh, kw in SLAK:
        yield Member(f"slak-{kh}x{kw}", layer(1, 96, 56, 56, kh, kw, epilogue=BIASED))
    for stage, (c, size) in enumerate(CONVNEXT, 1):
        yield Member(f"convnext-stage{stage}", layer(1, c, size, size, 7, epilogue=BIASED, layout="channels_last"))


def layer(
    n: int, c: int, h: int, w: int, kh: int, kw: int | None = None, dtype: str = "float16", epilogue: Epilogue = FUSED,
    layout: str = "nchw",
) -> ConvProblem:  # fmt: skip
    """A "same" layer of stride 1."""
    kw = kh if kw is None else kw
    padding = same_padding(kh), same_padding(kw)
    return ConvProblem(n, c, h, w, kh, kw, padding=padding, dtype=dtype, epilogue=epilogue, layout=layout)


def cases(dtype: str = "float16", batches: Sequence[int] = ()) -> dict[str, ConvProblem]:
    """Name -> problem, at each family's own batches or at ``batches``."""
    return {
        f"{m.name}-n{n}": replace(m.layer, n=n, dtype=dtype, layout=_layout(m, n))
        for m in _members()
        for n in (batches or m.batches)
    }


def _layout(member: Member, n: int) -> str:
    """The member's layout as a call sees it. Of one image with 64 * k pixels channel_major and nchw are the same, and a
    transition keeps the layout that it sees in its map, which is twice as high and wide."""
    p = member.layer
    for factor in (2, 1) if member.behind_transition else (1,):
        shape = (n, p.c, factor * p.h, factor * p.w)
        seen = layout_of(torch.empty_strided(shape, strides(shape, p.layout), device="meta"))
        if seen == "nchw":
            return seen
    return p.layout


def select(named: dict[str, ConvProblem], patterns: Sequence[str]) -> dict[str, ConvProblem]:
    """The cases that match a shell pattern, in the order of the patterns."""
    return {name: problem for pattern in patterns for name, problem in named.items() if fnmatchcase(name, pattern)}


def tiny(problem: ConvProblem) -> ConvProblem:
    """A problem of the same kind that Triton's interpreter computes within a second; whole planes stay whole planes."""
    h, w = (3, 3) if problem.kh >= 2 * problem.h - 1 else (min(problem.h, 7), min(problem.w, 10))
    kh, kw = min(problem.kh, 5), min(problem.kw, 5)
    kh, kw = (kh, 3) if problem.kh > problem.kw else (3, kw) if problem.kw > problem.kh else (kh, kw)
    return layer(min(problem.n, 2), 1, h, w, kh, kw, problem.dtype, problem.epilogue, problem.layout)
