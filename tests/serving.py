"""Which algorithms can serve a problem, and where: in Triton's interpreter, on a CPU as for a user, or on a GPU.

Tests loop over what this finds in the registry. No test says by name which algorithm runs where: ``why_not`` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from lk_triton import conv_ffn, conv_stem, dense_conv2d, depthwise_conv2d
from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.ops.problem import ConvProblem, DenseProblem, FfnProblem, Operands, Problem
from lk_triton.planning.plan import why_not

MODES = {"interpreted": "1", "cpu": "0", "gpu": "0"}
"""Value of TRITON_INTERPRET. ``interpreted``: the kernels, on CPU tensors. ``cpu``: what serves a user's CPU."""


@contextmanager
def running(mode: str) -> Iterator[None]:
    """Run in ``mode``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", MODES[mode])
        yield


def serving(problem: Problem, mode: str = "interpreted") -> list[str]:
    """The algorithms that serve ``problem`` in ``mode``, in the registry's order; on a GPU: on an H100."""
    with running(mode):
        gpu = gpus.for_arch("h100") if mode == "gpu" else gpus.of(torch.device("cpu"))
        return [name for name in registry.meant_for(problem) if why_not(problem, gpu, name) is None]


def call(problem: Any, operands: Operands, algorithm: str = "auto") -> torch.Tensor:
    """``problem`` by the public function of its kind; the layouts are those of the tensors."""
    options: Any = {"activation": problem.epilogue.activation, "precision": problem.precision, "algorithm": algorithm}
    if isinstance(problem, ConvProblem):
        geometry: Any = {"stride": problem.stride, "padding": problem.padding, "dilation": problem.dilation}
        return depthwise_conv2d(**operands, **geometry, **options)
    if isinstance(problem, DenseProblem):
        return dense_conv2d(**operands, stride=problem.stride, padding=problem.padding, **options)
    return (conv_ffn if isinstance(problem, FfnProblem) else conv_stem)(**operands, **options)
