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
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..device import Device
from ..log import logger
from ..problem import Problem
from . import entry as entries
from .entry import Entry

VARIABLE = "LK_TRITON_CACHE_DIR"
MARK = "lk_triton_tuning"
FORMAT = 1
TABLES = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Table:
    """The usable entries of one device, per problem, the fastest first; and how many of the file's are stale."""

    device: str
    arch: str
    entries: dict[Problem, tuple[Entry, ...]]
    stale: int = 0


_loaded: dict[Path, Table | None] = {}
_generation = 0


def reload() -> None:
    """Forget what was read: the next lookup reads the files again, and plans are chosen anew."""
    global _generation
    _loaded.clear()
    _generation += 1


def state() -> tuple[str | None, bool, int]:
    """What a lookup depends on besides its arguments; whoever remembers lookups remembers them by this too."""
    return os.environ.get(VARIABLE), distributed(), _generation


def distributed() -> bool:
    """Whether this process is one of several in a torch.distributed job."""
    dist = torch.distributed
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def directory() -> Path:
    """Where the user's tables lie: LK_TRITON_CACHE_DIR, or ``lk_triton`` in the XDG cache directory."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    if not base.is_absolute():  # no home, or a relative path, which the XDG specification has us ignore
        base = Path(tempfile.gettempdir(), f"cache-{os.getuid() if hasattr(os, 'getuid') else 'user'}")
    return base / "lk_triton"


def file_name(device: str) -> str:
    """The file of a device: its name with everything but letters, digits, dots and hyphens as underscores."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", device) + ".json"


def ignored() -> bool:
    """Whether the user's cache does not count: in a distributed job, unless LK_TRITON_CACHE_DIR names it.

    Home directories may differ between the ranks, and ranks that run different plans round differently and wait for each
    other. Whoever names a directory says that it is the same for all.
    """
    return distributed() and not os.environ.get(VARIABLE)


def user_entries(problem: Problem, device: Device) -> tuple[Entry, ...]:
    """What the user's cache holds for exactly ``problem``, the fastest first; nothing where it is ``ignored``."""
    return () if ignored() else _entries(directory(), problem, device)


def shipped_tables() -> list[Table]:
    """Every table that ships, in the order of the file names."""
    return [table for file in sorted(TABLES.glob("*.json")) if (table := _table(file)) is not None]


def shipped_entries(problem: Problem, device: Device) -> tuple[Entry, ...]:
    """What the table that ships for ``device`` holds for exactly ``problem``, the fastest first."""
    return _entries(TABLES, problem, device)


def user_tables() -> dict[Path, Table | None]:
    """Every file of the user's cache; None for what is no table."""
    return {file: _table(file) for file in sorted(directory().glob("*.json"))}


def record(device: Device, found: Sequence[Entry]) -> Path | None:
    """Add entries to the user's table of ``device``; they replace what it holds for the same problems.

    Returns the file, or None where it could not be written: a warning says why, and this process uses the entries anyway.
    """
    global _generation
    file = directory() / file_name(device.name)
    added = [entries.to_json(e) for e in found]
    problems = [raw["problem"] for raw in added]
    try:
        with _locked(file.parent):
            kept = [r for r in _old_entries(file, device.name) if not (isinstance(r, dict) and r.get("problem") in problems)]
            _replace(file, text(device.name, device.arch, kept + added))
        written = file
    except OSError as error:
        logger.warning("cannot save what was measured in %s (%s); set %s to a directory to write to", file, error, VARIABLE)
        written = None
    table = _table(file) or Table(device.name, device.arch, {})
    _loaded[file] = replace(table, entries=table.entries | _by_problem(found))
    _generation += 1
    return written


def clear() -> list[Path]:
    """Delete the user's tables; files in the directory that are none stay. Returns what was deleted."""
    if not directory().is_dir():
        return []
    with _locked(directory()):
        removed = [file for file in sorted(directory().glob("*.json")) if _is_table(file)]
        for file in removed:
            file.unlink()
    reload()
    return removed


def _entries(folder: Path, problem: Problem, device: Device) -> tuple[Entry, ...]:
    table = _table(folder / file_name(device.name))
    return table.entries.get(problem, ()) if table and table.device == device.name else ()


def _table(file: Path) -> Table | None:
    """The table in ``file``, read once per process; None where there is none."""
    if file not in _loaded:
        _loaded[file] = _read(file)
    return _loaded[file]


def _read(file: Path) -> Table | None:
    try:
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
    raw = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(raw, dict) or raw.get(MARK) != FORMAT:
        raise ValueError(f'not a tuning table: expected an object with "{MARK}": {FORMAT}')
    if not isinstance(raw.get("entries"), list) or not all(isinstance(raw.get(key), str) for key in ("device", "arch")):
        raise ValueError("a tuning table has a device, an arch and a list of entries; this one has not")
    if device is not None and raw["device"] != device:
        raise ValueError(f"it is of the device {raw['device']!r}, not of {device!r}")
    return raw


def _is_table(file: Path) -> bool:
    try:
        parse(file)
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
    header = {MARK: FORMAT, "device": device, "arch": arch}
    blocks = []
    for raw in found:
        fields = raw.items() if isinstance(raw, dict) else ()
        lines = ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in fields)
        blocks.append(f"  {{\n{lines}\n  }}" if lines else f"  {json.dumps(raw)}")
    return json.dumps(header, indent=1).removesuffix("\n}") + ',\n "entries": [\n' + ",\n".join(blocks) + "\n ]\n}\n"


def _replace(file: Path, text: str) -> None:
    """Write to a temporary file, then rename: a reader sees the old file or the new one, never a part."""
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.stem, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's is for the owner alone; the cache may be shared
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time reads, merges and writes. Without file locks (Windows, some network file systems) the rename
    still keeps every file whole, but of two processes that write at once the last one wins."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / ".lock").open("a") as stream:
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _by_problem(found: Sequence[Entry]) -> dict[Problem, tuple[Entry, ...]]:
    grouped: dict[Problem, list[Entry]] = {}
    for e in found:
        grouped.setdefault(e.problem, []).append(e)
    return {problem: tuple(sorted(group, key=lambda e: e.microseconds)) for problem, group in grouped.items()}
