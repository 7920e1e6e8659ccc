"""What the command lines of ``lk-triton`` and of the benchmarks share: values of options, devices, versions, usage errors."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Collection
from pathlib import Path

import torch

from .. import gpu as gpus
from ..files import why_not_written
from ..gpu import Gpu
from ..planning import entry

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Short names, and torch's; both are understood."""


class UsageError(Exception):
    """Something the user can put right; shown as one line, exit code 2."""


def missing_extra(package: str, extra: str) -> UsageError:
    """The error for an optional package that is not installed."""
    return UsageError(f"{package} is not installed: pip install 'lk-triton[{extra}]'")


def positive(text: str) -> int:
    """An integer from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def dtype(text: str) -> str:
    """torch's name of a dtype given by that or by its short name."""
    name = DTYPES.get(text, text)
    if name not in DTYPES.values():
        raise argparse.ArgumentTypeError(f"expected one of {', '.join((*DTYPES, *DTYPES.values()))}, got {text!r}")
    return name


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device, for ``torch_device``."""
    parser.add_argument("--device", metavar="D", help="such as cpu or cuda:0; default: cuda where there is one, else cpu")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """--dtype, for ``torch_dtype``."""
    parser.add_argument("--dtype", type=dtype, metavar="T", help="fp32, fp16 or bf16; default: fp16 on cuda, else fp32")


def here() -> torch.device:
    """This machine's GPU, or its CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def torch_device(name: str | None) -> torch.device:
    """The device called ``name``, or the one that is here.

    Raises:
        UsageError: there is no such device here, or it cannot hold numbers.
    """
    try:
        device = torch.device(name) if name else here()
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {name or str(here())!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def torch_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype asked for; without a name float16 on CUDA, float32 elsewhere."""
    return getattr(torch, name or ("float16" if device.type == "cuda" else "float32"))


def gpu_for(arch: str) -> Gpu:
    """Facts for an architecture or a GPU that need not be here, such as sm_90 or h200.

    Raises:
        UsageError: there is no such architecture.
    """
    try:
        return gpus.for_arch(arch)
    except ValueError as error:
        raise UsageError(str(error)) from None


def check_out(file: Path, suffixes: Collection[str] = (), makes_folders: bool = False) -> None:
    """Before the work that ends in ``file``; see ``why_not_written``.

    Raises:
        UsageError: it cannot be written, or its name ends in none of ``suffixes``.
    """
    reason = why_not_written(file, suffixes, makes_folders)
    if reason is not None:
        raise UsageError(reason)


def versions() -> dict[str, str | None]:
    """Versions of what a result depends on; None where it is not installed."""
    return entry.versions() | {"python": platform.python_version()}
