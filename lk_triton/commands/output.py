"""What the studies' commands share: the folder they write to, the progress bar, and the facts that end a report."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from . import CommandError, missing_extra, versions


def folder(name: str) -> Path:
    """The folder ``name``, made where it is not there. Sees to it that pictures can be drawn, too.

    Raises:
        CommandError: it cannot be made or written to, or matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise missing_extra("matplotlib", "analysis") from None
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot write to {name}: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise CommandError(f"cannot write to {name}: writing there is not allowed")
    return path


def progress(total: int, what: str, done: int = 0, unit: str = "image") -> Any:
    """A progress bar on stderr, over ``total`` images or whatever else ``unit`` says.

    Raises:
        CommandError: tqdm is missing.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        raise missing_extra("tqdm", "analysis") from None
    return tqdm(total=total, initial=done, desc=what, unit=unit, file=sys.stderr)


def facts() -> list[tuple[str, str]]:
    """Versions, as the end of a report has them."""
    return [(name, version or "not installed") for name, version in versions().items()]
