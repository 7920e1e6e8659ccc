"""``lk-triton cache``: what was measured on this machine, and where it lies."""

from __future__ import annotations

import argparse

from tabulate import tabulate

from ..planning import cache as tables
from .options import UsageError
from .output import words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``run``."""
    parser.description = "The measured plans on disk. LK_TRITON_CACHE_DIR moves them."
    parser.add_argument("action", choices=("path", "list", "clear"), help="where they lie; what there is; delete them")
    parser.add_argument("--device", metavar="NAME", help="with clear: only what was measured on it; cache list has its name")
    parser.add_argument("--yes", action="store_true", help="with clear: do delete; without it the files are only named")


def run(arguments: argparse.Namespace) -> int:
    """Print or clear; returns the exit code."""
    if arguments.action != "clear" and (arguments.device is not None or arguments.yes):
        raise UsageError("--device and --yes go with cache clear")
    if arguments.action == "clear":
        _clear(arguments.device, arguments.yes)
    else:
        {"path": _path, "list": _list}[arguments.action]()
    return 0


def _path() -> None:
    print(tables.directory())


def _list() -> None:
    found = tables.user_tables()
    for file, table in found.items():
        if table is None:
            print(f"{file}: cannot be used\n")
            continue
        rows = [
            (str(e.problem), e.algorithm, words(e.config), e.microseconds, e.spread)
            for group in table.entries.values()
            for e in group
        ]
        print(f"{table.device} ({table.arch}), {file}")
        print(tabulate(rows, headers=("problem", "algorithm", "config", "us", "spread"), tablefmt="simple"))
        print(f"and {table.stale} of other kernels than these, which are ignored\n" if table.stale else "")
    if not found:
        print(f"nothing was measured yet: {tables.directory()} holds no tables")


def _clear(device: str | None, yes: bool) -> None:
    """Delete what ``tables.tables_of(device)`` names, once somebody has said yes to it."""
    try:
        found = tables.tables_of(device)
        if not found:
            of = "" if device is None else f" of {device!r}: cache list names the devices"
            print(f"nothing to delete in {tables.directory()}{of}")
        elif not yes:
            listed = "".join(f"\n  {file}" for file in found)
            raise UsageError(f"this would delete what was measured, perhaps for hours: pass --yes to do it{listed}")
        else:
            for file in tables.clear(device):
                print(f"deleted {file}")
    except OSError as error:
        raise UsageError(f"cannot clear {tables.directory()}: {error}") from None
