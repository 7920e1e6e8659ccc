"""What is to be tuned, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..gpu import Gpu
from ..ops.problem import Problem
from . import cache
from .plan import at_least_one_image, plan
from .tuner import with_layers


def heaviest_first(networks: Iterable[Mapping[Problem, int]], gpu: Gpu) -> list[Problem]:
    """The problems of some networks, each once and a chain's layers before it, in the order of their weight.

    A network says how many of its layers pose each problem. A problem's weight is the largest share of a network's time that
    it takes by the estimates of the plans there are, times its count; a chain's layers weigh as much as the chain at least.
    """
    weights: dict[Problem, float] = {}
    for counts in networks:
        seconds = {problem: count * estimate(problem, gpu) for problem, count in counts.items()}
        total = sum(seconds.values())
        for problem in seconds:
            for each in with_layers([problem]):
                weights[each] = max(weights.get(each, 0.0), seconds[problem] / total)
    return sorted(weights, key=lambda problem: -weights[problem])


def estimate(problem: Problem, gpu: Gpu) -> float:
    """Seconds of one call by the plan there is, as the cost model sees it."""
    problem = at_least_one_image(problem)
    chosen = plan(problem, gpu)
    return chosen.estimate(problem, gpu).seconds


def missing(problems: Iterable[Problem], gpu: Gpu) -> list[Problem]:
    """The problems of which the user's cache holds no measurement that counts."""
    return [problem for problem in problems if not cache.user_entries(at_least_one_image(problem), gpu)]
