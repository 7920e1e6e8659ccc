"""The compile-time choices of ``pointwise``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class PointwiseConfig:
    """Compile-time choices.

    Attributes:
        rows, columns: BM x BN, output channels and pixels of a tile.
        step_k: BK, input channels of a step.
        precision: how float32 products are formed; ``ieee`` for half types, where it changes nothing.
        tma: operands by tensor descriptors, and programs that stay for several tiles.
    """

    rows: int
    columns: int
    step_k: int
    num_warps: int
    num_stages: int
    precision: str = "ieee"
    tma: bool = False
    dropped: ClassVar = {"warp_specialize": False}  # fields that old entries have, see planning/entry.py

    @property
    def outputs(self) -> int:
        """Outputs of a tile."""
        return self.rows * self.columns
