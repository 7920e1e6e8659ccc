"""A GPU's context can be lost: after an illegal access by a kernel every later call of the process fails."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import torch

EXIT_CODE = 75
"""Of a program whose GPU was lost: EX_TEMPFAIL of sysexits.h, start it again."""


def lost(device: torch.device) -> str | None:
    """What the context of the GPU ``device`` died of, in one line; None while it answers. Waits for all that runs there."""
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
    except Exception as error:  # its type depends on torch's version
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def abandon() -> NoReturn:
    """End the process with ``EXIT_CODE`` and without destructors, which would call the lost GPU and abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_CODE)
