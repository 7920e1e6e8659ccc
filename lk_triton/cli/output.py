"""What commands write to and say: folders, files, progress bars, configs, and the facts that end a report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..algorithms.base import Config
from ..files import why_no_files_in, why_not_written
from .options import UsageError, missing_extra, versions


def add_out(parser: argparse.ArgumentParser, name: str) -> None:
    """--out and --overwrite, for ``folder``; ``name`` is the default."""
    parser.add_argument("--out", default=name, metavar="DIR", help="where the files go; default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace what another run left there")


def folder(name: str, results: Sequence[str], overwrite: bool) -> Path:
    """The folder ``name``, made where it is not there. Sees to it that pictures can be drawn and reports written, too.

    Args:
        results: names of the files that the command will write there.
        overwrite: they may replace those of another run.

    Raises:
        UsageError: it cannot be made or written to, holds results that may not be replaced, or a package is missing.
    """
    for package in ("matplotlib", "jinja2"):
        if find_spec(package) is None:
            raise missing_extra(package, "analysis")
    path = Path(name)
    found = [result for result in results if os.path.lexists(path / result)]
    if found and not overwrite:
        raise UsageError(
            f"{name} holds {', '.join(found)} of another run: pass --overwrite to replace them, or another --out"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {name}: {error.strerror}") from None
    reasons = [why_no_files_in(path), *(why_not_written(path / result) for result in results)]
    for reason in filter(None, reasons):
        raise UsageError(reason)
    return path


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


def progress(
    total: int, what: str | None = None, done: int = 0, unit: str = "image", extra: str = "analysis"
) -> Any:  # fmt: skip
    """A progress bar on stderr, over ``total`` images or whatever else ``unit`` says; ``extra`` would bring tqdm.

    Raises:
        UsageError: tqdm is missing.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        raise missing_extra("tqdm", extra) from None
    return tqdm(total=total, initial=done, desc=what, unit=unit, file=sys.stderr)


def words(config: Config) -> str:
    """A config on one line."""
    return " ".join(f"{name}={value}" for name, value in asdict(config).items())


def facts() -> list[tuple[str, str]]:
    """Versions, as the end of a report has them."""
    return [(name, version or "not installed") for name, version in versions().items()]
