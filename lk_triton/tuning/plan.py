"""problem -> plan.

The algorithm: explicit argument > preference (``use``, LK_TRITON_ALGORITHM) > any. Its config, and the algorithm where none is
named: user cache on disk > shipped table for this device > nearest shipped entry > cost model. Nothing is timed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from ..algorithms import registry
from ..algorithms.base import Config
from ..algorithms.cublas import rounds_products
from ..algorithms.pair import PairAlgorithm, TripleAlgorithm
from ..device import Device
from ..problem import Problem
from . import cache
from .entry import Entry
from .nearest import nearest

MUCH_SLOWER = 1.5
"""A neighbour's config is passed over where the estimate of the algorithm's best is so much lower: a large tile of batch 64
leaves most SMs idle at batch 8. On an H100 what the model ranks first was at most 1.33 times slower than the best."""

_preferred: ContextVar[str | None] = ContextVar("lk_triton_algorithm", default=None)


@dataclass(frozen=True)
class Plan:
    """What runs: an algorithm by name, its config, and where the choice came from.

    ``source`` is ``explicit`` or ``preference`` where the algorithm was named, else ``user cache``, ``shipped table``,
    ``nearest shipped entry`` or ``cost model``; docs/tuning.md says what each means.
    """

    algorithm: str
    config: Config
    source: str


@contextmanager
def use(algorithm: str) -> Iterator[None]:
    """Prefer ``algorithm`` for every layer run inside the ``with`` block, in this thread.

    A layer that it cannot serve takes auto's choice among the Triton algorithms instead. To force one call, pass
    ``algorithm=`` to it. The environment variable LK_TRITON_ALGORITHM does the same for a whole process.

    Raises:
        ValueError: no algorithm of that name.
    """
    if algorithm != "auto":
        registry.get(algorithm)
    token = _preferred.set(algorithm)
    try:
        yield
    finally:
        _preferred.reset(token)


def preferred() -> str:
    """The algorithm that ``use`` or LK_TRITON_ALGORITHM asks for, or ``auto``.

    Raises:
        ValueError: LK_TRITON_ALGORITHM names no algorithm.
    """
    chosen = _preferred.get()
    if chosen is not None:
        return chosen
    named = os.environ.get("LK_TRITON_ALGORITHM") or "auto"
    if named != "auto":
        try:
            registry.get(named)
        except ValueError as error:
            raise ValueError(f"LK_TRITON_ALGORITHM={named}: {error}") from None
    return named


def plan(problem: Problem, device: Device, algorithm: str = "auto", bank_format: str | None = None) -> Plan:
    """The plan for ``problem`` on ``device``.

    Args:
        algorithm: an algorithm's name forces it; ``auto`` honours the preference, then takes what was measured fastest, then
            asks the cost model.
        bank_format: the packed weights at hand; plans that read them are taken where there are any.

    Raises:
        ValueError: the forced algorithm cannot serve (the text says why), or a name is unknown.
    """
    problem = at_least_one_image(problem)
    state = cache.state(), torch.backends.mkldnn.enabled, rounds_products()
    if algorithm != "auto":
        return _forced(problem, device, algorithm, bank_format, state)
    return _auto(problem, device, preferred(), bank_format, state)


def at_least_one_image(problem: Problem) -> Problem:
    """``problem``; an empty batch is planned as one image, so that no algorithm needs to know of it."""
    return problem if problem.n else replace(problem, n=1)


# ``state`` only makes what is remembered depend on what the cache's answers, and the algorithms' refusals, depend on.
@lru_cache(maxsize=4096)
def _forced(problem: Problem, device: Device, name: str, bank_format: str | None, state: object) -> Plan:
    reason = refusal(problem, device, name)
    if reason:
        raise ValueError(f"algorithm={name!r} cannot serve {problem}: {reason}; pass algorithm='auto' to choose another")
    return replace(_choose(problem, device, [name], bank_format), source="explicit")


@lru_cache(maxsize=4096)
def _auto(problem: Problem, device: Device, preference: str, bank_format: str | None, state: object) -> Plan:
    if preference != "auto" and refusal(problem, device, preference) is None:
        return replace(_choose(problem, device, [preference], bank_format), source="preference")
    serving = [name for name in registry.meant_for(problem) if refusal(problem, device, name) is None]
    return _choose(problem, device, [n for n in serving if n != "torch"] or ["torch"], bank_format)


def refusal(problem: Problem, device: Device, name: str) -> str | None:
    """Why the algorithm called ``name`` cannot serve ``problem``, or None where it can."""
    algorithm = registry.get(name)
    reason = algorithm.supports(problem, device)
    if reason is None and not algorithm.configs(problem, device):
        reason = f"none of its configs fits {device.name}"
    return reason


def _choose(problem: Problem, device: Device, names: list[str], bank_format: str | None) -> Plan:
    """The best known plan among the algorithms called ``names``, all of which serve."""
    legal = [(name, config) for name in names for config in registry.get(name).configs(problem, device)]
    if bank_format is not None and any(_reads(pair) == bank_format for pair in legal):
        formats = (None, bank_format)
        legal = [pair for pair in legal if _reads(pair) in formats]
    else:
        formats = None

    def estimate(pair: tuple[str, Config]) -> float:
        return registry.get(pair[0]).estimate(problem, pair[1], device).seconds

    for source, entries in _measured(problem, device):
        pairs = [(e.algorithm, e.config) for e in entries]  # the fastest first
        wanted = [p for p in pairs if p[0] in names and (formats is None or _reads(p) in formats)]
        if wanted and wanted[0] in legal:
            same = [pair for pair in legal if pair[0] == wanted[0][0]]
            if source != "nearest shipped entry" or estimate(wanted[0]) <= MUCH_SLOWER * min(map(estimate, same)):
                return Plan(*legal[legal.index(wanted[0])], source)
    return Plan(*min(legal, key=estimate), "cost model")


def _measured(problem: Problem, device: Device) -> Iterator[tuple[str, tuple[Entry, ...]]]:
    """(source, entries), the best source first."""
    yield "user cache", cache.user_entries(problem, device)
    yield "shipped table", cache.shipped_entries(problem, device)
    for entries in nearest(problem, device, cache.shipped_tables()):
        yield "nearest shipped entry", entries


def _reads(pair: tuple[str, Config]) -> str | None:
    """The bank format that a config of the algorithm of that name reads."""
    return registry.get(pair[0]).bank_format(pair[1])


for _kind in (PairAlgorithm, TripleAlgorithm):
    registry.ALGORITHMS[_kind.name] = _kind(plan)
