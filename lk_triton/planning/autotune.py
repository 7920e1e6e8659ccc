"""What a call does about a problem that nobody has measured: says once how to measure, or tunes (LK_TRITON_AUTOTUNE=1)."""

from __future__ import annotations

import os
import threading

import torch

from .. import gpu as gpus
from ..log import logger
from ..ops.problem import Problem
from . import cache, tuner
from .plan import Plan, plan

VARIABLE = "LK_TRITON_AUTOTUNE"
UNMEASURED = ("cost model", "nearest shipped entry")
"""Sources of plans whose problem was not measured on this device."""

_told: set[str] = set()
"""What has been warned of, which is done once."""

_tuned: set[tuple[Problem, gpus.Gpu]] = set()
_tuning = threading.RLock()


def plan_for_call(problem: Problem, device: torch.device, algorithm: str, bank_format: str | None) -> Plan:
    """The plan for a call on tensors on ``device``; see ``plan``."""
    gpu = gpus.of(device)
    chosen = plan(problem, gpu, algorithm, bank_format)
    nothing_to_measure = chosen.algorithm == "torch" or gpu.backend not in ("cuda", "hip")
    if chosen.source not in UNMEASURED or nothing_to_measure:
        return chosen
    if os.environ.get(VARIABLE) == "1":
        _tune_once(problem, device, gpu)
        return plan(problem, gpu, algorithm, bank_format)
    if not gpus.interpreted():
        _warn(gpu.name, f"no measured plan for {problem} on {gpu.name}: it comes from the {chosen.source}. To measure: "
              f"lk-triton tune (a network), lk_triton.tune(model, example), or {VARIABLE}=1 (said once)")  # fmt: skip
    return chosen


def may_tune(chosen: Plan) -> bool:
    """Whether a later call with this plan may have its problem tuned: the next one, or the one after it."""
    return os.environ.get(VARIABLE) == "1" and chosen.source in UNMEASURED


def _tune_once(problem: Problem, device: torch.device, gpu: gpus.Gpu) -> None:
    """Tune, unless that was tried before in this process or may not be done now. A failure must not reach the call."""
    with _tuning:
        if (problem, gpu) in _tuned or problem.n == 0 or cache.user_entries(problem, gpu):
            return
        # Each rank would time for itself, and choose for itself.
        reason = "this is one rank of a distributed job" if cache.distributed() else tuner.why_not(device)
        if reason is not None:
            _warn(reason, f"{VARIABLE}=1 does nothing here: {reason}")
            return
        _tuned.add((problem, gpu))
        logger.info("%s=1: tuning %s on %s", VARIABLE, problem, gpu.name)
        try:
            tuner.tune_problems(tuner.with_layers([problem]), device)
        except Exception as error:  # out of memory, an unwritable cache, ...
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            logger.warning("tuning %s on %s failed, its plan stays an unmeasured one: %s", problem, gpu.name, reason)


def _warn(key: str, text: str) -> None:
    if key not in _told:
        _told.add(key)
        logger.warning(text)
