"""The environment variables that algorithms read to choose configs. They read them here, and a plan's key holds all of them.

LK_TRITON_PDL is none of them: it changes how a kernel is launched (``algorithms/base.py``).
"""

from __future__ import annotations

import os

WARP_SPECIALIZE = "LK_TRITON_WARP_SPECIALIZE"
"""1 adds warp-specialized 1x1 configs on sm_90: right on an H100, and 0.90 to 1.06 times as fast as the best of the others."""

INTERPRET = "TRITON_INTERPRET"
"""Triton's own: kernels are interpreted, on CPU tensors."""

VARIABLES = (WARP_SPECIALIZE, INTERPRET)


def value(name: str) -> str:
    """What one of ``VARIABLES`` is set to; empty where it is not."""
    if name not in VARIABLES:
        raise ValueError(f"{name} is not one of {', '.join(VARIABLES)}: what algorithms read must be part of a plan's key")
    return os.environ.get(name, "")


def state() -> tuple[str, ...]:
    """The values of all of them: part of a plan's key."""
    return tuple([os.environ.get(name, "") for name in VARIABLES])
