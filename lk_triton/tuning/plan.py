"""problem -> plan. The order: explicit argument > preference (``use``, LK_TRITON_ALGORITHM) > cost model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache

from ..algorithms import registry
from ..algorithms.base import Config
from ..device import Device
from ..problem import ConvProblem

_preferred: ContextVar[str | None] = ContextVar("lk_triton_algorithm", default=None)


@dataclass(frozen=True)
class Plan:
    """What runs: an algorithm by name, its config, and where the choice came from."""

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


def plan(problem: ConvProblem, device: Device, algorithm: str = "auto", bank_format: str | None = None) -> Plan:
    """The plan for ``problem`` on ``device``.

    Args:
        algorithm: an algorithm's name forces it; ``auto`` honours the preference, then asks the cost model.
        bank_format: the packed weights at hand; plans that read them are taken where there are any.

    Raises:
        ValueError: the forced algorithm cannot serve (the text says why), or a name is unknown.
    """
    problem = at_least_one_image(problem)
    if algorithm != "auto":
        return _forced(problem, device, algorithm, bank_format)
    return _auto(problem, device, preferred(), bank_format)


def at_least_one_image(problem: ConvProblem) -> ConvProblem:
    """``problem``; an empty batch is planned as one image, so that no algorithm needs to know of it."""
    return problem if problem.n else replace(problem, n=1)


@lru_cache(maxsize=4096)
def _forced(problem: ConvProblem, device: Device, name: str, bank_format: str | None) -> Plan:
    reason = refusal(problem, device, name)
    if reason:
        raise ValueError(f"algorithm={name!r} cannot serve {problem}: {reason}; pass algorithm='auto' to choose another")
    return _cheapest(problem, device, [name], bank_format, "explicit")


@lru_cache(maxsize=4096)
def _auto(problem: ConvProblem, device: Device, preference: str, bank_format: str | None) -> Plan:
    if preference != "auto" and refusal(problem, device, preference) is None:
        return _cheapest(problem, device, [preference], bank_format, "preference")
    serving = [name for name in registry.ALGORITHMS if refusal(problem, device, name) is None]
    return _cheapest(problem, device, [n for n in serving if n != "torch"] or ["torch"], bank_format, "cost model")


def refusal(problem: ConvProblem, device: Device, name: str) -> str | None:
    """Why the algorithm called ``name`` cannot serve ``problem``, or None where it can."""
    algorithm = registry.get(name)
    reason = algorithm.supports(problem, device)
    if reason is None and not algorithm.configs(problem, device):
        reason = f"none of its configs fits {device.name}"
    return reason


def _cheapest(problem: ConvProblem, device: Device, names: list[str], bank_format: str | None, source: str) -> Plan:
    candidates = [(registry.get(n), c) for n in names for c in registry.get(n).configs(problem, device)]
    if bank_format is not None and bank_format in [a.bank_format(c) for a, c in candidates]:
        candidates = [(a, c) for a, c in candidates if a.bank_format(c) in (None, bank_format)]
    best, config = min(candidates, key=lambda pair: pair[0].estimate(problem, pair[1], device).seconds)
    return Plan(best.name, config, source)
