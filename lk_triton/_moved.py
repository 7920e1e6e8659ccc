"""Modules by the names that they had in earlier versions: importing one warns, and returns the module of now."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "lk_triton.bank": "lk_triton.nn.prepack",
    "lk_triton.checks": "lk_triton.ops.validation",
    "lk_triton.commands": "lk_triton.cli",
    "lk_triton.device": "lk_triton.gpu",
    "lk_triton.disassembly": "lk_triton.tools.disassembly",
    "lk_triton.flops": "lk_triton.ops.flops",
    "lk_triton.fused_conv": "lk_triton.nn.fused_conv",
    "lk_triton.inspector": "lk_triton.tools.inspector",
    "lk_triton.layout": "lk_triton.ops.layout",
    "lk_triton.problem": "lk_triton.ops.problem",
    "lk_triton.recorder": "lk_triton.ops.tracing",
    "lk_triton.tuning": "lk_triton.planning",
    "lk_triton.tuning.on_call": "lk_triton.planning.autotune",
}
"""Old name -> name of now; for packages, their modules follow. Removed in version 0.2."""


def moved_to(name: str) -> str | None:
    """The name of now of the module that was called ``name``; None where it was not moved."""
    if name in MOVED:
        return MOVED[name]
    package, _, module = name.rpartition(".")
    return f"{MOVED[package]}.{module}" if package in MOVED else None


class _Finder(MetaPathFinder, Loader):
    """Finds the moved modules, and nothing else."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return None if moved_to(name) is None else ModuleSpec(name, self, is_package=name in MOVED)

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of now in the place of ``module``, which is empty."""
        old, new = module.__name__, str(moved_to(module.__name__))
        warnings.warn(f"{old} is called {new}: version 0.2 will not know the old name", FutureWarning, stacklevel=2)
        sys.modules[old] = import_module(new)


def install() -> None:
    """Let old names be imported; later calls do nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # before others find an old name in a package's new folder
