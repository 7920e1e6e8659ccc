"""The second call is a look-up: what a call decided, from its checks to its kernel, is remembered under all that decided it.

Only calls that nothing intercepts go this way, past torch's dispatcher: no tracing, mode, transform, cast, profiler or
gradient. What is remembered keeps no tensor alive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad, profiler

from .. import environment
from ..planning import plan
from .problem import Operands

Key = tuple[Any, ...]

LIMIT = 4096
"""Calls remembered; beyond, all are forgotten."""

TENSORS = (Tensor, torch.nn.Parameter)
OPTIONS = (type(None), str, int, tuple)
"""Types of what compares as it is: True and 1.0, which equal 1, are no options."""

STRIDED = torch.strided


class Call(NamedTuple):
    """What a call runs.

    Attributes:
        run: operands -> output.
        reads: each operand's role, and the argument that it is.
    """

    run: Callable[[Operands], Tensor]
    reads: tuple[tuple[str, str], ...]


_calls: dict[Key, Call] = {}


def key(op: object, arguments: Mapping[str, Any]) -> Key | None:
    """What decides a call, in values that compare: options, the tensors' forms, and what plans and launches depend on.

    None where a look-up would pass by what wants to see, or change, the operation; or what is no valid argument.
    """
    if torch.compiler.is_compiling() or _intercepted():
        return None
    x = arguments["x"]
    if type(x) not in TENSORS:
        return None
    differentiates = torch.is_grad_enabled()
    forms: list[Any] = [op, *arguments]
    for value in arguments.values():
        kind = type(value)
        if kind in OPTIONS:
            forms.append(value)
        elif kind not in TENSORS or value.is_neg() or (differentiates and value.requires_grad):
            return None
        elif value.layout is STRIDED:
            forms += (value.shape, value.stride(), value.dtype, value.device, value.data_ptr() % 16)
        else:  # as oneDNN packs weights: opaque
            forms += (value.shape, value.layout, value.dtype, value.device)
    return *forms, plan.state(x), environment.everything()


def find(key: Key) -> Call | None:
    """What ``remember`` was told; None where nothing was."""
    try:
        return _calls.get(key)
    except TypeError:  # a tuple of something
        return None


def remember(key: Key, call: Call) -> None:
    """Have ``find(key)`` return ``call``."""
    if len(_calls) >= LIMIT:
        _calls.clear()
    _calls[key] = call


def forget() -> None:
    """All calls."""
    _calls.clear()


def _intercepted() -> bool:
    """Whether something stands between a call of an operation and its implementation, in this thread."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_any_autocast_enabled()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or profiler._is_profiler_enabled
    )
