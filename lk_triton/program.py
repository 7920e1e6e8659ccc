"""How a program of ours ends: an exit code and at most a line, whoever stops it, never a traceback for what is no bug."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TextIO

from .planning.plan import excluded, preferred

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells say it."""

NO_READER = 141
"""Exit code where nobody reads the output any more: 128 + SIGPIPE, as of other tools in a pipe."""


def run(name: str, work: Callable[[], int]) -> int:
    """The exit code of ``work``; ``name`` begins the line on stderr that says what went wrong.

    2 where LK_TRITON_ALGORITHM or LK_TRITON_WITHOUT names none. 1 where a file or the output itself cannot be written or read.
    """
    try:
        try:
            preferred()
            excluded()
        except ValueError as error:
            print(f"{name}: error: {error}", file=sys.stderr)
            return 2
        try:
            return work()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop(sys.stdout, sys.stderr)
        return NO_READER
    except OSError as error:
        _drop(sys.stdout)
        where = error.filename
        if where is None and type(error) is OSError and error.errno:  # of a stream; those of a network are subclasses
            where = "the output"
        print(f"{name}: error: {error if where is None else f'{where}: {error.strerror}'}", file=sys.stderr)
        return 1


def _drop(*streams: TextIO | None) -> None:
    """Let what a stream still holds go nowhere: Python would try to write it at exit, and complain."""
    for stream in filter(None, streams):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
