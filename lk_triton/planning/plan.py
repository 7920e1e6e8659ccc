"""problem -> plan.

The algorithm: explicit argument > preference (``use``, LK_TRITON_ALGORITHM) > any but those of LK_TRITON_WITHOUT. Its config,
and the algorithm where none is named: user cache on disk > shipped table for this device > cost model. Where the cost model
has chosen the algorithm, the nearest shipped entry may choose its config. Nothing is timed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import environment
from ..algorithms import registry
from ..algorithms.base import Config, with_prepacked
from ..algorithms.cost.roofline import Estimate
from ..algorithms.dense.cublas import rounds_products
from ..algorithms.layerwise import LayerwiseAlgorithm
from ..gpu import Gpu
from ..ops.dense import torch_allows_tf32
from ..ops.problem import Operands, Problem
from . import cache
from .choice import AS_IT_IS, Choice

WITHOUT = "LK_TRITON_WITHOUT"
"""Algorithms, separated by commas, that are not chosen unless a call names them."""

_preferred: ContextVar[str | None] = ContextVar("lk_triton_algorithm", default=None)


@dataclass(frozen=True)
class Plan:
    """What runs: an algorithm by name, its config, and where the choice came from.

    ``source`` is ``explicit`` or ``preference`` where the algorithm was named, else ``user cache``, ``shipped table``,
    ``nearest shipped entry`` (of the config) or ``cost model``; docs/tuning.md says what each means.
    """

    algorithm: str
    config: Config
    source: str

    def estimate(self, problem: Problem, gpu: Gpu) -> Estimate:
        """Predicted time of ``problem``, which this is the plan for."""
        return registry.get(self.algorithm).estimate(problem, self.config, gpu)

    def launch(self, problem: Problem, operands: Operands) -> Tensor:
        """Compute ``problem``; its weight is prepacked first where the config reads it so."""
        algorithm = registry.get(self.algorithm)
        return algorithm.launch(problem, self.config, with_prepacked(algorithm, problem, self.config, operands))


@contextmanager
def use(algorithm: str) -> Iterator[None]:
    """Prefer ``algorithm`` for every layer run inside the ``with`` block, in this thread.

    A layer that it cannot serve takes auto's choice among the Triton algorithms instead. To force one call, pass
    ``algorithm=`` to it. The environment variable LK_TRITON_ALGORITHM does the same for a whole process.

    Raises:
        ValueError: no algorithm of that name.
    """
    token = _preferred.set(algorithm if algorithm == "auto" else registry.get(algorithm).name)
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
    try:
        return named if named == "auto" else registry.get(named).name
    except ValueError as error:
        raise ValueError(f"LK_TRITON_ALGORITHM={named}: {error}") from None


def excluded() -> frozenset[str]:
    """The algorithms that LK_TRITON_WITHOUT names: no automatic choice takes them.

    Raises:
        ValueError: it names no algorithm, or torch, which serves where nothing else does.
    """
    named = os.environ.get(WITHOUT)
    return _names(named) if named else frozenset()


@lru_cache
def _names(named: str) -> frozenset[str]:
    given = {name.strip() for name in named.split(",")} - {""}
    try:
        names = frozenset(registry.get(name).name for name in sorted(given))
    except ValueError as error:
        raise ValueError(f"{WITHOUT}={named}: {error}") from None
    if "torch" in names:
        raise ValueError(f"{WITHOUT}={named}: torch cannot be excluded, it serves where nothing else does")
    return names


def plan(
    problem: Problem, gpu: Gpu, algorithm: str = "auto", bank_format: str | None = None, packing: bool = True
) -> Plan:
    """The plan for ``problem`` on ``gpu``.

    Args:
        algorithm: an algorithm's name forces it, also one of LK_TRITON_WITHOUT; ``auto`` honours the preference, then takes
            what was measured fastest, then asks the cost model.
        bank_format: the packed weights at hand; plans that read them are taken where there are any.
        packing: whether ``auto`` may take a plan that reads a packed weight.

    Raises:
        ValueError: the forced algorithm cannot serve (the text says why), or a name is unknown.
    """
    problem = at_least_one_image(problem)
    rounds = problem.dtype == "float32" and rounds_products()
    state = environment.state(), cache.state(), torch.backends.mkldnn.enabled, rounds
    if algorithm != "auto":
        return _forced(problem, gpu, registry.get(algorithm).name, bank_format, state)
    without = excluded() | _distrusted.get((problem, gpu), frozenset()) if _distrusted else excluded()
    return _auto(problem, gpu, preferred(), without, bank_format, packing, state)


_distrusted: dict[tuple[Problem, Gpu], frozenset[str]] = {}
_distrusts = 0
"""How often something was added to it."""


def distrust(problem: Problem, gpu: Gpu, name: str) -> None:
    """Have no automatic choice of this process take the algorithm called ``name`` for ``problem`` on ``gpu`` again."""
    global _distrusts
    _distrusts += 1
    _distrusted[problem, gpu] = _distrusted.get((problem, gpu), frozenset()) | {name}


def state(x: torch.Tensor) -> tuple[Any, ...]:
    """What a plan for a call on ``x`` depends on besides the problem and environment variables, in values that compare."""
    rounding = (rounds_products(), torch_allows_tf32(x.device)) if x.dtype == torch.float32 and x.is_cuda else None
    return _preferred.get(), _distrusts, cache.state_in_process(), torch._C._get_mkldnn_enabled(), rounding


def at_least_one_image(problem: Problem) -> Problem:
    """``problem``; an empty batch is planned as one image, so that no algorithm needs to know of it."""
    return problem if problem.n else replace(problem, n=1)


# ``state`` only makes what is remembered depend on what the cache's answers, and the algorithms' refusals, depend on.
@lru_cache(maxsize=4096)
def _forced(problem: Problem, gpu: Gpu, name: str, bank_format: str | None, state: object) -> Plan:
    reason = why_not(problem, gpu, name)
    if reason:
        raise ValueError(f"algorithm={name!r} cannot serve {problem}: {reason}; pass algorithm='auto' to choose another")
    return replace(_choose(_reading(Choice(problem, gpu, (name,)), bank_format)), source="explicit")


@lru_cache(maxsize=4096)
def _auto(
    problem: Problem, gpu: Gpu, preference: str, without: frozenset[str], bank_format: str | None, packing: bool,
    state: object,
) -> Plan:  # fmt: skip
    serving = [n for n in registry.meant_for(problem) if n not in without and why_not(problem, gpu, n) is None]
    if not packing:
        serving = [n for n in serving if Choice(problem, gpu, (n,), AS_IT_IS).candidates]
    free = tuple(n for n in serving if n != "torch" and registry.get(n).beaten(problem) is None) or ("torch",)
    choice = Choice(problem, gpu, (preference,) if preference in serving else free)
    chosen = _choose(_reading(choice, bank_format) if packing else replace(choice, formats=AS_IT_IS))
    return replace(chosen, source="preference") if preference in serving else chosen


def why_not(problem: Problem, gpu: Gpu, name: str) -> str | None:
    """Why the algorithm called ``name`` cannot serve ``problem``, or None where it can."""
    algorithm = registry.get(name)
    reason = algorithm.why_not(problem, gpu)
    if reason is None and not algorithm.configs(problem, gpu):
        reason = f"none of its configs fits {gpu.name}"
    return reason


def why_not_auto(problem: Problem, gpu: Gpu, name: str) -> str | None:
    """Why no automatic choice takes the algorithm called ``name``, or None where one may."""
    if name in excluded():
        return f"{WITHOUT} leaves it out"
    return why_not(problem, gpu, name) or registry.get(name).beaten(problem)


def _reading(choice: Choice, bank_format: str | None) -> Choice:
    """``choice`` among what reads ``bank_format`` or the weight as it is, where anything reads that format."""
    if bank_format is None or not replace(choice, formats=frozenset({bank_format})).candidates:
        return choice
    return replace(choice, formats=frozenset({None, bank_format}))


def _choose(choice: Choice) -> Plan:
    measured = choice.measured()
    if measured is not None:
        (name, config), source = measured
        return Plan(name, config, source)
    name, config = choice.estimated()
    nearby = choice.nearby()
    return Plan(name, config, "cost model") if nearby is None else Plan(name, nearby, "nearest shipped entry")


LayerwiseAlgorithm.planner = staticmethod(plan)
