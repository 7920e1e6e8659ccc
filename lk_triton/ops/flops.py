"""FLOP formulas of the registered ops for ``torch.utils.flop_counter``: two per multiply-add, as torch counts convolutions.

torch's module imports Triton, which this package does not at import: the formulas are registered when somebody imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from .registration import OPS, Op


def _formula(op: Op) -> Callable[..., int]:
    """Two per multiply-add of the problem that a call poses."""

    def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return 2 * op.problem(op.arguments(args, kwargs)).nominal_macs

    return count


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
    for op in OPS.values():
        counter.register_flop_formula(op.op.overloadpacket, get_raw=True)(_formula(op))


def register() -> None:
    """Register the formulas, now or when torch's module is imported."""
    if COUNTER in sys.modules:
        _register(sys.modules[COUNTER])
    else:
        sys.meta_path.insert(0, _WhenImported())
