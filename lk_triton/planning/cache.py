"""Measured plans on disk: the user's cache, and the tables that ship.

A table is one JSON file per device: ``{"lk_triton_tuning": 1, "device": name, "arch": arch, "entries": [...]}``, with the
entries of ``entry.py``. The user's lie in LK_TRITON_CACHE_DIR (default: ``lk_triton`` in the XDG cache directory), the
shipped ones in ``tables/``. Files are read once per process and replaced as a whole, under a lock, so that processes that
tune at the same time lose nothing; what cannot be read is skipped with one warning and set aside, never overwritten.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..gpu import Gpu, rehearsal
from ..log import logger
from ..ops.problem import Problem
from . import entry as entries
from .entry import Entry

VARIABLE = "LK_TRITON_CACHE_DIR"
MARK = "lk_triton_tuning"
FORMAT = 1
TABLES = Path(__file__).parent / "tables"

LARGEST = 64 << 20
"""Bytes of a table; a larger file is none."""

LOCK_SECONDS = 10.0
"""How long a writer waits for another, who may have been stopped."""

LEFT_BEHIND = 3600.0
"""Seconds after which the temporary file of a writer who was killed is removed."""


@dataclass(frozen=True)
class Table:
    """The usable entries of one device, per problem, the fastest first; and how many of the file's are stale."""

    device: str
    arch: str
    entries: dict[Problem, tuple[Entry, ...]]
    stale: int = 0


_loaded: dict[Path, Table | None] = {}
_generation = 0
_unmeasured: ContextVar[bool] = ContextVar("lk_triton_unmeasured", default=False)


def reload() -> None:
    """Forget what was read: the next lookup reads the files again, and plans are chosen anew."""
    global _generation
    _loaded.clear()
    _generation += 1


def state() -> tuple[str | None, bool, int, bool]:
    """What a lookup depends on besides its arguments; whoever remembers lookups remembers them by this too."""
    return os.environ.get(VARIABLE), *state_in_process()


def state_in_process() -> tuple[bool, int, bool]:
    """Of that, what is no environment variable."""
    return distributed(), _generation, _unmeasured.get()


@contextlib.contextmanager
def unmeasured() -> Iterator[None]:
    """Inside the ``with`` block, in this thread, nothing was ever measured: plans come from the cost model alone."""
    token = _unmeasured.set(True)
    try:
        yield
    finally:
        _unmeasured.reset(token)


def distributed() -> bool:
    """Whether this process is one of several in a torch.distributed job."""
    dist = torch.distributed
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def directory() -> Path:
    """Where the user's tables lie: LK_TRITON_CACHE_DIR, or ``lk_triton`` in the XDG cache directory, or ``fallback()``.

    A ``~`` that names no home stays as it is, as in a shell.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(os.path.expanduser(named)).absolute()
    for base in (os.environ.get("XDG_CACHE_HOME"), "~/.cache"):
        if base and os.path.isabs(expanded := os.path.expanduser(base)):  # the XDG specification has us ignore other paths
            return Path(expanded, "lk_triton")
    return fallback()


def fallback() -> Path:
    """Of a user who has no home: a directory in the temporary one, for this user alone."""
    try:
        base = tempfile.gettempdir()
    except FileNotFoundError:  # nothing can be written anywhere
        base = "/tmp"
    return Path(base, f"lk_triton-{os.getuid() if hasattr(os, 'getuid') else 'user'}")


def file_name(device: str) -> str:
    """The file of a device: its name with everything but letters, digits, dots and hyphens as underscores."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", device) + ".json"


def ignored() -> bool:
    """Whether the user's cache does not count: in a distributed job, unless LK_TRITON_CACHE_DIR names it.

    Home directories may differ between the ranks, and ranks that run different plans round differently and wait for each
    other. Whoever names a directory says that it is the same for all.
    """
    return distributed() and not os.environ.get(VARIABLE)


def user_entries(problem: Problem, gpu: Gpu) -> tuple[Entry, ...]:
    """What the user's cache holds for exactly ``problem``, the fastest first; nothing where it is ``ignored``."""
    return () if ignored() or _unmeasured.get() else _entries(directory(), problem, gpu)


def shipped_tables() -> list[Table]:
    """Every table that ships, in the order of the file names."""
    files = [] if _unmeasured.get() else sorted(TABLES.glob("*.json"))
    return [table for file in files if (table := _table(file)) is not None]


def shipped_entries(problem: Problem, gpu: Gpu) -> tuple[Entry, ...]:
    """What the table that ships for ``gpu`` holds for exactly ``problem``, the fastest first."""
    return () if _unmeasured.get() else _entries(TABLES, problem, gpu)


def user_tables() -> dict[Path, Table | None]:
    """Every file of the user's cache; None for what is no table."""
    return {file: _table(file) for file in sorted(directory().glob("*.json"))}


def record(gpu: Gpu, found: Sequence[Entry]) -> Path | None:
    """Add entries to the user's table of ``gpu``; they replace what it holds for the same problems.

    Returns the file, or None where it could not be written: a warning says why, and this process uses the entries anyway.
    """
    global _generation
    file = directory() / file_name(gpu.name)
    added = [entries.to_json(e) for e in found]
    problems = [raw["problem"] for raw in added]
    try:
        with _locked(file.parent):
            kept = [r for r in _old_entries(file, gpu.name) if not (isinstance(r, dict) and r.get("problem") in problems)]
            _replace(file, text(gpu.name, gpu.arch, kept + added))
        written = file
    except (OSError, RecursionError) as error:
        logger.warning("cannot save what was measured in %s (%s); set %s to a directory to write to", file, error, VARIABLE)
        written = None
    table = _table(file) or Table(gpu.name, gpu.arch, {})
    _loaded[file] = replace(table, entries=table.entries | _by_problem(found))
    _generation += 1
    return written


def tables_of(device: str | None = None) -> list[Path]:
    """The user's tables, or those of the device of that name; files in the directory that are no tables are none of them.

    Raises:
        OSError: the directory is not to be trusted.
    """
    folder = directory()
    if not folder.is_dir():
        return []
    _distrust(folder)
    return [file for file in sorted(folder.glob("*.json")) if _is_table(file, device)]


def clear(device: str | None = None) -> list[Path]:
    """Delete ``tables_of(device)``; returns what was deleted.

    Raises:
        OSError: something cannot be deleted, or another process does not release the lock.
    """
    if not directory().is_dir():
        return []
    with _locked(directory()):
        removed = tables_of(device)
        for file in removed:
            file.unlink()
    reload()
    return removed


def _entries(folder: Path, problem: Problem, gpu: Gpu) -> tuple[Entry, ...]:
    table = _table(folder / file_name(gpu.name))
    return table.entries.get(problem, ()) if table and table.device == gpu.name else ()


def _table(file: Path) -> Table | None:
    """The table in ``file``, read once per process; None where there is none."""
    if file not in _loaded:
        _loaded[file] = _read(file)
    return _loaded[file]


def _read(file: Path) -> Table | None:
    try:
        _distrust(file.parent)
        raw = parse(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("skipping %s: %s", file, error)
        return None
    found, stale, foreign = [], 0, []
    for data in raw["entries"]:
        try:
            if entries.stale(data):
                stale += 1
            else:
                found.append(entries.from_json(data))
        except ValueError as error:
            foreign.append(error)
    if foreign:
        logger.warning("skipping %d of the %d entries of %s: %s", len(foreign), len(raw["entries"]), file, foreign[0])
    if stale:
        logger.info("%d of the %d entries of %s are of other kernels than these: measure again with lk-triton tune",
                    stale, len(raw["entries"]), file)  # fmt: skip
    return Table(raw["device"], raw["arch"], _by_problem(found), stale)


def parse(file: Path, device: str | None = None) -> dict[str, Any]:
    """The file's JSON object.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no table, or not one of ``device``.
    """
    try:
        raw = json.loads(_content(file))
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(raw, dict) or raw.get(MARK) != FORMAT:
        raise ValueError(f'not a tuning table: expected an object with "{MARK}": {FORMAT}')
    if not isinstance(raw.get("entries"), list) or not all(isinstance(raw.get(key), str) for key in ("device", "arch")):
        raise ValueError("a tuning table has a device, an arch and a list of entries; this one has not")
    if device is not None and raw["device"] != device:
        raise ValueError(f"it is of the device {raw['device']!r}, not of {device!r}")
    return raw


def _content(file: Path) -> bytes:
    """What a regular file holds; opening a pipe would wait for a writer, and some devices have no end.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or larger than any table.
    """
    with open(os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("not a regular file")
        if found.st_size > LARGEST:
            raise ValueError(f"it has {found.st_size} bytes, more than any tuning table")
        return stream.read()


def _distrust(folder: Path) -> None:
    """Refuse ``fallback()`` where another user made it, or could write to it: everybody may make a directory of its name.

    Raises:
        PermissionError: that is so.
    """
    if folder != fallback() or not hasattr(os, "getuid"):
        return
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not this user's own directory: set {VARIABLE} to one that is")


def _is_table(file: Path, device: str | None) -> bool:
    try:
        parse(file, device)
    except (OSError, ValueError):
        return False
    return True


def _old_entries(file: Path, device: str) -> list[Any]:
    """The entries of the table to add to, also those that this version cannot read. A file that is no table of ``device``
    is renamed, so that writing loses nothing."""
    try:
        return parse(file, device)["entries"]
    except FileNotFoundError:
        return []
    except ValueError as error:
        number = 1
        while (aside := file.with_name(f"{file.name}.unreadable-{number}")).exists():
            number += 1
        os.replace(file, aside)
        logger.warning("set aside %s as %s: %s", file, aside.name, error)
        return []


def text(device: str, arch: str, found: Sequence[Any]) -> str:
    """A table as the text of its file: each field of an entry on a line of its own, so that eyes and diffs can read it."""
    header = {MARK: FORMAT, "device": device, "arch": arch} | ({"rehearsal": True} if rehearsal() else {})
    blocks = []
    for raw in found:
        fields = raw.items() if isinstance(raw, dict) else ()
        lines = ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in fields)
        blocks.append(f"  {{\n{lines}\n  }}" if lines else f"  {json.dumps(raw)}")
    return json.dumps(header, indent=1).removesuffix("\n}") + ',\n "entries": [\n' + ",\n".join(blocks) + "\n ]\n}\n"


def _replace(file: Path, text: str) -> None:
    """Write to a temporary file, then rename: a reader sees the old file or the new one, never a part, also after a power
    cut. A symbolic link stays one."""
    file = Path(os.path.realpath(file))
    _sweep(file.parent)
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _sweep(folder: Path) -> None:
    """Remove the temporary files of writers who were killed, by the names that ``_replace`` gives."""
    for file in folder.glob(f"*.json.{'[0-9a-f]' * 32}.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > LEFT_BEHIND:
                file.unlink()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time reads, merges and writes. Without file locks (Windows, some network file systems) the rename
    still keeps every file whole, but of two processes that write at once the last one wins.

    Raises:
        OSError: the folder cannot be made or written to, is not to be trusted, or another process has held the lock for
            ``LOCK_SECONDS``.
    """
    folder.mkdir(mode=0o700 if folder == fallback() else 0o777, parents=True, exist_ok=True)
    _distrust(folder)
    try:
        import fcntl
    except ImportError:
        yield
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(os.open(folder / ".lock", flags, 0o666), "wb") as stream:
        until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"another process has held {folder / '.lock'} for {LOCK_SECONDS:g} s") from None
                time.sleep(0.05)
            except OSError:  # no locks here
                break
        yield


def _by_problem(found: Sequence[Entry]) -> dict[Problem, tuple[Entry, ...]]:
    grouped: dict[Problem, list[Entry]] = {}
    for e in found:
        grouped.setdefault(e.problem, []).append(e)
    return {problem: tuple(sorted(group, key=lambda e: e.microseconds)) for problem, group in grouped.items()}
