"""Correctness before speed: nothing is timed, by the tuner or by ``bench``, that fails this gate.

The rule: the error against float64 is at most twice torch's error in the same dtype, plus one rounding of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..algorithms.base import Weights
from ..algorithms.torch_ import activate, convolve
from ..ops import layout
from ..ops.problem import Chain, ConvProblem, Problem

TF32_BITS = 13
"""Bits of a float32's significand that TF32 does not have."""

PIECE = 1 << 24
"""Elements that are in float64 at once, as far as images, and channels of depthwise layers, can be taken apart: 128 MiB."""


@dataclass(frozen=True)
class Verdict:
    """Errors are the largest absolute ones, relative to the largest exact output; NaN where the output is not finite."""

    error: float
    torch_error: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the result may be timed."""
        return self.error <= self.allowed  # False for NaN

    @property
    def gate(self) -> str:
        """``ok`` or ``failed``, as tables of results say it."""
        return "ok" if self.ok else "failed"


def judge(result: Tensor, torch_result: Tensor, exact: Tensor) -> Verdict:
    """Compare ``result`` with ``exact`` (float64), by what torch reaches in the same dtype.

    Raises:
        ValueError: the result has another shape or dtype than torch's.
    """
    if result.shape != torch_result.shape or result.dtype != torch_result.dtype:
        raise ValueError(
            f"wrong output: {tuple(result.shape)} {result.dtype}, expected {tuple(exact.shape)} {torch_result.dtype}"
        )
    found = [
        torch.stack([(r.double() - e).abs().max() for r in (given, by_torch)] + [e.double().abs().max()])
        for given, by_torch, e in pieces(result, torch_result, exact)
    ]
    error, torch_error, largest = torch.stack(found).amax(0).tolist()  # NaN where one is
    error, torch_error = (each / max(largest, 1e-30) for each in (error, torch_error))
    return Verdict(error, torch_error, 2 * torch_error + torch.finfo(result.dtype).eps)


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, all cut alike, so that each piece has at most ``PIECE`` elements."""
    first = tensors[0]
    dim = next((d for d, size in enumerate(first.shape) if size > 1), None)
    if first.numel() <= PIECE or dim is None:
        yield tensors
        return
    parts = min(first.shape[dim], ceil(first.numel() / PIECE))
    for cut in zip(*(tensor.chunk(parts, dim) for tensor in tensors), strict=True):
        yield from pieces(*cut)


class Inputs(NamedTuple):
    """x (N, C, H, W) in the problem's layout, the weight (``weight_shape``), and what the epilogue asks for: bias of the
    output's channels, residual of the output's shape and layout. A chain has tuples of
    both, and a ConvFFN adds x, as in networks."""

    x: Tensor
    weight: Weights
    bias: Weights | None
    residual: Tensor | None


def draw(problem: Problem, device: torch.device, generator: torch.Generator | None = None) -> Inputs:
    """Fresh random tensors of ``problem``; outputs are of the order of 1.

    A problem that asks for ``tf32`` gets values that TF32 holds exactly, so that float64 sees what the tensor cores see.
    """

    if isinstance(problem, Chain):
        xs, weights, biases, _ = zip(*(draw(layer, device, generator) for layer in problem.layers), strict=True)
        return Inputs(xs[0], weights, None if biases[0] is None else biases, xs[0] if problem.epilogue.residual else None)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(shape, device=device, dtype=getattr(torch, problem.dtype), generator=generator)
        if problem.precision == "tf32":
            values.view(torch.int32).bitwise_and_(-1 << TF32_BITS)
        return values

    n, out_channels, oh, ow = problem.out_shape
    weight = normal(*problem.weight_shape)
    scale = 2.0 ** -round(prod(problem.weight_shape[1:]).bit_length() / 2)  # a power of two keeps TF32 values exact
    return Inputs(
        x=layout.conform(normal(n, problem.c, problem.h, problem.w), problem.layout),
        weight=weight * scale,
        bias=normal(out_channels) if problem.epilogue.bias else None,
        residual=layout.conform(normal(n, out_channels, oh, ow), problem.out_layout) if problem.epilogue.residual else None,
    )


def eager(problem: Problem, x: Tensor, weight: Weights, bias: Weights | None, residual: Tensor | None = None) -> Tensor:
    """The problem by torch's own operations, in the dtype of the tensors."""
    if isinstance(problem, Chain):
        for layer, w, b in zip(problem.layers, weight, bias or (None,) * len(weight), strict=True):
            x = eager(layer, x, w, b)
        return x if residual is None else x + residual
    y = activate(convolve(problem, x, weight, bias), problem.epilogue.activation)
    return y if residual is None else y + residual


def exactly(problem: Problem, inputs: Inputs) -> Tensor:
    """The problem in float64, as many images (and channels of a depthwise layer) at a time as a ``PIECE`` holds.

    Returns:
        The output in the next wider type: float32 for 16-bit problems, whose rounding is 2**13 times as coarse, else float64.
    """
    wide = torch.float64 if inputs.x.dtype in (torch.float32, torch.float64) else torch.float32
    y = torch.empty(problem.out_shape, dtype=wide, device=inputs.x.device)
    layers = problem.layers if isinstance(problem, Chain) else (problem,)
    largest = max(prod(shape[1:]) for shape in (inputs.x.shape, *(layer.out_shape for layer in layers)))  # of one image
    images = max(1, PIECE // largest)
    for n in range(0, problem.n, images):
        some = slice(n, n + images)
        x, residual = inputs.x[some], None if inputs.residual is None else inputs.residual[some]
        for into, piece in _by_channels(replace(problem, n=len(x)), Inputs(x, inputs.weight, inputs.bias, residual)):
            y[some, into] = piece
    return y


def _by_channels(problem: Problem, inputs: Inputs) -> Iterator[tuple[slice, Tensor]]:
    """(output channels, their values): of a depthwise layer a ``PIECE`` at a time, of others all at once."""
    if not isinstance(problem, ConvProblem):
        yield slice(None), eager(problem, *_doubled(*inputs))
        return
    x, weight, bias, residual = inputs
    count = max(1, PIECE * problem.c // max(x.numel(), prod(problem.out_shape)))
    for c in range(0, problem.c, count):
        some = x[:, c : c + count]
        out = slice(c * problem.multiplier, (c + count) * problem.multiplier)
        part = replace(problem, c=some.shape[1])
        own = (None if each is None else each[out] for each in (weight, bias))
        yield out, eager(part, *_doubled(some, *own, None if residual is None else residual[:, out]))


def _doubled(*tensors: Any) -> Any:
    """The tensors in float64; None and tuples stay what they are."""
    return tree_map_only(Tensor, Tensor.double, tensors)


class Gate:
    """The references of one problem on one set of random inputs, computed once for all candidates."""

    def __init__(self, problem: Problem, device: torch.device, generator: torch.Generator | None = None) -> None:
        self.x, self.weight, self.bias, self.residual = inputs = draw(problem, device, generator)
        # in NCHW torch's own kernels serve; cuDNN, which serves channels_last, may take TF32 and loosen the bound
        self._torch = eager(problem, self.x.contiguous(), *inputs[1:])
        self._exact = exactly(problem, inputs)

    def check(self, run: Callable[[Tensor], Tensor]) -> Verdict:
        """Judge ``run(x)``. The memory that its output is likely to get is filled with NaN first."""
        poison = torch.full_like(self._torch, float("nan"))
        del poison
        return judge(run(self.x), self._torch, self._exact)
