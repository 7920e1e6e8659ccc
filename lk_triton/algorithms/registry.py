"""The algorithms, in order of preference at equal estimates. A new one is one line here."""

from __future__ import annotations

from .base import Algorithm
from .direct import DirectAlgorithm
from .toeplitz import ToeplitzAlgorithm
from .torch_ import TorchAlgorithm

ALGORITHMS: dict[str, Algorithm] = {a.name: a for a in (ToeplitzAlgorithm(), DirectAlgorithm(), TorchAlgorithm())}


def get(name: str) -> Algorithm:
    """The algorithm called ``name``.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}: expected 'auto' or one of {', '.join(map(repr, ALGORITHMS))}")
    return ALGORITHMS[name]
