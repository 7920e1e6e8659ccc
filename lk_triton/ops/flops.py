"""FLOP formulas of the registered ops for ``torch.utils.flop_counter``: two per multiply-add, as torch counts convolutions.

torch's module imports Triton, which this package does not at import: the formulas are registered when somebody imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from math import prod
from types import ModuleType
from typing import Any

from . import dense as library_dense
from . import ffn as library_ffn
from . import registration as library
from . import stem as library_stem

Shape = Sequence[int]


def convolution(x: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    """Every output is a sum over the weight of its channel, taps on the padding counted too."""
    return 2 * prod(out_shape) * prod(weight[1:])


def conv_ffn(x: Shape, w1: Shape, b1: Shape, w2: Shape, *_: Any, **__: Any) -> int:
    """Both layers, at every pixel."""
    return 2 * x[0] * prod(x[2:]) * (prod(w1) + prod(w2))


def conv_stem(x: Shape, w1: Shape, b1: Shape, w2: Shape, b2: Shape, w3: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    """The three layers, all of which have the output's map."""
    return 2 * out_shape[0] * prod(out_shape[2:]) * (prod(w1) + prod(w2) + prod(w3))


FORMULAS: dict[Any, Callable[..., int]] = {
    library.op.overloadpacket: convolution, library_dense.op.overloadpacket: convolution,
    library_ffn.op.overloadpacket: conv_ffn, library_stem.op.overloadpacket: conv_stem,
}  # fmt: skip
COUNTER = "torch.utils.flop_counter"


class _WhenImported(MetaPathFinder):
    """Lets the usual finders load ``COUNTER``, and registers the formulas behind that."""

    asking = False

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != COUNTER or self.asking:
            return None
        self.asking = True
        try:
            spec = find_spec(fullname)
        finally:
            self.asking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)
                sys.meta_path.remove(self)

            spec.loader.exec_module = execute_and_register
        return spec


def _register(counter: ModuleType) -> None:
    for op, formula in FORMULAS.items():
        counter.register_flop_formula(op)(formula)


def register() -> None:
    """Register the formulas, now or when torch's module is imported."""
    if COUNTER in sys.modules:
        _register(sys.modules[COUNTER])
    else:
        sys.meta_path.insert(0, _WhenImported())
