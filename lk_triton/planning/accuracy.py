"""Correctness before speed: nothing is timed, by the tuner or by ``bench``, that fails this gate.

The rule: the error against float64 is at most twice torch's error in the same dtype, plus one rounding of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor

from ..ops import layout
from ..ops.problem import Chain, Operands, Problem, Spec

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


def draw(problem: Problem, device: torch.device, generator: torch.Generator | None = None) -> Operands:
    """Fresh random operands of ``problem``; outputs of convolutions are of the order of 1. A chain adds x, as in networks.

    A problem that asks for ``tf32`` gets values that TF32 holds exactly, so that float64 sees what the tensor cores see.
    """

    def normal(spec: Spec) -> Tensor:
        values = torch.randn(spec.shape, device=device, dtype=getattr(torch, spec.dtype), generator=generator)
        if problem.precision == "tf32":
            values.view(torch.int32).bitwise_and_(-1 << TF32_BITS)
        if spec.layout is not None:
            return layout.conform(values, spec.layout)
        # of a weight; a power of two keeps TF32 values exact
        return values * 2.0 ** -round(prod(spec.shape[1:]).bit_length() / 2)

    operands = {role: normal(spec) for role, spec in problem.inputs().items()}
    if isinstance(problem, Chain) and "residual" in operands:
        operands["residual"] = operands["x"]
    return operands


def doubled(operands: Operands) -> Operands:
    """The operands in float64."""
    return {role: tensor.double() for role, tensor in operands.items()}


def exactly(problem: Problem, operands: Operands) -> Tensor:
    """The problem in float64, as many images and channels at a time as a ``PIECE`` holds, as far as it can be taken apart.

    Returns:
        The output in the next wider type: float32 for 16-bit problems, whose rounding is 2**13 times as coarse, else float64.
    """
    x = next(iter(operands.values()))
    wide = torch.float64 if x.dtype in (torch.float32, torch.float64) else torch.float32
    y = torch.empty(problem.out_shape, dtype=wide, device=x.device)
    if not problem.batched:
        _by_channels(problem, operands, y)
        return y
    layers = problem.layers if isinstance(problem, Chain) else (problem,)
    largest = max(prod(spec.shape[1:]) for p in layers for spec in (*p.maps().values(), p.output()))  # of one image
    images = max(1, PIECE // largest)
    for n in range(0, problem.n, images):
        some = slice(n, n + images)
        _by_channels(*problem.of_images(operands, some), y[some])
    return y


def _by_channels(problem: Problem, operands: Operands, y: Tensor) -> None:
    """Write the output in float64 into ``y``: a ``PIECE`` at a time, or all at once where that cannot be taken apart."""
    channels = y.shape[int(problem.batched)]
    largest = max(prod(spec.shape) for spec in (*problem.maps().values(), problem.output()))
    count = max(1, PIECE * channels // largest)
    for first in range(0, channels, count):
        some = range(first, min(first + count, channels))
        part = problem.of_channels(operands, some) if len(some) < channels else None
        if part is None:
            y.copy_(problem.reference(doubled(operands)))
            return
        y.narrow(int(problem.batched), first, len(some)).copy_(part[0].reference(doubled(part[1])))


class Gate:
    """The references of one problem on one set of random operands, computed once for all candidates."""

    def __init__(self, problem: Problem, device: torch.device, generator: torch.Generator | None = None) -> None:
        self.operands = draw(problem, device, generator)
        # in NCHW torch's own kernels serve; cuDNN, which serves channels_last, may take TF32 and loosen the bound
        self._torch = problem.reference({role: tensor.contiguous() for role, tensor in self.operands.items()})
        self._exact = exactly(problem, self.operands)

    def check(self, run: Callable[[Operands], Tensor]) -> Verdict:
        """Judge ``run(operands)``. The memory that its output is likely to get is filled with NaN first."""
        poison = torch.full_like(self._torch, float("nan"))
        del poison
        return judge(run(self.operands), self._torch, self._exact)
