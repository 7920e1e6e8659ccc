"""An op and an algorithm that the library does not have: the weight gradient of a depthwise convolution, by torch and by sums.

``test_toys.py`` runs this file in a process of its own, since an op stays registered.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

import lk_triton
from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.algorithms.base import Estimate, Versioned
from lk_triton.functional import explain_problem
from lk_triton.ops import layout
from lk_triton.ops.base import Operands, Problem, Spec
from lk_triton.ops.registration import register
from lk_triton.ops.tracing import Recorder
from lk_triton.planning import accuracy, entry, verify
from lk_triton.planning.plan import Plan, plan

# The op


@dataclass(frozen=True)
class WeightGradient(Problem):
    """x and grad (n, c, h, w) of a convolution that keeps the size -> the gradient of its weight (c, 1, k, k)."""

    kind: ClassVar[str] = "toy_weight_gradient"
    plural: ClassVar[str] = "weight gradients"
    batched: ClassVar[bool] = False

    n: int
    c: int
    h: int
    w: int
    k: int
    dtype: str = "float32"
    layout: str = "nchw"
    precision: str | None = None

    def inputs(self) -> dict[str, Spec]:
        of_maps = Spec((self.n, self.c, self.h, self.w), self.dtype, self.layout)
        return {"x": of_maps, "grad": of_maps}

    def output(self) -> Spec:
        return Spec((self.c, 1, self.k, self.k), self.dtype)

    def reference(self, operands: Operands) -> Tensor:
        x, grad = (operands[role].transpose(0, 1).flatten(0, 1)[None] for role in ("x", "grad"))
        one = F.conv2d(x, grad.transpose(0, 1), padding=self.k // 2, groups=self.n * self.c)
        return one.view(self.c, self.n, self.k, self.k).sum(1, keepdim=True)

    @property
    def nominal_macs(self) -> int:
        return self.n * self.c * self.h * self.w * self.k**2


def problem_of(*, x: Tensor, grad: Tensor, k: int) -> WeightGradient:
    n, c, h, w = x.shape
    return WeightGradient(n, c, h, w, k, str(x.dtype).removeprefix("torch."), layout.layout_of(x))


toy = register("toy_weight_gradient(Tensor x, Tensor grad, int k, str algorithm) -> Tensor", problem_of)


# The algorithm


@dataclass(frozen=True)
class SumsConfig:
    fault: float = 0.0


class Sums(Versioned):
    """Tap by tap."""

    name = "toy_sums"
    versions: ClassVar = {"toy_sums": 1}
    config_type = SumsConfig
    problems = (WeightGradient,)

    def why_not(self, problem: WeightGradient, gpu: gpus.Gpu) -> str | None:
        return None if problem.k <= 5 else f"a kernel of {problem.k} is wider than 5"

    def configs(self, problem: WeightGradient, gpu: gpus.Gpu) -> list[SumsConfig]:
        return [SumsConfig(0.1), SumsConfig()]

    def estimate(self, problem: WeightGradient, config: SumsConfig, gpu: gpus.Gpu) -> Estimate:
        return Estimate(1e-6 * (2 - config.fault), "fma")

    def issued_macs(self, problem: WeightGradient, config: SumsConfig) -> int:
        return problem.nominal_macs

    def launch(self, problem: WeightGradient, config: SumsConfig, operands: Operands) -> Tensor:
        k, (h, w) = problem.k, (problem.h, problem.w)
        x = F.pad(operands["x"], (k // 2,) * 4)
        taps = [(x[:, :, i : i + h, j : j + w] * operands["grad"]).sum((0, 2, 3)) for i in range(k) for j in range(k)]
        return torch.stack(taps, 1).view(problem.out_shape) * (1 + config.fault)


registry.ALGORITHMS["toy_sums"] = Sums()


# What follows from them


class Seconds:
    """Stands in for a timer."""

    def __init__(self, *_: Any) -> None: ...

    def round(self) -> float:
        return 1e-6


def main() -> None:
    """Raises AssertionError where something does not know them."""
    os.environ["TRITON_INTERPRET"], os.environ["LK_TRITON_CACHE_DIR"] = "1", tempfile.mkdtemp()
    cpu = torch.device("cpu")
    problem = WeightGradient(2, 3, 6, 5, 3)
    given = accuracy.draw(problem, cpu, torch.Generator().manual_seed(0))
    expected = problem.reference(given)
    assert set(explain_problem(problem, gpus.of(cpu)).algorithms) == {"torch", "toy_sums"}
    assert "wider" in str(explain_problem(WeightGradient(2, 3, 9, 9, 7), gpus.of(cpu)).algorithms["toy_sums"])
    assert entry.problem_from_json(entry.problem_to_json(problem)) == problem
    assert problem.alike(WeightGradient(9, 3, 8, 8, 3))
    assert not problem.alike(WeightGradient(2, 4, 6, 5, 3))

    (result,) = lk_triton.tune([problem], timer=Seconds)
    assert [trial.candidate.config for trial in result.rejected] == [SumsConfig(0.1)], "the wrong one"
    assert plan(problem, gpus.of(cpu)) == Plan("toy_sums", SumsConfig(), "user cache")
    wrong, right = (verify.compare(problem, result.plan, expected * scale, given) for scale in (1.1, 1.0))
    assert right is not None
    assert wrong is not None
    assert right.ok
    assert not wrong.ok

    op = torch.ops.lk_triton.toy_weight_gradient.default
    torch.testing.assert_close(op(given["x"], given["grad"], 3, "auto"), expected)
    torch.testing.assert_close(toy(**given, k=3, algorithm="torch"), expected)
    compiled = torch.compile(lambda x, grad: toy(x=x, grad=grad, k=3, algorithm="auto"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**given), expected)
    doubles = {role: tensor.double().requires_grad_() for role, tensor in given.items()}
    for grad in (False, True):
        tensors = [tensor.detach().clone().requires_grad_(grad) for tensor in given.values()]
        assert set(torch.library.opcheck(op, (*tensors, 3, "torch")).values()) == {"SUCCESS"}
    assert torch.autograd.gradcheck(lambda *tensors: toy(x=tensors[0], grad=tensors[1], k=3, algorithm="auto"),
                                    tuple(doubles.values()))  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        assert toy(**given, k=3, algorithm="auto").dtype == torch.bfloat16
    with Recorder() as recorder, torch.no_grad():
        toy(**given, k=3, algorithm="auto")
    assert recorder.problems == {problem: 1}


if __name__ == "__main__":
    main()
