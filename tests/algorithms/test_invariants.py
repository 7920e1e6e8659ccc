"""What holds for every algorithm: a table of the registry's algorithms x problems x dtypes, and one test per invariant.

A new algorithm is in the table by being registered, a new invariant is one test with the argument ``case``. Where no
algorithm's kernel can be interpreted, its cases are marked ``gpu``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from serving import MODES, call, running, serving
from torch import Tensor

from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.ops import layout
from lk_triton.ops.problem import (
    ACTIVATIONS,
    Chain,
    ConvProblem,
    DenseProblem,
    Epilogue,
    FfnProblem,
    Operands,
    Problem,
    StemProblem,
)
from lk_triton.planning.accuracy import doubled, draw, judge
from lk_triton.planning.plan import why_not

pytestmark = pytest.mark.usefixtures("one_thread")

DEPTHWISE = ConvProblem(2, 3, 6, 7, 5, 3, padding=(2, 1))
STRIDED = ConvProblem(2, 3, 7, 6, 3, 4, (2, 1), (1, 2), (1, 2))
PROBLEMS: dict[str, tuple[Problem, ...]] = {
    "depthwise": (DEPTHWISE, replace(DEPTHWISE, c=20), ConvProblem(2, 64, 14, 14, 27, 27, padding=(13, 13))),
    "strided": (STRIDED, replace(STRIDED, c=20)),
    "pointwise": (DenseProblem(2, 24, 5, 6, 20),),
    "dense": (DenseProblem(2, 4, 9, 8, 16, 3, 3, (2, 2), (1, 1)),),
    "ffn": (FfnProblem(2, 4, 3, 4, 8), FfnProblem(2, 64, 3, 4, 32, layout="channel_major", out_layout="channel_major")),
    "stem": (StemProblem(2, 4, 7, 6, 3),),
}
"""Of each kind the least that tells the axes apart; larger ones are for algorithms that do not serve it."""

DTYPES = ("float32", "bfloat16")
ORDERS = ("channel_major", "channels_last", "channel slice")
SPREADING = ("toeplitz", "toeplitz_hopper")
"""Documented to multiply whole windows by zeros, so that NaN in x reaches beyond the filter's footprint in its channel."""


@dataclass(frozen=True)
class Case:
    """An algorithm, how it runs here, and a problem that it serves; chains have the epilogue of networks."""

    mode: str
    algorithm: str
    kind: str
    problem: Any

    def __str__(self) -> str:
        return f"{self.algorithm}, {self.mode}-{self.kind}-{self.problem.dtype}"

    @property
    def device(self) -> torch.device:
        """Where its tensors lie."""
        return torch.device("cuda" if self.mode == "gpu" else "cpu")

    def serves(self, problem: Problem, x: Tensor | None = None) -> bool:
        """Whether the algorithm serves a variant of the problem, and in the memory order of ``x``."""
        if x is not None:
            order = layout.layout_of(x)
            orders = {"layout": order} if isinstance(problem, ConvProblem) else {"layout": order, "out_layout": order}
            problem = replace(problem, **orders)
        return why_not(problem, gpus.of(self.device), self.algorithm) is None

    def draw(self, problem: Problem) -> Operands:
        """Its tensors, the same for the same problem."""
        return draw(problem, self.device, torch.Generator(self.device).manual_seed(0))

    def check(self, problem: Problem, given: Operands) -> None:
        """The algorithm is as accurate on ``given`` as the library promises."""
        exact = problem.reference(doubled(given))
        by_torch = problem.reference({role: tensor.contiguous() for role, tensor in given.items()})
        verdict = judge(call(problem, given, self.algorithm), by_torch, exact)
        assert verdict.ok, verdict


def table() -> list[Any]:
    """Of each kind and dtype, and for each algorithm, the first problem that it serves; on a GPU what runs nowhere else."""
    found: dict[tuple[str, str, str, str], Case] = {}
    for mode, (kind, problems), dtype in product(MODES, PROBLEMS.items(), DTYPES):
        here = {case.algorithm for case in found.values() if case.mode != "gpu"}
        for problem in problems:
            posed = replace(problem, dtype=dtype)
            posed = posed if isinstance(posed, Chain) else replace(posed, epilogue=Epilogue(True))
            for name in serving(posed, mode):
                if mode != "gpu" or name not in here:
                    found.setdefault((mode, name, kind, dtype), Case(mode, name, kind, posed))
    return [pytest.param(case, marks=pytest.mark.gpu) if case.mode == "gpu" else case for case in found.values()]


TABLE = table()


@pytest.fixture(params=TABLE, ids=str)
def case(request: pytest.FixtureRequest) -> Any:
    case: Case = request.param
    with running(case.mode):
        if case.mode == "gpu" and not case.serves(case.problem):
            pytest.skip(f"{case.algorithm} does not serve this GPU")
        yield case


def test_every_algorithm_has_a_case() -> None:
    cases = [c if isinstance(c, Case) else c.values[0] for c in TABLE]
    assert {c.algorithm for c in cases} == set(registry.ALGORITHMS)


def last_bias(given: Operands) -> Tensor:
    """That of the last layer."""
    return [tensor for tensor in given.values() if tensor.dim() == 1][-1]


def spread(tensor: Tensor) -> Tensor:
    """The values of ``tensor`` with a gap behind each, where values lie that must not be read."""
    return torch.stack([tensor, torch.full_like(tensor, 1e6)], -1)[..., 0]


def in_order(tensor: Tensor, order: str) -> Tensor:
    """The values of ``tensor`` in another memory order."""
    if order != "channel slice":
        return layout.conform(tensor, order)
    n, c, h, w = tensor.shape
    return tensor.new_full((n, c + 3, h, w), 1e6)[:, 2 : c + 2].copy_(tensor)


@torch.no_grad()
def test_operands_with_gaps(case: Case) -> None:
    problem = case.problem
    given = case.draw(problem)
    case.check(problem, given)
    expected = call(problem, given, case.algorithm)
    for role, tensor in given.items():
        gapped = {**given, role: spread(tensor)}
        if case.serves(problem, gapped["x"]):
            torch.testing.assert_close(call(problem, gapped, case.algorithm), expected)


@torch.no_grad()
def test_a_bias_that_is_one_value(case: Case) -> None:
    problem = case.problem
    given = case.draw(problem)
    for role, tensor in given.items():
        if tensor.dim() == 1:
            one = tensor[:1].expand(len(tensor))
            expected = call(problem, {**given, role: one.contiguous()}, case.algorithm)
            assert torch.equal(call(problem, {**given, role: one}, case.algorithm), expected)


@torch.no_grad()
@pytest.mark.parametrize("order", ORDERS)
def test_x_and_residual_in_other_memory_orders(case: Case, order: str) -> None:
    takes_residual = not isinstance(case.problem, StemProblem)
    problem = replace(case.problem, epilogue=replace(case.problem.epilogue, residual=takes_residual))
    given = case.draw(problem)
    for x_order, residual_order in ((order, "nchw"), ("nchw", order), ("channel_major", order)):
        orders = {"x": x_order, "residual": residual_order}
        ordered = {role: in_order(t, orders[role]) if role in orders else t for role, t in given.items()}
        if case.serves(problem, ordered["x"]):
            case.check(problem, ordered)


@torch.no_grad()
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_epilogue_order(case: Case, activation: str | None) -> None:
    for residual in (False, True):
        problem = replace(case.problem, epilogue=Epilogue(True, activation, residual))
        if posed(problem) and case.serves(problem):
            case.check(problem, case.draw(problem))


def posed(problem: Any) -> bool:
    """Whether a public function takes a problem with this epilogue: chains have an activation, stems no residual."""
    epilogue = problem.epilogue
    return not isinstance(problem, Chain) or (
        epilogue.activation is not None and not (isinstance(problem, StemProblem) and epilogue.residual)
    )


@torch.no_grad()
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_nan_stays_nan(case: Case, activation: str | None) -> None:
    problem = replace(case.problem, epilogue=Epilogue(True, activation))
    if not posed(problem):
        return
    given = case.draw(problem)
    given["x"][1, 0, 2, 2] = float("nan")
    last_bias(given)[2] = float("nan")
    exact = problem.reference(doubled(given))
    y, expected = call(problem, given, case.algorithm).isnan(), exact.isnan()
    assert expected.any()
    assert y[expected].all()
    assert torch.equal(y[0], expected[0])
    if isinstance(problem, ConvProblem):
        touched = expected.any((2, 3))[:, :, None, None]
        assert not y[~touched.expand_as(y)].any(), "other channels"
    if case.algorithm not in SPREADING:
        assert torch.equal(y, expected)


@torch.no_grad()
@pytest.mark.parametrize("activation", [None, "relu", "silu"])  # GELU(inf) is NaN by some of torch's own kernels
def test_infinities_before_an_activation(case: Case, activation: str | None) -> None:
    problem = replace(case.problem, epilogue=Epilogue(True, activation))
    if not posed(problem):
        return
    given = case.draw(problem)
    last_bias(given)[:3] = torch.tensor([float("inf"), float("-inf"), -1e4])
    y, expected = call(problem, given, case.algorithm), problem.reference(given)
    torch.testing.assert_close(y[:, :3], expected[:, :3], equal_nan=True, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_empty_batch(case: Case) -> None:
    problem = replace(case.problem, n=0)
    given = case.draw(problem)
    if case.serves(replace(problem, n=1), given["x"]):  # whose memory order says nothing
        assert call(problem, given, case.algorithm).shape == problem.out_shape


@torch.no_grad()
def test_a_batch_of_many_tiles(case: Case) -> None:
    """More images than a tile has, and more tiles than one, on the smallest maps."""
    problem = replace(case.problem, n=64, h=3, w=4)
    case.check(problem, case.draw(problem))


@torch.no_grad()
def test_inputs_are_left_alone(case: Case) -> None:
    problem = replace(case.problem, epilogue=Epilogue(True, "silu", not isinstance(case.problem, StemProblem)))
    problem = problem if case.serves(problem) else case.problem
    given = case.draw(problem)
    before = {role: tensor.clone() for role, tensor in given.items()}
    call(problem, given, case.algorithm)
    assert all(torch.equal(tensor, before[role]) for role, tensor in given.items())
