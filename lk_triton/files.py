"""Files to be written: whether that will work, asked before hours of work that end in them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection
from pathlib import Path


def why_not_written(file: Path, suffixes: Collection[str] = (), makes_folders: bool = False) -> str | None:
    """Why ``file`` cannot be written, or None where it can; what is there stays as it is, and nothing is left behind.

    Args:
        suffixes: what the name may end in, in small letters, such as ``.csv``; anything where there are none.
        makes_folders: whether the writer will make the folder that the file lies in.
    """
    if suffixes and file.suffix.lower() not in suffixes:
        return f"cannot write {file}: expected a name that ends in {' or '.join(sorted(suffixes))}"
    if file.is_dir():
        return f"cannot write {file}: it is a directory"
    try:
        if file.is_file():
            with file.open("ab"):
                return None
        if file.exists():  # a pipe or a device, which opening might disturb
            return None if os.access(file, os.W_OK) else f"cannot write {file}: writing there is not allowed"
    except OSError as error:
        return f"cannot write {file}: {error.strerror}"
    folder = file.absolute().parent
    if not makes_folders and not folder.is_dir():
        return f"cannot write {file}: there is no directory {folder}"
    return why_no_files_in(folder)


def why_no_files_in(folder: Path) -> str | None:
    """Why no file can be made in ``folder``, or in the directory where it would have to be made; None where one can."""
    if not folder.exists() and folder != folder.parent:
        return why_no_files_in(folder.parent)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"cannot write in {folder}: {error.strerror}"
