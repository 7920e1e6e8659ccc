"""A toy op: the gradient of a depthwise layer's weight, (x, grad) -> weight, at stride 1 with padding that keeps the size.

It is all that a new op needs: the problem, with its operands, its output and a reference, and one registration. The ops of the
library are a file each in ``lk_triton/ops``. torch serves by the reference, or ``ToySums``, an algorithm
without a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from lk_triton.algorithms.base import Versioned
from lk_triton.algorithms.cost.roofline import Estimate
from lk_triton.gpu import Gpu
from lk_triton.ops import layout, registration
from lk_triton.ops.problem import Operands, Problem, Spec


@dataclass(frozen=True)
class ToyProblem(Problem):
    """x and grad (n, c, h, w), out (c, 1, kernel, kernel), which has no dimension of images."""

    kind: ClassVar[str] = "toy_weight_gradient"
    plural: ClassVar[str] = "toy weight gradients"
    batched: ClassVar[bool] = False

    n: int
    c: int
    h: int
    w: int
    kernel: int
    dtype: str = "float32"
    layout: str = "nchw"
    precision: str | None = None

    def inputs(self) -> dict[str, Spec]:
        one = Spec((self.n, self.c, self.h, self.w), self.dtype, self.layout)
        return {"x": one, "grad": one}

    def output(self) -> Spec:
        return Spec((self.c, 1, self.kernel, self.kernel), self.dtype)

    def reference(self, operands: Operands) -> Tensor:
        """A convolution of each channel of each image with its gradient, summed over the images."""
        images = self.n * self.c
        x, grad = (operands[role].reshape(1, images, self.h, self.w) for role in ("x", "grad"))
        each = torch.nn.functional.conv2d(x, grad.transpose(0, 1), padding=self.kernel // 2, groups=images)
        return each.reshape(self.n, self.c, self.kernel, self.kernel).sum(0)[:, None]

    @property
    def nominal_macs(self) -> int:
        return self.n * self.c * self.h * self.w * self.kernel**2

    def of_channels(self, operands: Operands, some: Sequence[int]) -> tuple[ToyProblem, Operands]:
        given = list(some)
        return replace(self, c=len(given)), {role: tensor[:, given] for role, tensor in operands.items()}

    def __str__(self) -> str:
        return self._text(f"{self.kernel}x{self.kernel} weight gradient", layout="nchw")


def problem_of(*, x: Tensor, grad: Tensor, kernel: int) -> ToyProblem:
    """The problem that these tensors pose."""
    n, c, h, w = x.shape
    return ToyProblem(n, c, h, w, kernel, str(x.dtype).removeprefix("torch."), layout.layout_of(x))


SCHEMA = "toy_weight_gradient(Tensor x, Tensor grad, int kernel, str algorithm) -> Tensor"


@contextmanager
def registered() -> Iterator[registration.Op]:
    """The op is registered inside the ``with`` block."""
    with torch.library._scoped_library("lk_triton", "FRAGMENT") as library, pytest.MonkeyPatch.context() as patch:
        patch.setattr(registration, "_library", library)  # torn down behind the block
        op = registration.register(SCHEMA, problem_of)
        try:
            yield op
        finally:
            del registration.OPS[op.op]


@dataclass(frozen=True)
class ToySumsConfig:
    """``fault`` spoils the result."""

    fault: float = 0.0


class ToySums(Versioned):
    """Tap by tap."""

    name = "toy_sums"
    versions: ClassVar = {"toy_sums": 1}
    config_type = ToySumsConfig
    problems = (ToyProblem,)

    def why_not(self, problem: ToyProblem, gpu: Gpu) -> str | None:
        return None if problem.kernel <= 5 else f"a kernel of {problem.kernel} is wider than 5"

    def configs(self, problem: ToyProblem, gpu: Gpu) -> list[ToySumsConfig]:
        return [ToySumsConfig(0.1), ToySumsConfig()]

    def estimate(self, problem: ToyProblem, config: ToySumsConfig, gpu: Gpu) -> Estimate:
        return Estimate(1e-6 * (2 - config.fault), "fma")

    def issued_macs(self, problem: ToyProblem, config: ToySumsConfig) -> int:
        return problem.nominal_macs

    def launch(self, problem: ToyProblem, config: ToySumsConfig, operands: Operands) -> Tensor:
        k, h, w = problem.kernel, problem.h, problem.w
        x = torch.nn.functional.pad(operands["x"], (k // 2,) * 4)
        taps = [(x[:, :, i : i + h, j : j + w] * operands["grad"]).sum((0, 2, 3)) for i in range(k) for j in range(k)]
        return torch.stack(taps, 1).view(problem.out_shape) * (1 + config.fault)


class ToyModel(torch.nn.Module):
    """Calls the op."""

    def __init__(self, op: registration.Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x=x, grad=x.relu(), kernel=3, algorithm="auto")
