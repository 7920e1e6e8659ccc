"""The algorithms, in order of preference at equal estimates. A new one is one line here."""

from __future__ import annotations

from ..ops.problem import Problem
from .base import Algorithm
from .dense.cublas import CublasAlgorithm
from .dense.implicit_gemm.host import ImplicitGemmAlgorithm
from .dense.pointwise.host import PointwiseAlgorithm
from .depthwise.direct.host import DirectAlgorithm
from .depthwise.toeplitz.host import ToeplitzAlgorithm
from .depthwise.toeplitz_hopper.host import ToeplitzHopperAlgorithm
from .fused.ffn.host import ConvffnAlgorithm
from .fused.stem.host import ConvstemAlgorithm
from .layerwise import LayerwiseAlgorithm
from .onednn import OnednnAlgorithm
from .torch_ import TorchAlgorithm

_ALL: tuple[Algorithm, ...] = (
    ToeplitzAlgorithm(), ToeplitzHopperAlgorithm(), DirectAlgorithm(),
    PointwiseAlgorithm(), CublasAlgorithm(), ImplicitGemmAlgorithm(),
    ConvffnAlgorithm(), ConvstemAlgorithm(), OnednnAlgorithm(), TorchAlgorithm(), LayerwiseAlgorithm(),
)  # fmt: skip
ALGORITHMS: dict[str, Algorithm] = {a.name: a for a in _ALL}

RENAMED = {"resident": "toeplitz_hopper", "stem": "implicit_gemm", "pair": "layerwise", "triple": "layerwise"}
"""Former names of algorithms and of their kernel forms, which calls, variables and files may still say."""


def meant_for(problem: Problem | type[Problem]) -> dict[str, Algorithm]:
    """The algorithms for problems of this kind; each may still refuse a single one."""
    kind = problem if isinstance(problem, type) else type(problem)
    return {name: a for name, a in ALGORITHMS.items() if issubclass(kind, a.problems)}


def get(name: str) -> Algorithm:
    """The algorithm that is or was called ``name``.

    Raises:
        ValueError: there is none of that name.
    """
    name = RENAMED.get(name, name)
    if name not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}: expected 'auto' or one of {', '.join(map(repr, ALGORITHMS))}")
    return ALGORITHMS[name]
