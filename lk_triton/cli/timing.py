"""Timing of whole networks as a user calls them: eager, not in a CUDA graph as ``bench`` times layers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

import torch

from ..planning.timing import Timing, interleave

ROUNDS = (5, 20)
"""At least and at most."""

SECONDS = 10.0
"""How long the rounds may take together where there are more than the least."""

CALLS = 20
"""Calls a round on an accelerator, where one call is short; one on a CPU."""


class EagerTimer:
    """Calls between two readings of the clock, the device idle at both; warms up when made."""

    def __init__(self, call: Callable[[], object], device: torch.device) -> None:
        self.call, self.device = call, device
        self.calls = 1 if device.type == "cpu" else CALLS
        call()

    def round(self) -> float:
        """Seconds of one call."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(self.calls):
            self.call()
        self.synchronize()
        return (time.perf_counter() - start) / self.calls

    def synchronize(self) -> None:
        """Wait for everything queued on the device."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def compare(calls: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, Timing]:
    """Each call timed over several rounds in which they take turns; compare their fastest rounds."""
    timers = {name: EagerTimer(call, device) for name, call in calls.items()}
    trial = sum(timer.round() * timer.calls for timer in timers.values())
    least, most = ROUNDS
    return interleave(timers, max(least, min(most, int(SECONDS / trial))))


def load_average() -> tuple[float, float, float] | None:
    """Runnable processes over 1, 5 and 15 minutes, where the system tells."""
    return os.getloadavg() if hasattr(os, "getloadavg") else None
