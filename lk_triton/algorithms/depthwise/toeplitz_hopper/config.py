"""The compile-time choices of ``toeplitz_hopper``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ToeplitzHopperConfig:
    """Compile-time choices.

    Attributes:
        rows: R, output rows of a tile.
        columns: WT, output columns of a tile; rows * columns is the GEMM's N.
        window: Kin as the sum of one or two powers of two.
        step_rows: input rows of a step, stacked in the product's K.
        buffers: steps whose input rows are in flight or in use.
        store: elements of the vectors that outputs are stored in.
        groups: warp groups: one, or two that take turns.
        split: programs that share a channel's tile blocks.
    """

    rows: int
    columns: int
    window: tuple[int, int]
    step_rows: int
    buffers: int
    store: int
    groups: int = 1
    split: int = 1

    @property
    def outputs(self) -> int:
        """Outputs of a tile."""
        return self.rows * self.columns

    @property
    def step_k(self) -> int:
        """K of a step's products together."""
        return self.step_rows * sum(self.window)
