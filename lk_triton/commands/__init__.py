"""What the command line does, one module a subcommand; ``cli.py`` parses and dispatches."""

from __future__ import annotations


class CommandError(Exception):
    """Something the user can put right; shown as one line, exit code 2."""


def missing_extra(package: str, extra: str) -> CommandError:
    """The error for an optional package that is not installed."""
    return CommandError(f"{package} is not installed: pip install 'lk-triton[{extra}]'")
