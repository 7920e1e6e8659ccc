"""Seconds of a launch as those of its slowest resource, with what every launch adds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

from ...gpu import Gpu
from ...ops.problem import Problem

LAUNCH_SECONDS = 3e-6
"""From one kernel's end to the next one's start in a stream, kernel prologue included. An assumption, not a measurement."""

MMA_SHARE = 0.8
"""Share of the MMA peak that a large matrix product is reported to reach on an H100 (798 of 989 TFLOP/s, 8192^3
bfloat16). Not measured by this project."""


class Estimate(NamedTuple):
    """Predicted time of one launch in seconds, and the resource that limits it."""

    seconds: float
    limiter: str
    """``mma`` or ``fma``, ``smem``, ``l2``, ``dram``, ``issue``, ``latency``, or ``launch``."""


def roofline(problem: Problem, gpu: Gpu, copied: Sequence[int] | None = None, /, **seconds: float) -> Estimate:
    """The slowest of several resources (name -> seconds), plus one launch, plus the conversions of ``copied`` elements.

    The limiter is the largest of these: the resource, ``launch``, or ``dram`` where the conversions are it. By default those
    of ``conversions``.
    """
    copied = conversions(problem) if copied is None else copied
    slowest = max(seconds, key=lambda name: seconds[name])
    terms = {"launch": LAUNCH_SECONDS * (1 + len(copied)), slowest: seconds[slowest]}
    if copied:
        moved = 2 * sum(copied) * problem.itemsize  # read and written
        terms["dram"] = terms.get("dram", 0.0) + moved / (gpu.dram_gbps * 1e9)
    return Estimate(sum(terms.values()), max(terms, key=lambda name: terms[name]))


def in_turn(launches: Iterable[Estimate]) -> Estimate:
    """Launches one after another; the limiter is that of the longest."""
    found = list(launches)
    return Estimate(sum(e.seconds for e in found), max(found).limiter)


@lru_cache(maxsize=4096)
def conversions(problem: Problem) -> tuple[int, ...]:
    """Elements of each tensor that is copied to or from dense planes, where the problem's layouts have none."""
    specs = (*problem.inputs().values(), problem.output())
    return tuple(prod(spec.shape) for spec in specs if spec.layout == "channels_last")


@lru_cache(maxsize=4096)
def activation_bytes(problem: Problem) -> int:
    """DRAM floor: every map read once, such as x and residual, and the output written once."""
    specs = (*problem.maps().values(), problem.output())
    return sum(prod(spec.shape) for spec in specs) * problem.itemsize
