"""``lk-triton cache``: what was measured on this machine, and where it lies."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from tabulate import tabulate

from ..planning import cache as tables
from .options import CommandError


def cache(arguments: argparse.Namespace) -> int:
    """Print or clear; returns the exit code."""
    if arguments.action != "clear" and (arguments.device is not None or arguments.yes):
        raise CommandError("--device and --yes go with cache clear")
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
            (str(e.problem), e.algorithm, " ".join(f"{k}={v}" for k, v in asdict(e.config).items()), e.microseconds, e.spread)
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
            raise CommandError(f"this would delete what was measured, perhaps for hours: pass --yes to do it{listed}")
        else:
            for file in tables.clear(device):
                print(f"deleted {file}")
    except OSError as error:
        raise CommandError(f"cannot clear {tables.directory()}: {error}") from None
