"""Take over what a visit to a GPU measured: its plans into the tables that ship, its files into ``bench/results``,
what they prove into the list of confirmed kernels, and every figure of README and docs/ from those. Without files it only
writes the list and the figures anew; nobody types them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.planning import cache, confirmed
from lk_triton.planning import entry as entries

from . import figures, pages, usage
from .measured import Measured, read, rehearsed

ROOT = Path(__file__).resolve().parent.parent
RESULTS, TABLES = Path("bench", "results"), Path("lk_triton", "planning", "tables")
TUNED = "tuned*.json"
BANNER = b"> **Rehearsal.** Every figure between the markers of this page comes from a rehearsal and means nothing.\n\n"
TEMPLATE = """# {device}, {month}

{blocks}
## What was learned

Not written yet.
"""
SECTIONS = {"visit": "", "networks": "## Networks\n\n", "all-layers": "## Layers\n\n"}

CONFIRMED = Path("lk_triton", "planning", "confirmed.json")
"""Kernels that need no check at their first call: what all result files prove."""

Files = dict[Path, bytes]
"""What is to be written: paths relative to the tree, and contents."""


# Reading a visit


def visit_files(out: Path) -> list[Path]:
    """The files of a visit that are taken: CSV, JSON lines, tuned plans and ``device.txt``.

    Raises:
        UsageError: there is none.
    """
    if not out.is_dir():
        raise usage.UsageError(f"{out} is no folder: name the one that bench/gpu_visit.sh wrote")
    taken = ("*.csv", "*.jsonl", TUNED, "device.txt")
    found = sorted(file for pattern in taken for file in out.glob(pattern) if file.is_file())
    if not any(file.suffix != ".txt" for file in found):
        raise usage.UsageError(f"{out} holds no *.csv, *.jsonl or {TUNED}: nothing to adopt")
    return found


def parse_tuned(file: Path) -> dict[str, Any]:
    """A table of plans that this version can read.

    Raises:
        UsageError: it is none, or an entry is not of this version.
    """
    try:
        raw = cache.parse(file)
        for data in raw["entries"]:
            if not entries.stale(data):
                entries.from_json(data)
    except (OSError, ValueError, RecursionError) as error:
        raise usage.UsageError(f"{file}: {error}") from None
    return raw


def merged(old: Mapping[str, Any] | None, new: Mapping[str, Any], said: list[str]) -> str:
    """A table with the new entries: they replace what it held for the same problems, and stale ones are dropped."""
    facts = gpus.named(new["device"])
    added = []
    for data in new["entries"]:
        text = f"{data.get('algorithm')} {data.get('problem')}" if isinstance(data, dict) else str(data)
        if entries.stale(data):
            said.append(f"not adopted, of another version of its kernel: {text}")
        elif facts and (e := entries.from_json(data)).config not in registry.get(e.algorithm).configs(e.problem, facts):
            said.append(f"not adopted, no config of this version: {text}")
        else:
            added.append(data)
    problems = [data["problem"] for data in added]
    kept = [data for data in old["entries"] if data.get("problem") not in problems] if old else []
    usable = [data for data in kept if not entries.stale(data)]
    dropped = len(kept) - len(usable)
    said.append(f"{new['device']}: {len(added)} plans adopted, {len(usable)} kept, {dropped} stale ones dropped")
    return cache.text(new["device"], new["arch"], [*usable, *added])


def folder_of(device: str, month: str) -> Path:
    """Where the results of a visit lie, such as ``bench/results/h100-2026-11``."""
    facts = gpus.named(device)
    name = facts.name if facts else re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return RESULTS / f"{name}-{month}"


def place(root: Path, folder: Path, file: Path, taken: Mapping[Path, bytes]) -> Path | None:
    """A free name for a file in its folder; None where the folder holds the very content already."""
    content, number = file.read_bytes(), 1
    while True:
        target = folder / (file.name if number == 1 else f"{file.stem}-{number}{file.suffix}")
        there = taken.get(target)
        if there is None and (root / target).exists():
            there = (root / target).read_bytes()
        if there is None:
            return target
        if there == content:
            return None
        number += 1


def visit(root: Path, out: Path, rehearsal: bool, said: list[str]) -> Files:
    """The files that one visit adds to the tree or replaces there.

    Raises:
        UsageError: a file is broken, foreign, of a rehearsal, or of another device than the others.
    """
    files = visit_files(out)
    tables = [(file, parse_tuned(file)) for file in files if file.match(TUNED)]
    found = read([file for file in files if file.suffix in (".csv", ".jsonl")], rehearsal)
    named = list(dict.fromkeys([*found.devices, *(raw["device"] for _, raw in tables)]))
    if not named or (len(named) > 1 and not rehearsal):
        raise usage.UsageError(f"{out} should hold figures of one device, got {', '.join(named) or 'none'}")
    if not rehearsal:
        for file in files:
            if file.suffix != ".txt" and rehearsed(file):
                raise usage.UsageError(f"{file} is of a rehearsal: its figures mean nothing. See it with --scratch DIR")
        if gpus.named(named[0]) is None:
            raise usage.UsageError(f"no facts of {named[0]}: floors and tables need its entry in lk_triton/gpus.toml")
    stamps = sorted(row["timestamp"] for row in found.rows if row["timestamp"])
    month = stamps[0][:7] if stamps else datetime.now(timezone.utc).strftime("%Y-%m")
    folder = folder_of(named[0], month)
    new: Files = {}
    for file in files:
        if not file.match(TUNED):
            target = place(root, folder, file, new)
            said.append(f"{file}: {'known already' if target is None else target}")
            if target is not None:
                new[target] = file.read_bytes()
    for file, raw in tables:
        target = TABLES / cache.file_name(raw["device"])
        before = json.loads(new[target]) if target in new else parse_tuned(root / target) if (root / target).exists() else None
        new[target] = merged(before, raw, said).encode()
        said.append(f"{file}: {target}")
    if not (root / folder / "README.md").exists():
        blocks = "".join("{}{}\n{}\n\n".format(text, *pages.markers(name)) for name, text in SECTIONS.items())
        new[folder / "README.md"] = TEMPLATE.format(device=named[0], month=month, blocks=blocks).encode()
    said += [f"failed, no figure: {text}" for text in found.failed()]
    return new


# Writing pages


def page_files(root: Path) -> list[Path]:
    """README, docs/ and the pages of results, relative to the tree."""
    found = [root / "README.md", *(root / "docs").glob("*.md"), *(root / RESULTS).glob("*/README.md")]
    return sorted(file.relative_to(root) for file in found if file.exists())


def filled(root: Path, rehearsal: bool = False) -> Files:
    """Every page of a tree with a block, its blocks written from the results of that tree: those of a folder from the
    folder's own.

    Raises:
        UsageError: results cannot be read, or a page lacks a marker or names a block that nobody writes.
    """
    found: Files = {}
    everything = _read_folders(sorted((root / RESULTS).iterdir()), rehearsal)
    for page in page_files(root):
        text = (root / page).read_text(encoding="utf-8")
        scope = _read_folders([(root / page).parent], rehearsal) if page.is_relative_to(RESULTS) else everything
        for name in pages.names(text):
            if name not in figures.GENERATORS:
                raise usage.UsageError(f"{page}: nothing writes a block {name!r}; there are {', '.join(figures.GENERATORS)}")
            text = pages.rewrite(text, name, figures.GENERATORS[name](scope))
        if pages.names(text):
            found[page] = text.encode()
    return found


def _read_folders(folders: Sequence[Path], rehearsal: bool) -> Measured:
    files = [file for folder in folders for pattern in ("*.csv", "*.jsonl") for file in folder.glob(pattern)]
    return read(sorted(files, key=lambda file: (file.parent, len(file.name), file.name)), rehearsal)


def write(root: Path, files: Files) -> None:
    """All of them or none: everything is written beside its place first, and renamed when all is there.

    Raises:
        UsageError: a file cannot be written; nothing has changed.
    """
    before = {path: (root / path).read_bytes() if (root / path).exists() else None for path in files}
    waiting: dict[Path, str] = {}
    done: list[Path] = []
    try:
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            descriptor, waiting[path] = tempfile.mkstemp(dir=(root / path).parent, prefix=f".{path.name}")
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
            os.chmod(waiting[path], 0o644)
        for path, temporary in waiting.items():
            os.replace(temporary, root / path)
            done.append(path)
    except OSError as error:
        for path in done:
            old = before[path]
            (root / path).unlink() if old is None else (root / path).write_bytes(old)
        for temporary in waiting.values():
            Path(temporary).unlink(missing_ok=True)
        raise usage.UsageError(f"nothing was adopted: {error}") from None


def adopt(root: Path, outs: Sequence[Path], scratch: Path | None = None) -> list[str]:
    """Take over visits, and write all figures; returns what was done, a line each.

    With ``scratch`` a copy of README, docs/, tables and results is written there instead, and every figure is marked.

    Raises:
        UsageError: see ``visit``, ``filled`` and ``write``; nothing has changed then.
    """
    said: list[str] = []
    changed: Files = {}
    with tempfile.TemporaryDirectory() as folder:  # where it is all tried before it counts
        tree = Path(folder, "tree")
        for part in (Path("docs"), TABLES, RESULTS):
            shutil.copytree(root / part, tree / part)
        shutil.copy(root / "README.md", tree)
        for out in outs:
            new = visit(tree, out, scratch is not None, said)
            write(tree, new)
            changed |= new
        confirmed.write(confirmed.collect(confirmed.result_files(tree), tree), tree / CONFIRMED)
        changed[CONFIRMED] = (tree / CONFIRMED).read_bytes()
        written = filled(tree, scratch is not None)
        changed |= written
        if scratch is None:
            changed = {path: content for path, content in changed.items() if not _holds(root / path, content)}
            write(root, changed)
            said.append(f"written: {', '.join(map(str, changed)) or 'nothing, all is up to date'}")
        else:
            write(tree, {page: BANNER + content for page, content in written.items()})
            shutil.copytree(tree, scratch, dirs_exist_ok=True)
            said.append(f"written: copies in {scratch}")
    return said


def _holds(file: Path, content: bytes) -> bool:
    return file.exists() and file.read_bytes() == content


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    parser.description = __doc__
    parser.add_argument("out", nargs="*", type=Path, metavar="OUT", help="folders that bench/gpu_visit.sh wrote")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a figure is out of date")
    parser.add_argument(
        "--scratch", type=Path, metavar="DIR", help="for rehearsals: write copies into this empty folder, every figure marked"
    )


def run(options: argparse.Namespace) -> int:
    """Adopt, or check."""
    if not (ROOT / "README.md").exists():
        raise usage.UsageError(f"no {ROOT / 'README.md'}: run it in a source tree")
    if options.check:
        if options.out or options.scratch:
            raise usage.UsageError("--check looks at the tree alone: leave OUT and --scratch out")
        late = [str(page) for page, content in filled(ROOT).items() if not _holds(ROOT / page, content)]
        if late:
            print(f"out of date: {', '.join(late)}; run lk-triton bench adopt")
        return int(bool(late))
    scratch = options.scratch and options.scratch.resolve()
    if scratch and scratch.is_relative_to(ROOT):
        raise usage.UsageError(f"--scratch {scratch} lies in the source tree: name a folder outside of {ROOT}")
    if scratch and scratch.exists() and (not scratch.is_dir() or any(scratch.iterdir())):
        raise usage.UsageError(f"--scratch {scratch} exists and is not an empty folder")
    print("\n".join(adopt(ROOT, options.out, scratch)))
    return 0


main = usage.as_program("adopt", add_arguments, run)

if __name__ == "__main__":
    raise SystemExit(main())
