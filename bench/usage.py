"""What the benchmarks' command lines share, whether called by ``lk-triton bench`` or by ``python -m``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch

from lk_triton import program
from lk_triton.files import why_not_written

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


class UsageError(Exception):
    """Something the user can put right; shown as one line, exit code 2."""


def dtype(text: str) -> str:
    """torch's name of a dtype given by that or by its short name."""
    name = DTYPES.get(text, text)
    if name not in DTYPES.values():
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(DTYPES)}, got {text!r}")
    return name


def positive(text: str) -> int:
    """An integer from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def place(name: str | None) -> torch.device:
    """The device asked for, or this machine's GPU, or its CPU.

    Raises:
        UsageError: there is no such device here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r}: {str(error).splitlines()[0]}") from None
    return device


def check_out(file: Path, suffixes: Collection[str], makes_folders: bool = False) -> None:
    """Before the work that ends in ``file``.

    Raises:
        UsageError: it cannot be written, or its name ends in none of ``suffixes``.
    """
    reason = why_not_written(file, suffixes, makes_folders)
    if reason is not None:
        raise UsageError(reason)


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
