"""Which problems a model poses: its forward is run once, with the library's ops caught instead of computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .base import Problem
from .registration import OPS


class Recorder(TorchDispatchMode):
    """Counts, in ``problems``, the problems of every call of the library's ops inside the ``with`` block.

    An op answers with zeros of the right shape and layout. Calls that force torch, which has nothing to tune, are run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.problems: Counter[Problem] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op = OPS.get(func)
        given = {} if op is None else op.arguments(args, kwargs)
        if op is None or given["algorithm"] == "torch":
            return func(*args, **(kwargs or {}))
        self.problems[op.problem(given)] += 1
        return op.fake(**given).zero_()


def problem_of_call(func: Any, args: Sequence[Any]) -> Problem:
    """The problem that a call of one of the library's ops poses."""
    return OPS[func].problem(OPS[func].arguments(args))


def problems_of(model: nn.Module, *examples: Tensor | Sequence[int]) -> Counter[Problem]:
    """The distinct problems of ``model(*examples)``, in the order of the layers, and how many layers pose each.

    Args:
        model: in eval mode. All but the library's layers is computed; on the meta device, which stands for a GPU, nothing is.
        examples: tensors, taken as they are, or shapes, which stand for zeros in the dtype and on the device of the model.

    Raises:
        RuntimeError: the model is in training mode, where a forward would change its BatchNorm statistics.
        ValueError: there are no examples.
    """
    if any(module.training for module in model.modules()):
        raise RuntimeError("tuning runs the model on zeros, which would change BatchNorm statistics: call .eval() on it first")
    if not examples:
        raise ValueError("a model is recorded on example inputs: pass tensors or shapes, such as (64, 3, 224, 224)")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    inputs = [e if isinstance(e, Tensor) else torch.zeros(tuple(e), dtype=like.dtype, device=like.device) for e in examples]
    with torch.no_grad(), Recorder() as recorder:
        model(*inputs)
    return recorder.problems
