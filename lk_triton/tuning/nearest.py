"""What was measured for a problem much like this one, on a GPU much like this one.

Alike: the same architecture family, kernel size and dtype, and everything else that decides which configs there are
(stride, dilation, multiplier, precision). Near: by the ratios of N, C, H and W.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import log2

from ..device import Device
from ..problem import Problem
from .cache import Table
from .entry import Entry

SAME = ("kh", "kw", "dtype", "stride", "dilation", "multiplier", "out_channels", "hidden", "channels", "precision")

FARTHEST = 3.0
"""Sum of |log2| of the four ratios, a factor of eight in all: beyond it the cost model knows better. An assumption."""


def family(arch: str) -> str:
    """GPUs that share their instructions: ``sm_8`` for sm_80, sm_86 and sm_89, ``gfx94`` for gfx940 to gfx942."""
    return arch[:-1]


def distance(a: Problem, b: Problem) -> float:
    """Sum of |log2| of the ratios of N, C, H and W."""
    return sum(abs(log2(max(x, 1) / max(y, 1))) for x, y in zip((a.n, a.c, a.h, a.w), (b.n, b.c, b.h, b.w), strict=True))


def nearest(problem: Problem, device: Device, tables: Iterable[Table]) -> Iterator[tuple[Entry, ...]]:
    """The entries of each problem that is alike, the nearest first; same layout, epilogue and device go before others."""
    found = []
    for table in tables:
        if family(table.arch) != family(device.arch):
            continue
        for other, entries in table.entries.items():
            if any(getattr(other, name, None) != getattr(problem, name, None) for name in SAME):
                continue
            far = distance(problem, other)
            if far <= FARTHEST:
                unlike = (other.layout != problem.layout) + (other.epilogue != problem.epilogue)
                found.append(((far, unlike, table.device != device.name, table.device, repr(other)), entries))
    yield from (entries for _, entries in sorted(found, key=lambda pair: pair[0]))
