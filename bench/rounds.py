"""Times of short calls on a busy machine: the fastest of many rounds, in each of which every call has its turn.

It is CPU time of the calling thread, in which another process's turn does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

ROUNDS = 60
"""Many, and short turns: on a busy machine some are not interrupted."""

SECONDS = 0.002
"""Of one call's turn, repeated as often as fits."""


def fastest(calls: Sequence[Callable[[], object]], rounds: int = ROUNDS, seconds: float = SECONDS) -> list[float]:
    """Seconds of each call: the minimum over rounds of the mean of a turn."""
    repeats = [max(1, round(seconds / min(_turn(call, 1) for _ in range(5)))) for call in calls]
    times = [[_turn(call, n) for call, n in zip(calls, repeats, strict=True)] for _ in range(rounds)]
    return [min(column) for column in zip(*times, strict=True)]


def _turn(call: Callable[[], object], repeats: int) -> float:
    start = time.thread_time()
    for _ in range(repeats):
        call()
    return (time.thread_time() - start) / repeats
