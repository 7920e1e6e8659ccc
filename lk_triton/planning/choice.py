"""Which of the algorithms that may serve a problem does, and with which config: what was measured, else the lowest estimate.

A measurement of this very problem on this device decides outright. Without one the cost model chooses the algorithm, and a
measurement of a problem nearby may choose its config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..algorithms import registry
from ..algorithms.base import Config
from ..gpu import Gpu
from ..ops.problem import Problem
from . import cache
from .entry import Entry
from .nearest import nearest

SLOWER = 1.1
"""A neighbour's config is passed over where its estimate is so many times the lowest. On an H100 another problem's fastest
config took 0.86 to 1.14 times as long as the cost model's own choice where its estimate was within the bound, 1.00 on average;
above it 1.21 on average, 2.35 at worst (bench/results/h100-2026-11/configs.jsonl, read by tests/planning/test_sources.py)."""

Pair = tuple[str, Config]
"""An algorithm by name, and one of its configs."""

AS_IT_IS = frozenset({None})
"""The formats of plans that read no packed weight."""


@dataclass(frozen=True)
class Choice:
    """What may serve a problem.

    Attributes:
        names: of the algorithms, all of which serve.
        formats: of the weights that a config may read (None among them: the weight as it is); None allows any.
    """

    problem: Problem
    gpu: Gpu
    names: tuple[str, ...]
    formats: frozenset[str | None] | None = None

    @cached_property
    def candidates(self) -> list[Pair]:
        """Every legal config that is allowed."""
        pairs = ((name, c) for name in self.names for c in registry.get(name).configs(self.problem, self.gpu))
        return [pair for pair in pairs if self._allows(pair)]

    def measured(self) -> tuple[Pair, str] | None:
        """The fastest of what was measured for this very problem on this device, and where that is written; or None.

        Where the fastest is not legal, the rest does not count either: it was measured where more fits.
        """
        for source, entries in (
            ("user cache", cache.user_entries(self.problem, self.gpu)),
            ("shipped table", cache.shipped_entries(self.problem, self.gpu)),
        ):
            found = self._of(entries)
            if found and (pair := self._legal(found[0])) is not None:
                return pair, source
        return None

    def estimated(self) -> Pair:
        """The lowest estimate, of equal ones the first."""
        return min(self.candidates, key=self._seconds)

    def nearby(self) -> Config | None:
        """The fastest config for the nearest problem whose config is acceptable here, of the algorithm that is estimated best.

        None where there is no such problem, or where the cost model's own choice for it was as fast: then its own choice for
        this problem stands.
        """
        best = self.estimated()
        bound = SLOWER * self._seconds(best)
        for entries in nearest(self.problem, self.gpu, cache.shipped_tables()):
            there = replace(self, problem=entries[0].problem, names=best[:1])
            found = there._of(entries)
            if found and (pair := self._legal(found[0])) is not None and self._seconds(pair) <= bound:
                return None if there.estimated() in map(_pair, as_fast(found)) else pair[1]
        return None

    def _allows(self, pair: Pair) -> bool:
        return pair[0] in self.names and (self.formats is None or _reads(pair) in self.formats)

    def _of(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those that are allowed, the fastest first."""
        return [e for e in entries if self._allows(_pair(e))]

    def _legal(self, entry: Entry) -> Pair | None:
        """What was measured, as it is offered here: a file may write 4.0 for 4. None where it is not."""
        return next((pair for pair in self.candidates if pair == _pair(entry)), None)

    def _seconds(self, pair: Pair) -> float:
        return registry.get(pair[0]).estimate(self.problem, pair[1], self.gpu).seconds


def as_fast(entries: Sequence[Entry]) -> list[Entry]:
    """The first of ``entries``, which is the fastest, and those that the spread of the rounds does not tell from it."""
    fastest = entries[0]
    return [e for e in entries if e.microseconds <= fastest.microseconds * max(e.spread, fastest.spread)]


def _pair(entry: Entry) -> Pair:
    return entry.algorithm, entry.config


def _reads(pair: Pair) -> str | None:
    return registry.get(pair[0]).weight_format(pair[1])
