"""The compile-time choices of ``direct``."""

from __future__ import annotations

from dataclasses import dataclass

OUTPUTS_PER_LANE = 8


@dataclass(frozen=True)
class DirectConfig:
    """Compile-time choices.

    Attributes:
        block: lanes of a program, one a thread.
        rows: output rows of a lane.
        columns: outputs of a lane in each of them.
        channels: 0 where lanes lie along the rows of a plane, each for one channel. Else channels_last is read and written:
            this many lanes lie side by side along the channels, each for a vector of them.
    """

    block: int
    num_warps: int
    rows: int = 1
    columns: int = OUTPUTS_PER_LANE
    channels: int = 0
    num_stages: int = 2
