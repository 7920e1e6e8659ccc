"""What the studies' commands share: the folder they write to, the progress bar, and the facts that end a report."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..files import why_no_files_in, why_not_written
from .options import CommandError, missing_extra, versions


def folder(name: str, results: Sequence[str], overwrite: bool) -> Path:
    """The folder ``name``, made where it is not there. Sees to it that pictures can be drawn and reports written, too.

    Args:
        results: names of the files that the command will write there.
        overwrite: they may replace those of another run.

    Raises:
        CommandError: it cannot be made or written to, holds results that may not be replaced, or a package is missing.
    """
    for package in ("matplotlib", "jinja2"):
        if find_spec(package) is None:
            raise missing_extra(package, "analysis")
    path = Path(name)
    found = [result for result in results if os.path.lexists(path / result)]
    if found and not overwrite:
        raise CommandError(
            f"{name} holds {', '.join(found)} of another run: pass --overwrite to replace them, or another --out"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot write to {name}: {error.strerror}") from None
    reasons = [why_no_files_in(path), *(why_not_written(path / result) for result in results)]
    for reason in filter(None, reasons):
        raise CommandError(reason)
    return path


def check(file: str, *suffixes: str) -> None:
    """Before the work that ends in ``file``.

    Raises:
        CommandError: it cannot be written, or its name ends in none of ``suffixes``.
    """
    reason = why_not_written(Path(file), suffixes)
    if reason is not None:
        raise CommandError(reason)


def written(write: Callable[[], Path]) -> Path | None:
    """What ``write`` returns; None, said on stderr, where writing fails: what was computed can still be printed."""
    try:
        return write()
    except OSError as error:
        print(f"lk-triton: error: cannot write {error.filename or 'the results'}: {error.strerror}", file=sys.stderr)
        return None


def last_line(page: Path | None) -> str:
    """Where the report lies, as the last line of what a study prints."""
    return f"report: {page or 'not written'}"


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
