"""The compile-time choices of ``convffn``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConvffnConfig:
    """Compile-time choices.

    Attributes:
        pixels: BP, of a program.
        step: BH, hidden channels of a step.
        tma: operands by tensor descriptors.
    """

    pixels: int
    step: int
    num_warps: int
    num_stages: int
    tma: bool = False
