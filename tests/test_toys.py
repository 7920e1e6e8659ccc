"""A toy algorithm and a toy op, a file each: all that is asked of one more is in these files, and everything else finds it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.grad
from algorithms import test_invariants as invariants
from compilation import run_compiling
from planning.fakes import Clock
from serving import call, serving
from toy_algorithm import ToyAlgorithm, ToyConfig, registered
from toy_op import ToyModel, ToyProblem, ToySums, ToySumsConfig
from toy_op import registered as op_registered

import lk_triton
from lk_triton import gpu as gpus
from lk_triton.algorithms import registry
from lk_triton.functional import explain_problem
from lk_triton.ops.problem import ConvProblem, Epilogue, Operands
from lk_triton.ops.registration import OPS, Op
from lk_triton.ops.tracing import problems_of
from lk_triton.planning import agenda, cache, entry, nearest, tuner, verify
from lk_triton.planning.accuracy import Gate, draw, exactly
from lk_triton.planning.plan import Plan, plan

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
H100 = gpus.for_arch("h100")
LAYER = ConvProblem(2, 3, 6, 7, 5, 3, padding=(2, 1), dtype="float32", epilogue=Epilogue(True, "relu", True))
GRADIENT = ToyProblem(2, 3, 6, 5, 3)


@pytest.fixture
def toy_algorithm() -> Iterator[None]:
    with registered():
        yield
    assert "toy" not in registry.ALGORITHMS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's cache, empty."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    cache.reload()
    yield
    cache.reload()


# The algorithm


@pytest.mark.usefixtures("toy_algorithm")
def test_explain_lists_the_algorithm() -> None:
    x, weight, bias, residual = draw(LAYER, CPU).values()
    options: Any = {"activation": "relu", "residual": residual, "padding": LAYER.padding}
    explained = lk_triton.explain(x, weight, bias, **options)
    assert isinstance(explained.algorithms["toy"], float)
    assert "toy " in str(explained)
    refused = explain_problem(replace(LAYER, precision="tf32"), H100).algorithms["toy"]
    assert refused == "computes in IEEE float32, not in tf32"


@pytest.mark.usefixtures("toy_algorithm")
@pytest.mark.parametrize("kind", ["depthwise", "strided"])
def test_generic_tests_run_the_algorithm(kind: str) -> None:
    """They loop over ``serving``; these are some of them, on the problems that they take."""
    problem = replace(invariants.PROBLEMS[kind][0], dtype="bfloat16", epilogue=Epilogue(True))
    assert "toy" in serving(problem)
    case = invariants.Case("interpreted", "toy", kind, problem)
    assert str(case) in {str(found) for found in invariants.table()}
    invariants.test_operands_with_gaps(case)
    invariants.test_epilogue_order(case, "gelu")
    invariants.test_nan_stays_nan(case, "relu")
    for order in invariants.ORDERS:
        invariants.test_x_and_residual_in_other_memory_orders(case, order)


@pytest.mark.usefixtures("toy_algorithm", "folder")
def test_the_tuner_measures_the_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, plain = Clock(), ToyAlgorithm.launch

    def launch(self: ToyAlgorithm, problem: ConvProblem, config: ToyConfig, operands: Operands) -> torch.Tensor:
        clock.now += config.block * 1e-6
        return plain(self, problem, config, operands)

    monkeypatch.setattr(ToyAlgorithm, "launch", launch)
    gpu = gpus.of(CPU)
    found = [candidate for candidate in tuner.candidates(LAYER, gpu, 10**6) if candidate.algorithm == "toy"]
    assert len(found) == 2
    monkeypatch.setattr(tuner, "candidates", lambda *_: found)
    (result,) = lk_triton.tune([LAYER], timer=clock.timer)
    assert result.rejected == ()
    assert (result.plan.algorithm, result.plan.config) == ("toy", ToyConfig(128))
    assert result.microseconds == pytest.approx(128)
    (saved,) = cache.user_entries(LAYER, gpu)
    assert entry.from_json(json.loads(json.dumps(entry.to_json(saved)))) == saved
    cache.reload()
    assert plan(LAYER, gpu) == result.plan, "read from the file"


INSPECT = """
import sys
from toy_algorithm import registered
from lk_triton.cli import main
with registered():
    sys.exit(main("inspect --arch sm_90 --shape 1,4,8,8 --kernel 3,3 --algorithm toy --top 1 --json".split()))
"""


def test_inspect_compiles_the_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(lk_triton.__file__).parents[1]}")
    (found,) = json.loads(run_compiling(["-c", INSPECT]))
    assert found["algorithm"] == "toy"
    assert found["registers"] > 0
    assert found["spill_bytes"] == 0


def test_nothing_remembers_an_algorithm_that_is_gone() -> None:
    operands = draw(LAYER, CPU)
    with registered(), lk_triton.use(algorithm="toy"):
        assert plan(LAYER, gpus.of(CPU)).algorithm == "toy"
        assert call(LAYER, operands, "toy").shape == LAYER.out_shape
    assert plan(LAYER, gpus.of(CPU)).algorithm != "toy"
    with pytest.raises(ValueError, match="unknown algorithm 'toy'"):
        call(LAYER, operands, "toy")


# The op


@pytest.fixture
def toy() -> Iterator[Op]:
    with op_registered() as op:
        yield op
    assert op.op not in OPS


def compute(toy: Op, given: Operands, algorithm: str = "auto") -> torch.Tensor:
    """By the op, with a 3x3 kernel."""
    return toy(**given, kernel=3, algorithm=algorithm)


@pytest.mark.parametrize("order", ["nchw", "channels_last", "channel_major"])
def test_the_op_computes_the_weight_gradient(toy: Op, order: str) -> None:
    operands = draw(replace(GRADIENT, layout=order), CPU)
    expected = torch.nn.grad.conv2d_weight(operands["x"], (3, 1, 3, 3), operands["grad"], padding=1, groups=3)
    for algorithm in ("auto", "torch"):
        torch.testing.assert_close(compute(toy, operands, algorithm), expected)


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_of_the_op(toy: Op, grad: bool) -> None:
    operands = {role: tensor.requires_grad_(grad) for role, tensor in draw(GRADIENT, CPU).items()}
    results = torch.library.opcheck(toy.op, (*operands.values(), 3, "auto"))
    assert set(results.values()) == {"SUCCESS"}
    assert len(results) == 4


def test_the_op_has_gradients_and_autocast(toy: Op) -> None:
    operands = {role: tensor.double().requires_grad_() for role, tensor in draw(GRADIENT, CPU).items()}
    assert torch.autograd.gradcheck(lambda x, grad: compute(toy, {"x": x, "grad": grad}), tuple(operands.values()))
    with torch.autocast("cpu", torch.bfloat16):
        assert compute(toy, draw(GRADIENT, CPU)).dtype == torch.bfloat16


def test_explain_and_the_tuner_know_the_problem() -> None:
    explained = explain_problem(GRADIENT, H100)
    assert explained.algorithms.keys() == registry.meant_for(GRADIENT).keys() == {"torch"}
    assert explained.plan.algorithm == "torch"
    assert "(2, 3, 6, 5) 3x3 weight gradient float32 on" in str(explained)
    (result,) = lk_triton.tune([GRADIENT], save=False)
    assert (result.plan.algorithm, result.trials) == ("torch", ())


@pytest.mark.usefixtures("folder")
def test_an_algorithm_serves_the_op(toy: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the operands by their roles; the wrong config is rejected."""
    monkeypatch.setitem(registry.ALGORITHMS, "toy_sums", ToySums())
    explained = explain_problem(replace(GRADIENT, kernel=7), H100).algorithms
    assert explained["toy_sums"] == "a kernel of 7 is wider than 5"
    clock = Clock()

    def tick(_: int) -> None:
        clock.now += 1e-6

    (result,) = lk_triton.tune([GRADIENT], timer=lambda _, buffers, device: clock.timer(tick, buffers, device))
    assert [trial.candidate.config for trial in result.rejected] == [ToySumsConfig(0.1)]
    assert plan(GRADIENT, gpus.of(CPU)) == Plan("toy_sums", ToySumsConfig(), "user cache")
    given = draw(GRADIENT, CPU)
    expected = GRADIENT.reference(given)
    torch.testing.assert_close(compute(toy, given, "toy_sums"), expected)
    wrong, right = (verify.compare(GRADIENT, result.plan, expected * scale, given) for scale in (1.1, 1.0))
    assert wrong is not None
    assert right is not None
    assert (wrong.ok, right.ok) == (False, True)


def test_the_op_is_compiled_whole(toy: Op) -> None:
    given = draw(GRADIENT, CPU)
    compiled = torch.compile(lambda x, grad: compute(toy, {"x": x, "grad": grad}), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**given), GRADIENT.reference(given))


def test_tracing_records_the_problem(toy: Op) -> None:
    found = problems_of(ToyModel(toy).eval(), (2, 3, 6, 5))
    assert found == {GRADIENT: 1}
    assert GRADIENT in agenda.heaviest_first([found], H100)


def test_the_problem_is_written_and_read() -> None:
    data = json.loads(json.dumps(entry.problem_to_json(GRADIENT)))
    assert data["kind"] == "toy_weight_gradient"
    assert entry.problem_from_json(data) == GRADIENT
    config = registry.get("torch").configs(GRADIENT, H100)[0]
    measured = entry.of_measured(GRADIENT, "torch", config, microseconds=2.0, rounds=7, spread=1.0)
    assert entry.from_json(entry.to_json(measured)) == measured


def test_problems_that_are_alike() -> None:
    assert GRADIENT.alike(replace(GRADIENT, n=4, h=12))
    assert not GRADIENT.alike(replace(GRADIENT, kernel=5))
    assert not GRADIENT.alike(LAYER)
    assert nearest.distance(GRADIENT, replace(GRADIENT, n=4, h=12)) == 2


def test_the_gate_draws_and_judges_the_problem(toy: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(GRADIENT, CPU)
    assert {role: tuple(tensor.shape) for role, tensor in gate.operands.items()} == {"x": (2, 3, 6, 5), "grad": (2, 3, 6, 5)}
    assert gate.check(lambda given: compute(toy, given)).ok
    assert not gate.check(lambda given: 1.01 * compute(toy, given)).ok
    monkeypatch.setattr("lk_triton.planning.accuracy.PIECE", 60)  # a channel at a time
    whole = GRADIENT.reference({role: tensor.double() for role, tensor in gate.operands.items()})
    torch.testing.assert_close(exactly(GRADIENT, gate.operands), whole)
