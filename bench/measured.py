"""What was measured, read from files: CSV rows of ``bench conv`` and ``bench network``, and JSON lines of ``tune --json``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from lk_triton.algorithms import registry
from lk_triton.ops.problem import ConvProblem, Problem
from lk_triton.planning.entry import problem_from_json

from . import report, usage
from .providers import OURS

Row = Mapping[str, str]
NEEDED = ("kernel_name", "provider", "n", "dtype", "device", "torch_version", "triton_version", "commit")
"""Columns without which a row is none of ours."""

NUMBERS = ("p50_us", "images_per_s", "spread", "speedup", "graph_speedup", "floor_us")
GATES = ("ok", "peer")
"""Of rows that are figures. ``not computed`` is one in a rehearsal only."""


@dataclass(frozen=True)
class Tuned:
    """A problem that ``tune --json`` measured: the fastest right config of each algorithm, in microseconds."""

    file: str
    device: str
    versions: Mapping[str, str | None]
    problem: Problem
    microseconds: Mapping[str, float]


@dataclass
class Measured:
    """The content of some files. ``mark`` stands behind every figure that is written from them."""

    rows: list[Row] = field(default_factory=list)
    tuned: list[Tuned] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    rehearsal: bool = False

    @property
    def mark(self) -> str:
        """Says of a figure that it is of a rehearsal."""
        return " (rehearsal)" if self.rehearsal else ""

    @property
    def devices(self) -> list[str]:
        """Names of all devices, in the order of the files."""
        return list(dict.fromkeys([t.device for t in self.tuned] + [row["device"] for row in self.rows]))

    def figures(self) -> list[Row]:
        """Rows with a time that passed the gate, the oldest first."""
        gates = (*GATES, "not computed") if self.rehearsal else GATES
        return sorted((row for row in self.rows if row["p50_us"] and row["gate"] in gates), key=lambda row: row["timestamp"])

    def failed(self) -> list[str]:
        """What was wrong or crashed, in words, and the problems that tuning could not measure."""
        rows = [row for row in self.rows if row["gate"] == "failed"]
        texts = [f"{row['kernel_name']}, batch {row['n']}, {row['provider']}: {row['note'] or 'wrong'}" for row in rows]
        return texts + self.errors


def read(files: Iterable[Path], rehearsal: bool = False) -> Measured:
    """All rows and lines of ``.csv`` and ``.jsonl`` files.

    Raises:
        UsageError: a file is none of ours or is broken; the message names it, and the line.
    """
    found = Measured(files=list(files), rehearsal=rehearsal)
    for file in found.files:
        try:
            if file.suffix == ".csv":
                found.rows += _rows(file)
            else:
                _read_lines(file, found)
        except (OSError, ValueError, RecursionError) as error:
            raise usage.UsageError(f"{file}: {error}") from None
    return found


def rehearsed(file: Path) -> bool:
    """Whether a file that can be read comes from a rehearsal: a row or line says so, or its device is an interpreter."""
    if file.suffix == ".csv":
        return any(row["rehearsal"] not in ("", "false") or "interpreted" in row["device"] for row in _rows(file))
    lines = file.suffix == ".jsonl"
    objects = [line for _, line in _objects(file)] if lines else [json.loads(file.read_text(encoding="utf-8"))]
    parts = objects + [entry for part in objects for entry in part.get("entries", ()) if isinstance(entry, dict)]
    return any(part.get("rehearsal") or "interpreted" in str(part.get("device", "")) for part in parts)


def problem_of(row: Row) -> ConvProblem:
    """The layer of a row of ``bench conv``.

    Raises:
        ValueError: it is not one of this version.
    """
    problem = problem_from_json(json.loads(row["problem"]))
    if not isinstance(problem, ConvProblem):
        raise ValueError(f"bench conv measures depthwise layers, got {problem}")
    return problem


def algorithm_of(row: Row) -> str:
    """The algorithm that a provider of this library ran; "" of a peer, of what did not run, and of a network.

    Raises:
        ValueError: the ``config`` is not one of ours.
    """
    ours = row["provider"].startswith(OURS) and row["config"] and row["problem"]
    return registry.get(json.loads(row["config"])["algorithm"]).name if ours else ""


def _rows(file: Path) -> Iterator[Row]:
    for number, row in enumerate(report.read([file]), 1):
        unknown, missing = sorted(row.keys() - set(report.FIELDS)), [name for name in NEEDED if not row[name]]
        if unknown or missing:
            problem = f"has {', '.join(unknown)}" if unknown else f"lacks {', '.join(missing)}"
            raise ValueError(f"no CSV file of bench conv or bench network of this version: row {number} {problem}")
        try:
            for name in NUMBERS:
                _positive(row[name] or "1", name)
            datetime.fromisoformat(row["timestamp"] or "1970-01-01")
            if row["useful_tflops"]:
                problem_of(row)
                algorithm_of(row)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"row {number}: {error}") from None
        yield {**row, "file": file.name}


def _objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a file of JSON lines."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                data = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: no JSON object ({error}); was the file cut short?") from None
            if not isinstance(data, dict) or "type" not in data:
                raise ValueError(f"line {number}: no line of tune --json: expected an object with a type")
            yield number, data


def _read_lines(file: Path, found: Measured) -> None:
    head: Mapping[str, Any] = {}
    for number, data in _objects(file):
        try:
            if data["type"] == "device":
                head = data
                if not (isinstance(data["device"], str) and isinstance(data["versions"], dict)):
                    raise ValueError("a device is a name, versions are an object")
            elif data["type"] == "result":
                found.tuned.append(_tuned(file.name, head, data))
            elif data["type"] == "error":
                found.errors.append(f"{problem_from_json(data['problem'])}: {data['error']}")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"line {number}: no line of tune --json of this version: {error!r}") from None
    if not head:
        raise ValueError("no file of tune --json: no line of type device")


def _tuned(file: str, head: Mapping[str, Any], data: Mapping[str, Any]) -> Tuned:
    best: dict[str, float] = {}
    for trial in data["trials"]:
        if trial["microseconds"] is not None:
            name = registry.get(trial["algorithm"]).name
            best[name] = min(best.get(name, float("inf")), _positive(trial["microseconds"], "microseconds"))
    return Tuned(file, head["device"], head["versions"], problem_from_json(data["problem"]), best)


def _positive(value: Any, name: str) -> float:
    number = float(value)
    if not (isfinite(number) and number > 0):
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return number
