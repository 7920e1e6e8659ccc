"""One measured plan, as data and as JSON.

An entry names everything that its figure depends on: the problem field by field, the algorithm and config, the versions,
and a hash of the sources that were measured. An entry whose hash is another is stale: its figure is of another kernel.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..algorithms import registry
from ..algorithms.base import Config
from ..problem import ConvProblem, DenseProblem, Epilogue, FfnProblem, Problem, StemProblem

PACKAGE = Path(__file__).parents[1]
HOSTS, KERNELS = PACKAGE / "algorithms", PACKAGE / "kernels"

_IMPORT = re.compile(r"^ *from \.+(?:kernels\.)?(\w*) import ([\w, ]+)?", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """What was measured for ``problem``: the median in microseconds over ``rounds``, and slowest over fastest round."""

    problem: Problem
    algorithm: str
    config: Config
    microseconds: float
    rounds: int
    spread: float
    versions: dict[str, str | None]
    source_hash: str


def to_json(entry: Entry) -> dict[str, Any]:
    """The entry as plain JSON data: objects, lists, numbers and strings."""
    return {**json.loads(json.dumps(asdict(entry))), "problem": problem_to_json(entry.problem)}


def from_json(data: Any) -> Entry:
    """The inverse of ``to_json``: tuples are tuples again, so that the problem is the same key.

    Raises:
        ValueError: this is no entry of this version of the library.
    """
    try:
        values = {**_fields(Entry, data)}
        values["problem"] = problem_from_json(values["problem"])
        values["config"] = _build(registry.get(values["algorithm"]).config_type, values["config"])
        entry = Entry(**values)
        if not entry.microseconds > 0:
            raise ValueError(f"microseconds must be above 0, got {entry.microseconds!r}")
    except (TypeError, AttributeError) as error:
        raise ValueError(f"not an entry: {error}") from None
    return entry


KINDS: dict[str, type[Problem]] = {
    "depthwise": ConvProblem, "dense": DenseProblem, "ffn": FfnProblem, "stem": StemProblem,
}  # fmt: skip


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """Its kind, and every field of the problem; tuples become lists."""
    kind = next(name for name, of_kind in KINDS.items() if isinstance(problem, of_kind))
    return {"kind": kind, **json.loads(json.dumps(asdict(problem)))}


def problem_from_json(data: Any) -> Problem:
    """The inverse of ``problem_to_json``.

    Raises:
        ValueError: the kind is unknown, fields are missing, or unknown ones are there.
    """
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind not in KINDS:
        raise ValueError(f"a problem's kind is one of {', '.join(KINDS)}, got {kind!r}")
    values = _fields(KINDS[kind], {name: value for name, value in data.items() if name != "kind"})
    return _build(KINDS[kind], {**values, "epilogue": _build(Epilogue, values["epilogue"])})


def stale(data: dict[str, Any]) -> bool:
    """Whether the entry's sources are not those of this installation. Asked before ``from_json``: old configs differ.

    Raises:
        ValueError: the entry names no algorithm of this version.
    """
    try:
        return data["source_hash"] != source_hash(data["algorithm"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an entry: {error!r}") from None


@lru_cache
def source_hash(algorithm: str) -> str:
    """Hash of all that decides what a config of ``algorithm`` runs: its host files, and the host files and kernels that these
    import."""
    host = Path(inspect.getfile(type(registry.get(algorithm))))
    digest = hashlib.sha256(algorithm.encode())  # two may share a file
    for file in (*_imported(set(host.parent.glob(f"{host.stem}*.py"))), PACKAGE / "layout.py"):
        # read as text: a checkout may have changed the line ends
        digest.update(f"{file.name}\0{file.read_text(encoding='utf-8')}\0".encode())
    return digest.hexdigest()[:16]


def _imported(files: set[Path]) -> list[Path]:
    """``files``, and all host files and kernels that they import, directly or not."""
    found: set[Path] = set()
    while files:
        found |= files
        modules = [m for file in files for m in _IMPORT.findall(file.read_text(encoding="utf-8"))]
        names = {name for module, members in modules for name in (module or members).split(", ")}
        beside = {folder / f"{name}.py" for folder in (HOSTS, KERNELS) for name in names}
        files = {file for file in beside - found if file.exists()}
    return sorted(found, key=lambda file: (file.name, file.parent == KERNELS))


@lru_cache
def versions() -> dict[str, str | None]:
    """Versions of what a figure depends on; None where it is not installed."""
    from .. import __version__

    try:
        from triton import __version__ as triton
    except ImportError:
        triton = None
    return {"lk_triton": __version__, "torch": torch.__version__, "triton": triton}


def _build(kind: Callable[..., Any], data: Any) -> Any:
    values = _fields(kind, data)
    return kind(**{name: _tuples(value) for name, value in values.items()})


def _fields(kind: Any, data: Any) -> dict[str, Any]:
    """``data``, which must hold exactly the fields of the dataclass ``kind``: a default must not stand in for a lost one."""
    wanted = {f.name for f in fields(kind)}
    if not isinstance(data, dict) or data.keys() != wanted:
        given = sorted(data) if isinstance(data, dict) else data
        raise ValueError(f"{kind.__name__} has the fields {sorted(wanted)}, got {given!r}")
    return data


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
