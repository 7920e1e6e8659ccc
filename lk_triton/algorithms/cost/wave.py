"""The programs of a launch over the SMs of a GPU, and the seconds that shared resources take."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from ...gpu import Gpu

ISSUE_SHARE = 0.8
"""Share of the issue slots that a busy SM fills. An assumption, not a measurement."""


class Wave(NamedTuple):
    """So many programs on a GPU. The seconds are those of SMs that are equally busy: times ``fullest``, of the fullest SM."""

    programs: int
    gpu: Gpu

    @property
    def per_sm(self) -> float:
        """Programs of an SM, on average."""
        return self.programs / self.gpu.sms

    @property
    def most(self) -> int:
        """Programs of the fullest SM."""
        return ceil(self.per_sm)

    @property
    def fullest(self) -> float:
        """Programs of the fullest SM, over the average."""
        return self.most / self.per_sm

    def issue(self, instructions: float) -> float:
        """Seconds to issue ``instructions`` of warps."""
        return instructions / (self.gpu.issue_per_clock * self.gpu.clocks * ISSUE_SHARE)

    def shared(self, moved: float) -> float:
        """Seconds to move bytes in or out of shared memory."""
        return moved / (self.gpu.shared_bytes_per_clock * self.gpu.clocks)

    def l2(self, moved: float) -> float:
        """Seconds to move bytes between L2 and the SMs."""
        return moved / (self.gpu.l2_gbps * 1e9)

    def dram(self, moved: float) -> float:
        """Seconds to move bytes from or to DRAM."""
        return moved / (self.gpu.dram_gbps * 1e9)
