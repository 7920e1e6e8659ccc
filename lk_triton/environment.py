"""The environment variables that algorithms read to choose configs. They read them here, and a plan's key holds all of them.

LK_TRITON_PDL is none of them: it changes how a kernel is launched (``algorithms/base.py``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

INTERPRET = "TRITON_INTERPRET"
"""Triton's own: kernels are interpreted, on CPU tensors."""

VARIABLES = (INTERPRET,)

CALL = (
    INTERPRET, "LK_TRITON_ALGORITHM", "LK_TRITON_WITHOUT", "LK_TRITON_PDL", "LK_TRITON_VERIFY", "LK_TRITON_AUTOTUNE",
    "LK_TRITON_CACHE_DIR",
)  # fmt: skip
"""Those, and what else decides a call."""

_get: Callable[[Any], Any] = os.environ.get
_RAW: tuple[Any, ...] = CALL
if isinstance(_inside := getattr(os.environ, "_data", None), dict):
    # as os.environ keeps them: decoding each would take longer than all else that a repeated call looks up
    _get, _RAW = _inside.get, tuple(os.environ.encodekey(name) for name in CALL)


def value(name: str) -> str:
    """What one of ``VARIABLES`` is set to; empty where it is not."""
    if name not in VARIABLES:
        raise ValueError(f"{name} is not one of {', '.join(VARIABLES)}: what algorithms read must be part of a plan's key")
    return os.environ.get(name, "")


def state() -> tuple[str, ...]:
    """The values of all of them: part of a plan's key."""
    return tuple([os.environ.get(name, "") for name in VARIABLES])


def everything() -> tuple[Any, ...]:
    """The values of all variables that change what a call runs: part of what a call is remembered by."""
    return tuple(map(_get, _RAW))
