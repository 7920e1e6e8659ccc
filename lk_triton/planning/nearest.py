"""What was measured for a problem much like this one, on a GPU much like this one.

Alike: the same architecture family, and the same problem but for its sizes: N, H and W, of a depthwise convolution C too. The
channels of a dense one decide how long its products are, and its epilogue and layouts which configs spill. Near: by the ratios
of the sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import log2

from ..gpu import Gpu
from ..ops.problem import Problem
from .cache import Table
from .entry import Entry

FARTHEST = 1.0
"""Sum of |log2| of the ratios of the sizes, a factor of two in all: half the batch, or 79x79 for 56x56. An assumption."""


def family(arch: str) -> str:
    """GPUs that share their instructions: ``sm_8`` for sm_80, sm_86 and sm_89, ``gfx94`` for gfx940 to gfx942."""
    return arch[:-1]


def distance(a: Problem, b: Problem) -> float:
    """Sum of |log2| of the ratios of the sizes in which problems that are alike may differ."""
    return sum(abs(log2(max(getattr(a, size), 1) / max(getattr(b, size), 1))) for size in a.sizes)


def nearest(problem: Problem, gpu: Gpu, tables: Iterable[Table]) -> Iterator[tuple[Entry, ...]]:
    """The entries of each problem that is alike, the nearest first; those of the same device go before others."""
    found = []
    for table in tables:
        if family(table.arch) != family(gpu.arch):
            continue
        for other, entries in table.entries.items():
            if other.alike(problem) and (far := distance(problem, other)) <= FARTHEST:
                found.append(((far, table.device != gpu.name, table.device, repr(other)), entries))
    yield from (entries for _, entries in sorted(found, key=lambda pair: pair[0]))
