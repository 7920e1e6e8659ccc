"""Which versions of which kernels a GPU has proved right: ``confirmed.json``, which is written from result files only.

A row says that this version of a kernel form passed the accuracy gate (``accuracy.py``) on that architecture. The committed
result files are read again by a test; ``write(collect(result_files()))`` in a checkout writes what they prove.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..algorithms import registry
from ..algorithms.base import TritonAlgorithm
from .entry import LAST_HASHES, brought_up_to_date

FILE = Path(__file__).with_name("confirmed.json")
ROOT = Path(__file__).parents[2]


class Row(NamedTuple):
    """Version ``version`` of ``form`` was right on ``arch``, compiled by ``triton``; ``file`` says so."""

    form: str
    version: int
    arch: str
    triton: str
    file: str


def confirmed(form: str, version: int, arch: str, everywhere: bool) -> bool:
    """Whether a result file proves this version of a kernel form.

    Args:
        everywhere: whether a proof counts on all architectures: of a kernel whose synchronization is the compiler's affair.
    """
    form = registry.RENAMED.get(form, form)
    return any(r.form == form and r.version == version and (everywhere or r.arch == arch) for r in rows())


@lru_cache
def rows() -> tuple[Row, ...]:
    """What is committed."""
    return tuple(Row(**row) for row in json.loads(FILE.read_text(encoding="utf-8")))


def collect(files: Iterable[Path], root: Path = ROOT) -> list[Row]:
    """What result files prove, sorted, each once.

    Args:
        files: of ``lk-triton tune --json``, a JSON object a line, whose trials that were timed had passed the gate; or tuning
            tables, whose entries had. Rehearsals prove nothing. Trials without a version, from before there were any, are of
            version 1.
        root: folder that the files are named from.
    """
    found: dict[_Found, str] = {}
    for file in files:
        for row in _of_table(file) if file.suffix == ".json" else _of_trials(file):
            found.setdefault(row, file.relative_to(root).as_posix())
    return sorted(Row(*row, file) for row, file in found.items())


def result_files(root: Path = ROOT) -> list[Path]:
    """Those of a checkout, what was measured before what was made of it. Figures that were written down by hand, in folders
    below, prove nothing."""
    return [*sorted(root.glob("bench/results/*/*.jsonl")), *sorted(root.glob("lk_triton/planning/tables/*.json"))]


def write(found: Iterable[Row], file: Path = FILE) -> None:
    """A row a line."""
    lines = ",\n ".join(json.dumps(row._asdict()) for row in found)
    file.write_text(f"[\n {lines}\n]\n", encoding="utf-8")


_Found = tuple[str, int, str, str]


def _of_table(file: Path) -> Iterator[_Found]:
    table = json.loads(file.read_text(encoding="utf-8"))
    for entry in [] if table.get("rehearsal") else table["entries"]:
        yield from _row(entry, table["arch"], entry["versions"])


def _of_trials(file: Path) -> Iterator[_Found]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    header: dict[str, Any] = next((line for line in lines if line.get("type") == "device"), {"rehearsal": True})
    for line in lines:
        if line.get("type") == "result" and not header.get("rehearsal"):
            for trial in line.get("trials", ()):
                if trial["microseconds"] is not None:
                    yield from _row(trial, header["arch"], header["versions"])


def _row(data: dict[str, Any], arch: str, versions: dict[str, Any]) -> Iterator[_Found]:
    name: str = data["algorithm"]
    algorithm = registry.ALGORITHMS.get(registry.RENAMED.get(name, name))
    if isinstance(algorithm, TritonAlgorithm):
        if "version" not in data:
            data = {**data, "source_hash": LAST_HASHES[data["algorithm"]]}
        data = brought_up_to_date(data)
        yield data["form"], data["version"], arch, versions["triton"]
