"""One measured plan, as data and as JSON.

An entry names everything that its figure depends on: the problem field by field, the algorithm and config, the versions,
and the version of the kernel form that was measured. An entry of another version is stale: its figure is of another kernel.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import lru_cache
from math import inf
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch

from ..algorithms import registry
from ..algorithms.base import Config
from ..ops.problem import KINDS, Problem

LAST_HASHES = {
    "toeplitz": "8cf25b278cceda65", "resident": "6cb1060d6c02a437", "direct": "db46fb1084b39604",
    "pointwise": "d76818abc0743223", "cublas": "ed0b1baa971928b0", "stem": "188cd04ec3769d9a",
    "convffn": "b9b606ab16abb0cb", "convstem": "7bc445153f2b7e8e", "pair": "be54895e50f9b79c",
    "triple": "f7d1d88eb3111ded", "onednn": "ffab238ba65bb3fb", "torch": "703e687c50f39c43",
}  # fmt: skip
"""What version 1 of every algorithm, by its name of then, was called while entries held a hash over its sources
(``source_hash``) instead."""


@dataclass(frozen=True)
class Entry:
    """What was measured for ``problem``: the median in microseconds over ``rounds``, and slowest over fastest round.

    ``versions`` are those of the software, ``version`` is that of the kernel ``form`` that ``config`` runs.
    """

    problem: Problem
    algorithm: str
    config: Config
    microseconds: float
    rounds: int
    spread: float
    versions: dict[str, str | None]
    form: str
    version: int


def to_json(entry: Entry) -> dict[str, Any]:
    """The entry as plain JSON data: objects, lists, numbers and strings."""
    return {**json.loads(json.dumps(asdict(entry))), "problem": problem_to_json(entry.problem)}


def from_json(data: Any) -> Entry:
    """The inverse of ``to_json``: tuples are tuples again, so that the problem is the same key.

    Raises:
        ValueError: this is no entry of this version of the library.
    """
    try:
        values = {**_fields(Entry, brought_up_to_date(data))}
        values["problem"] = problem_from_json(values["problem"])
        algorithm = registry.get(values["algorithm"])
        values["config"] = config_from_json(algorithm.config_type, values["config"])
        entry = _typed(Entry(**values))
        if entry.form != algorithm.form(entry.config):
            raise ValueError(f"the config is of the kernel form {algorithm.form(entry.config)!r}, not of {entry.form!r}")
        if not 0 < entry.microseconds < inf:
            raise ValueError(f"microseconds must be above 0, got {entry.microseconds!r}")
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not an entry: {error}") from None
    return entry


def config_from_json(kind: type[Any], data: Any) -> Config:
    """A config of the class ``kind`` from its fields. ``kind.dropped`` names fields that the class had, each with the value
    that means what the class means now: with that value such a field may be there.

    Raises:
        ValueError: fields are missing, or others are there.
    """
    dropped = getattr(kind, "dropped", {})
    if isinstance(data, dict):
        data = {name: value for name, value in data.items() if name not in dropped or value != dropped[name]}
    return _build(kind, data)


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """Its kind, and every field of the problem; tuples become lists."""
    return {"kind": problem.kind, **json.loads(json.dumps(asdict(problem)))}


def problem_from_json(data: Any) -> Problem:
    """The inverse of ``problem_to_json``.

    Raises:
        ValueError: the kind is unknown, fields are missing, or unknown ones are there.
    """
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind not in KINDS:
        raise ValueError(f"a problem's kind is one of {', '.join(KINDS)}, got {kind!r}")
    return _build(KINDS[kind], {name: value for name, value in data.items() if name != "kind"})


def stale(data: dict[str, Any]) -> bool:
    """Whether the entry is of another version of its kernel form. Asked before ``from_json``: old configs differ.

    Raises:
        ValueError: the entry names no algorithm of this version.
    """
    try:
        data = brought_up_to_date(data)
        return data["version"] != registry.get(data["algorithm"]).versions.get(data["form"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an entry: {error!r}") from None


def brought_up_to_date(data: dict[str, Any]) -> dict[str, Any]:
    """An entry with the names that algorithms have. One from the time of ``LAST_HASHES`` is of version 1, or of 0 where its
    hash is another."""
    names = {key: registry.RENAMED.get(data[key], data[key]) for key in ("algorithm", "form") if key in data}
    if "source_hash" not in data:
        return {**data, **names}
    version = int(data["source_hash"] == LAST_HASHES.get(data["algorithm"]))
    data = {**data, **names}
    name, channels = data["algorithm"], data["config"].get("channels")
    form = "direct_channels_last" if name == "direct" and channels else name
    kept = {key: value for key, value in data.items() if key != "source_hash"}
    return {**kept, "form": form, "version": version}


def of_measured(problem: Problem, name: str, config: Config, **figures: Any) -> Entry:
    """The entry of what was measured here, with the versions of this installation."""
    algorithm = registry.get(name)
    return Entry(
        problem, name, config, **figures, versions=versions(), form=algorithm.form(config), version=algorithm.version(config)
    )


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
    """An object of the dataclass ``kind`` from its fields, of which some may be dataclasses themselves."""
    hints = _hints(kind)
    values = {
        name: _build(hints[name], value) if is_dataclass(hints[name]) else _tuples(value)
        for name, value in _fields(kind, data).items()
    }
    return _typed(kind(**values))


def _typed(made: Any) -> Any:
    """``made``, a dataclass; JSON's 4.0 is no 4, though it equals it, and a list or an object is no key.

    Raises:
        ValueError: a field is of another type than the class says.
    """
    for field in fields(made):
        value = getattr(made, field.name)
        if not _is_a(value, _hints(type(made))[field.name]):
            raise ValueError(f"{field.name} of a {type(made).__name__} cannot be {value!r}")
    return made


_hints = lru_cache(get_type_hints)


def _is_a(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of the type that an annotation names; an integer does as a float, a bool not as an integer."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_is_a(value, argument) for argument in arguments)
    if origin is tuple:
        inner = arguments[:1] * len(value) if isinstance(value, tuple) and arguments[1:] == (...,) else arguments
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_is_a, value, inner))
    if origin is dict:
        key, inner = arguments
        return isinstance(value, dict) and all(_is_a(k, key) and _is_a(v, inner) for k, v in value.items())
    if is_dataclass(value):
        return isinstance(value, hint)
    return type(value) in ((int, float) if hint is float else (hint,))


def _fields(kind: Any, data: Any) -> dict[str, Any]:
    """``data``, which must hold exactly the fields of the dataclass ``kind``: a default must not stand in for a lost one."""
    wanted = {f.name for f in fields(kind)}
    if not isinstance(data, dict) or data.keys() != wanted:
        given = sorted(data) if isinstance(data, dict) else data
        raise ValueError(f"{kind.__name__} has the fields {sorted(wanted)}, got {given!r}")
    return data


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
