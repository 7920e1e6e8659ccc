"""RepLKNets by name: with the weights of a checkpoint or random ones, and the problems that their layers pose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch

from ..models import RepLKNet, create_model, inspect_checkpoint, randomize_
from ..ops.problem import Problem
from ..ops.tracing import problems_of
from .options import UsageError

SEED = 0
"""Of random weights."""


def load(name: str, checkpoint: str | None = None) -> RepLKNet:
    """The network in the form of ``checkpoint``, with its head; without a file in the training form, with random weights.

    Raises:
        ValueError, OSError, ImportError: there is no such network, or ``checkpoint`` cannot be loaded into it.
    """
    if checkpoint is None:
        torch.manual_seed(SEED)
        return randomize_(create_model(name), SEED)
    form, classes = inspect_checkpoint(checkpoint)
    options: dict[str, Any] = {} if form == "training" else {form: True}
    return create_model(name, checkpoint, num_classes=classes, **options)


def fused_problems(
    name: str, batches: Sequence[int], sizes: Sequence[int], dtypes: Sequence[str]
) -> list[Counter[Problem]]:
    """How many layers of the fused network pose each problem, of each dtype, size and batch, the batch changing fastest.

    The network runs on the meta device: nothing is allocated or computed.

    Raises:
        UsageError: there is no such network.
    """
    try:
        network = create_model(name, device="meta").eval().reparameterize()
    except ValueError as error:
        raise UsageError(str(error)) from None
    return [
        problems_of(network.to(getattr(torch, dtype)), (batch, 3, size, size))
        for dtype, size, batch in product(dtypes, sizes, batches)
    ]
