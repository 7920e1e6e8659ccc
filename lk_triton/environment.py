"""The environment variables that algorithms read to choose configs. They read them here, and a plan's key holds all of them.

LK_TRITON_PDL is none of them: it changes how a kernel is launched (``algorithms/base.py``).
"""

from __future__ import annotations

import os

INTERPRET = "TRITON_INTERPRET"
"""Triton's own: kernels are interpreted, on CPU tensors."""

VARIABLES = (INTERPRET,)


def value(name: str) -> str:
    """What one of ``VARIABLES`` is set to; empty where it is not."""
    if name not in VARIABLES:
        raise ValueError(f"{name} is not one of {', '.join(VARIABLES)}: what algorithms read must be part of a plan's key")
    return os.environ.get(name, "")


def state() -> tuple[str, ...]:
    """The values of all of them: part of a plan's key."""
    return tuple([os.environ.get(name, "") for name in VARIABLES])
