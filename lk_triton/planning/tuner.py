"""Measure candidates for a problem, and keep the fastest that is right.

The cost model prunes every algorithm's configs to a few candidates. These are compiled in parallel, checked against float64
(``accuracy.py``) and timed in turns with cold caches (``timing.py``). Of each algorithm and weight format the fastest is saved
(``cache.py``), so that a plan that is restricted to one of them is a measured one too.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from .. import context
from .. import gpu as gpus
from ..algorithms import registry
from ..algorithms.base import Config, with_prepacked
from ..gpu import Gpu
from ..log import logger
from ..ops.problem import Chain, Operands, Problem
from . import cache, timing
from .accuracy import Gate, draw
from .entry import Entry, of_measured
from .plan import Plan, at_least_one_image, excluded, plan, why_not_auto
from .timing import Call, Timer, Timing

TWINS = 2
"""Candidates of one algorithm and weight format with one estimate: the others differ in what the estimate does not see."""

TOP_K = 12
ROUNDS = 7
SEED = 0

TimerFactory = Callable[[Call, int, torch.device], Timer]
"""``timing.timer`` or a stand-in: (call, number of buffers, device) -> something with ``round() -> seconds``."""


@dataclass(frozen=True)
class Candidate:
    """A config that the cost model thinks worth measuring: its estimate in microseconds, and what limits it."""

    algorithm: str
    config: Config
    estimate_us: float
    limiter: str


@dataclass(frozen=True)
class Trial:
    """What became of a candidate: its timing, or why it was rejected."""

    candidate: Candidate
    timing: Timing | None = None
    rejected: str | None = None

    @property
    def microseconds(self) -> float | None:
        """The median; None for a rejected candidate."""
        return None if self.timing is None else self.timing.quantile(0.5)


@dataclass(frozen=True)
class Result:
    """What tuning one problem found.

    Attributes:
        plan: what will run: the fastest right candidate, or the cost model's choice where there is none.
        microseconds: its median; None where nothing was measured.
        estimate_us: what the cost model says of it.
        trials: every candidate, in the order of the estimates.
        notes: per algorithm that cannot serve the problem, or is left out, why not.
    """

    problem: Problem
    plan: Plan
    microseconds: float | None
    estimate_us: float
    trials: tuple[Trial, ...]
    notes: dict[str, str]

    @property
    def rejected(self) -> tuple[Trial, ...]:
        """The candidates that were wrong or failed."""
        return tuple(trial for trial in self.trials if trial.rejected is not None)


class ContextLost(RuntimeError):
    """A candidate, the first that met the error where it is known, ended the GPU's context: this process measures no more."""

    def __init__(self, problem: Problem, candidate: Candidate | None, reason: str) -> None:
        who = f"{candidate.algorithm} {candidate.config}" if candidate else "a candidate"
        super().__init__(
            f"the GPU was lost while {who} ran {problem}: {reason}; only a new process can measure the others"
            + (f", without {candidate.algorithm} where LK_TRITON_WITHOUT names it" if candidate else "")
        )
        self.candidate = candidate


Progress = Callable[[int, int, Result], object]
"""Called after each problem: how many are done, how many there are, what was found."""


def why_not(device: torch.device) -> str | None:
    """Why nothing may be measured on ``device`` now, or None."""
    if torch.are_deterministic_algorithms_enabled():
        return (
            "tuning is off in deterministic mode (torch.use_deterministic_algorithms), where a clock must not decide what "
            "runs: tune in another process beforehand (lk-triton tune), or without that mode"
        )
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return "cannot time kernels while a CUDA graph is being captured: tune before the capture"
    if gpus.of(device).backend not in ("cuda", "hip"):
        return f"nothing to tune on {device}: Triton kernels need a CUDA or ROCm GPU"
    return None


def with_layers(problems: Iterable[Problem]) -> list[Problem]:
    """The problems, each once, and a chain's layers before it: one kernel is compared with their best plans."""
    found: list[Problem] = []
    for problem in problems:
        found += [*problem.layers, problem] if isinstance(problem, Chain) else [problem]
    return list(dict.fromkeys(found))


def candidates(problem: Problem, gpu: Gpu, top_k: int = TOP_K) -> list[Candidate]:
    """The ``top_k`` most promising configs of all Triton algorithms that may be chosen, the best estimate first.

    The best of each algorithm and weight format is among them, as far as ``top_k`` allows, and at most ``TWINS`` of one kind
    that the estimate cannot tell apart.
    """
    found, left_out = [], {"torch", *excluded()}
    twins: Counter[tuple[object, ...]] = Counter()
    for name, algorithm in registry.meant_for(problem).items():
        if name not in left_out and algorithm.why_not(problem, gpu) is None:
            for config in algorithm.configs(problem, gpu):
                seconds, limiter = algorithm.estimate(problem, config, gpu)
                candidate = Candidate(name, config, seconds * 1e6, limiter)
                twin = (*kind(candidate), seconds)
                twins[twin] += 1
                if twins[twin] <= TWINS:
                    found.append(candidate)
    found.sort(key=lambda c: c.estimate_us)
    first_of_kind = {kind(c): c for c in reversed(found)}.values()
    chosen = sorted(found, key=lambda c: (c not in first_of_kind, c.estimate_us))[:top_k]
    return sorted(chosen, key=lambda c: c.estimate_us)


def kind(candidate: Candidate) -> tuple[str, str | None]:
    """The algorithm and the weight format, of each of which the fastest is kept."""
    return candidate.algorithm, registry.get(candidate.algorithm).weight_format(candidate.config)


@torch.inference_mode()
def tune_problems(
    problems: Sequence[Problem],
    device: torch.device,
    *,
    top_k: int = TOP_K,
    rounds: int = ROUNDS,
    timer: TimerFactory | None = None,
    save: bool = True,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Tune each distinct problem on ``device``; results are saved one by one, so that a crash loses one at most.

    After ``seconds`` no other problem is started, and the results so far are returned.

    Raises:
        ContextLost: a kernel ended the GPU's context, with an illegal access for instance.
        RuntimeError: under CUDA-graph capture, in deterministic mode, where there is no GPU, or where saving would be in vain.
    """
    reason = why_not(device)
    if reason is None and save and cache.ignored():
        reason = (
            f"in a distributed job only a cache that {cache.VARIABLE} names is used, so that all ranks take the same plans: "
            "set it to a directory that all ranks share, or tune before the job, or pass save=False"
        )
    if reason is not None:
        raise RuntimeError(reason)
    gpu = gpus.of(device)
    distinct = list(dict.fromkeys(map(at_least_one_image, problems)))
    results: list[Result] = []
    start = time.monotonic()
    for number, problem in enumerate(distinct, 1):
        if seconds is not None and time.monotonic() - start >= seconds:
            break
        with torch.autocast(device.type, enabled=False):
            trials = measure(problem, candidates(problem, gpu, top_k), device, rounds, timer)
        results.append(_conclude(problem, gpu, trials, save))
        if progress is not None:
            progress(number, len(distinct), results[-1])
    return results


def measure(
    problem: Problem, found: Sequence[Candidate], device: torch.device, rounds: int, timer: TimerFactory | None = None
) -> list[Trial]:
    """Compile, check and time candidates. One that is wrong or fails is rejected with the reason; the others go on.

    Raises:
        ContextLost: none of them can go on in this process.
    """
    if not found:
        return []
    timer = timer or partial(timing.timer, pool=timing.Pool())
    generator = torch.Generator(device).manual_seed(SEED)
    try:
        gate = Gate(problem, device, generator)
    except Exception as error:  # out of memory: none can be checked, so none is timed
        return [Trial(candidate, rejected=_rejection(problem, None, device, error)) for candidate in found]
    rejected: dict[Candidate, str] = {}
    runs = _first_runs(problem, found, gate, rejected)
    timers: dict[str, Timer] = {}
    maps = _Maps(problem, device, generator)
    for candidate, operands in runs.items():
        try:
            verdict = gate.check(lambda _, c=candidate, o=operands: launch(problem, c, o))
            if verdict.ok:
                timers[str(len(timers))] = _timer(problem, candidate, operands, maps, device, timer)
            else:
                rejected[candidate] = f"wrong: error {verdict.error:.2e}, allowed {verdict.allowed:.2e}"
                logger.warning("%s on %s, %s: %s; please report it", problem, device, candidate, rejected[candidate])
        except Exception as error:
            rejected[candidate] = _rejection(problem, candidate, device, error)
    right = [candidate for candidate in runs if candidate not in rejected]
    try:
        timings = dict(zip(right, timing.interleave(timers, rounds).values(), strict=True))
    except Exception as error:
        _rejection(problem, None, device, error)
        raise
    return [Trial(c, timings.get(c), rejected.get(c)) for c in found]


def launch(problem: Problem, candidate: Candidate, operands: Operands) -> Tensor:
    """Run a candidate as the op would, on operands with a weight that it reads."""
    return registry.get(candidate.algorithm).launch(problem, candidate.config, operands)


def _first_runs(
    problem: Problem, found: Sequence[Candidate], gate: Gate, rejected: dict[Candidate, str]
) -> dict[Candidate, Operands]:
    """Prepack for and launch every candidate once, and return the operands of those that could.

    That compiles them, in parallel: ptxas is a process of its own, and Triton's compiler releases the interpreter lock while
    its passes run (7 toeplitz kernels for sm_90 on 2 cores: 4.3 s with one thread, 2.2 s with two; Triton 3.8). The
    interpreter of TRITON_INTERPRET patches Triton itself while it runs, so there is one thread then.
    """
    device = next(iter(gate.operands.values())).device
    if device.type == "cuda":  # the threads have a stream of their own, this one has drawn what they read
        torch.cuda.current_stream(device).synchronize()
    ends: list[ContextLost] = []

    @torch.inference_mode()  # of each thread by itself
    def first_run(candidate: Candidate) -> Operands | str:
        try:
            operands = with_prepacked(registry.get(candidate.algorithm), problem, candidate.config, gate.operands)
            launch(problem, candidate, operands)
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
            return operands
        except Exception as error:
            try:
                return _rejection(problem, candidate, device, error)
            except ContextLost as end:
                ends.append(end)
                return str(end)

    workers = 1 if gpus.interpreted() else min(len(found), os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        outcomes = dict(zip(found, pool.map(first_run, found), strict=True))
    if ends:
        raise ends[0]
    rejected |= {candidate: reason for candidate, reason in outcomes.items() if isinstance(reason, str)}
    return {candidate: given for candidate, given in outcomes.items() if not isinstance(given, str)}


class _Maps:
    """Random maps of a problem, such as x and residual, as many as the hungriest candidate rotates through, shared by all."""

    def __init__(self, problem: Problem, device: torch.device, generator: torch.Generator) -> None:
        self._problem, self._place, self._generator = problem, device, generator
        self._drawn: list[Operands] = []

    def take(self, count: int) -> list[Operands]:
        """The first ``count`` of them."""
        maps = self._problem.maps()
        while len(self._drawn) < count:
            drawn = draw(self._problem, self._place, self._generator)
            self._drawn.append({role: drawn[role] for role in maps})
        return self._drawn[:count]


def _timer(
    problem: Problem, candidate: Candidate, operands: Operands, maps: _Maps, device: torch.device, timer: TimerFactory
) -> Timer:
    """Times a candidate over rotating operands: in a network other layers flush L2 between two calls of this one."""
    read = sum(tensor.nbytes for tensor in set(operands.values()))
    count = timing.buffers_for(read + prod(problem.out_shape) * problem.itemsize, device)
    rotating = []
    for drawn in maps.take(count):
        others = {role: tensor if not rotating else tensor.clone() for role, tensor in operands.items() if role not in drawn}
        rotating.append({role: {**drawn, **others}[role] for role in operands})
    return timer(lambda i: launch(problem, candidate, rotating[i]), count, device)


def _conclude(problem: Problem, gpu: Gpu, trials: list[Trial], save: bool) -> Result:
    """Save the fastest of each kind, and say what will run."""
    timed = sorted((us, i) for i, trial in enumerate(trials) if (us := trial.microseconds) is not None)
    fastest: dict[tuple[str, str | None], Entry] = {}
    for _, i in timed:
        fastest.setdefault(kind(trials[i].candidate), _entry(problem, trials[i]))
    if save and fastest:
        cache.record(gpu, list(fastest.values()))
    notes = {name: why for name in registry.meant_for(problem) if (why := why_not_auto(problem, gpu, name)) is not None}
    if not timed:
        chosen = plan(problem, gpu)
        estimate = chosen.estimate(problem, gpu).seconds * 1e6
        return Result(problem, chosen, None, estimate, tuple(trials), notes)
    microseconds, i = timed[0]
    best = trials[i].candidate
    chosen = Plan(best.algorithm, best.config, "user cache" if save else "measured")
    return Result(problem, chosen, microseconds, best.estimate_us, tuple(trials), notes)


def _entry(problem: Problem, trial: Trial) -> Entry:
    timing = trial.timing
    assert timing is not None
    return of_measured(
        problem,
        trial.candidate.algorithm,
        trial.candidate.config,
        microseconds=_five_digits(timing.quantile(0.5)),
        rounds=len(timing.rounds),
        spread=_five_digits(timing.spread),
    )


def _five_digits(value: float) -> float:
    """No timing has more."""
    return float(f"{value:.5g}")


def _rejection(problem: Problem, candidate: Candidate | None, device: torch.device, error: Exception) -> str:
    """Why a candidate that raised is rejected.

    Raises:
        ContextLost: the error ended the GPU's context.
    """
    reason = context.lost(device)
    if reason is not None:
        raise ContextLost(problem, candidate, reason) from error
    return f"{type(error).__name__}: {error}".splitlines()[0]
