"""What the subcommands share."""

from __future__ import annotations

import platform
from dataclasses import asdict

import torch

from .. import __version__
from ..algorithms.base import Config


class CommandError(Exception):
    """Something the user can put right; shown as one line, exit code 2."""


def missing_extra(package: str, extra: str) -> CommandError:
    """The error for an optional package that is not installed."""
    return CommandError(f"{package} is not installed: pip install 'lk-triton[{extra}]'")


def versions() -> dict[str, str | None]:
    """Versions of what a result depends on; None where it is not installed."""
    try:
        from triton import __version__ as triton
    except ImportError:
        triton = None
    return {"lk_triton": __version__, "torch": torch.__version__, "triton": triton, "python": platform.python_version()}


def words(config: Config) -> str:
    """A config on one line."""
    return " ".join(f"{name}={value}" for name, value in asdict(config).items())
