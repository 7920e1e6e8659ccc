"""What the benchmarks' command lines share: that of ``lk-triton``, and what makes each a program of its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from lk_triton import program
from lk_triton.cli.options import (
    DTYPES,
    UsageError,
    add_device,
    add_dtype,
    check_out,
    dtype,
    missing_extra,
    positive,
    torch_device,
)

__all__ = [
    "DTYPES", "UsageError", "add_device", "add_dtype", "check_out", "dtype", "main", "missing_extra", "positive",
    "torch_device",
]  # fmt: skip


def main(
    name: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    """One benchmark as a program of its own; returns its exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m lk_triton.bench.{name}")
    add_arguments(parser)

    def work() -> int:
        try:
            return run(parser.parse_args(argv))
        except UsageError as error:
            parser.error(str(error))

    return program.run(parser.prog, work)
