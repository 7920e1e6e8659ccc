"""Calls under transforms of ``torch.func`` and in forward-mode AD: by torch's own operations, which have rules for them all.

The registered ops have a rule for the backward pass alone: they would drop a tangent without a word.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .base import Operands, Problem
from .validation import autocast_dtype


def active(*tensors: Tensor | None, algorithm: str = "auto") -> bool:
    """Whether a transform of ``torch.func`` (``grad``, ``jvp``, ``vmap``, ...) is active, or one of ``tensors`` is dual.

    Raises:
        ValueError: so it is, and the call forces an algorithm other than torch's.
    """
    if not torch._C._are_functorch_transforms_active():
        if forward_ad._current_level < 0:
            return False
        if all(t is None or forward_ad.unpack_dual(t).tangent is None for t in tensors):
            return False
    if algorithm not in ("auto", "torch"):
        raise ValueError(
            f"algorithm={algorithm!r} has no rule for torch.func's transforms nor for forward-mode AD: use algorithm='auto', "
            "which takes torch there"
        )
    return True


def compute(problem: Problem, operands: Operands) -> Tensor:
    """``problem`` by torch's operations, none of them in place; the memory order is torch's choice. Honours autocast."""
    like = next(iter(operands.values()))
    dtype = autocast_dtype(like)
    if dtype is None:
        return problem.reference(operands)
    with torch.amp.autocast(like.device.type, enabled=False):
        return problem.reference({role: tensor.to(dtype) for role, tensor in operands.items()})
