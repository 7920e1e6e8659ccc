"""What the benchmarks' command lines share: that of ``lk-triton``, and what makes each a program of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch

from lk_triton import context, program
from lk_triton.cli.options import (
    DTYPES,
    UsageError,
    add_device,
    add_dtype,
    check_out,
    dtype,
    gpu_for,
    missing_extra,
    positive,
    torch_device,
)

__all__ = [
    "DTYPES", "UsageError", "add_device", "add_dtype", "as_program", "check_out", "dtype", "gpu_for", "leave_if_lost",
    "missing_extra", "positive", "torch_device",
]  # fmt: skip


def leave_if_lost(device: torch.device) -> None:
    """End the program with exit code 75 where something ended the context of the GPU ``device``."""
    reason = context.lost(device)
    if reason is not None:
        print(f"the GPU was lost ({reason}): only a new process can measure the rest, with --missing", file=sys.stderr)
        context.abandon()


def as_program(
    name: str, add_arguments: Callable[[argparse.ArgumentParser], None], run: Callable[[argparse.Namespace], int]
) -> Callable[..., int]:
    """``main`` of a benchmark that is a program of its own: its arguments, by default the process's -> its exit code."""

    def main(argv: Sequence[str] | None = None) -> int:
        parser = argparse.ArgumentParser(prog=f"python -m lk_triton.bench.{name}")
        add_arguments(parser)

        def work() -> int:
            try:
                return run(parser.parse_args(argv))
            except UsageError as error:
                parser.error(str(error))

        return program.run(parser.prog, work)

    return main
