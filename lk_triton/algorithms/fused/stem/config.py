"""The compile-time choices of ``convstem``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConvstemConfig:
    """Compile-time choices, but for ``rows``.

    Attributes:
        columns: BP, of a program.
        rows: of the output, of a strip; two more of the first map are made at its ends.
    """

    columns: int
    rows: int
    num_warps: int
