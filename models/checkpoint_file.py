"""What a checkpoint file holds: read without running code from it, and refused in our own words where it is none."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

WEB_PAGE = re.compile(rb"\s*<(!doctype|html|head|script|\?xml)", re.IGNORECASE)
CHUNK = 1 << 20


def read(file: str | os.PathLike[str]) -> Any:
    """What the file holds, on the CPU; never executes code from it.

    Raises:
        OSError: there is no such file, or it cannot be opened; the error names it.
        ImportError: a .safetensors file without the package safetensors.
        ValueError: it is damaged, or no checkpoint. safetensors has no checksum: there, only a damaged header shows.
    """
    path = Path(file)
    load = safetensors().load_file if path.suffix == ".safetensors" else _load
    if path.exists() and not path.is_file() and not path.is_dir():
        raise _unreadable(path, "it is a pipe or a device")
    with path.open("rb") as stream:
        start = stream.read(64).removeprefix(b"\xef\xbb\xbf")
    if not start:
        raise _unreadable(path, "it is empty")
    if WEB_PAGE.match(start):
        raise _unreadable(path, "it is a web page: open the link in a browser, and save the file that the page offers")
    try:
        return load(str(path))
    except Exception as error:  # damaged files make the readers raise almost anything
        reason, cause = _reason(error)
        raise _unreadable(path, reason) from cause


def safetensors() -> Any:
    """The module safetensors.torch.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("reading and writing .safetensors needs: pip install 'lk-triton[demo]'") from error
    return safetensors.torch


def _load(name: str) -> Any:
    if zipfile.is_zipfile(name):
        _check_sums(name)
    # Upstream's training checkpoints carry their command line as an argparse.Namespace, which is plain data.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(name, map_location="cpu", weights_only=True)


def _check_sums(name: str) -> None:
    """Read every record of a zip file, as torch does not: its checksum tells flipped bits.

    Raises:
        zipfile.BadZipFile: a record is damaged.
    """
    with zipfile.ZipFile(name) as archive:
        for record in archive.infolist():
            # torch.serialization.set_crc32_options(False) writes zeros, and torch compresses nothing
            if record.CRC and record.compress_type == zipfile.ZIP_STORED:
                with archive.open(record) as stream:
                    while stream.read(CHUNK):
                        pass


def _reason(error: Exception) -> tuple[str, Exception | None]:
    """Why a file cannot be read, and the error to show beside it: none where torch would advise to run the file's code."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        name = re.search(r"GLOBAL (\S+)", text)
        what = f" ({name[1]})" if name else ""
        if name or "Unsupported" in text:
            return f"it holds Python objects{what} that could run code; only tensors and plain data are read", None
        return "it is not what torch.save writes, or damaged", None
    reason = (text.splitlines() or [""])[0]
    return f"{type(error).__name__}: {reason}; is it whole, and a file of tensors only?", error


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(f"cannot read {path} as a checkpoint: {reason}")
