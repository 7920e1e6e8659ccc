"""The compile-time choices of ``toeplitz``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ToeplitzConfig:
    """Compile-time choices.

    Attributes:
        rows: R, output rows of a tile.
        columns: WT, output columns of a tile; rows * columns is the GEMM's N.
        window: Kin as the sum of one or two powers of two, each with a step loop of its own.
        tiles: M, tiles of a program.
        vector: bank elements per load.
        precision: how float32 products are formed; ``ieee`` for half types, where it changes nothing.
        step_rows: input rows of a step over the first part, stacked in the dot's K; the second has as many as make the same K.
        swap: T transposed as the A operand, tiles as N: for few tiles.
    """

    rows: int
    columns: int
    window: tuple[int, int]
    tiles: int
    vector: int
    num_warps: int
    num_stages: int
    precision: str = "ieee"
    step_rows: int = 1
    swap: bool = False

    @property
    def outputs(self) -> int:
        """Outputs of a tile."""
        return self.rows * self.columns

    @property
    def step_k(self) -> int:
        """K of a step's dot."""
        return self.step_rows * self.window[0]

    @property
    def parts(self) -> list[tuple[int, int, int]]:
        """(first column, columns, rows of a step) of each part of the window."""
        found, column = [], 0
        for width in self.window:
            if width:
                found.append((column, width, self.step_k // width))
                column += width
        return found
