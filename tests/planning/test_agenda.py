"""What is tuned first: the heaviest, by count and estimate, of every network alike; a chain's layers before it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import DENSE, FFN, H100, LAYER, SMALL

from lk_triton.cli.networks import fused_problems
from lk_triton.ops.problem import Problem
from lk_triton.planning import agenda
from lk_triton.planning.tuner import with_layers


def test_weight_is_count_times_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {LAYER: 3.0, DENSE: 2.0, SMALL: 1.0}
    monkeypatch.setattr(agenda, "estimate", lambda problem, device: seconds[problem])
    assert agenda.heaviest_first([{SMALL: 1, DENSE: 1, LAYER: 1}], H100) == [LAYER, DENSE, SMALL]
    assert agenda.heaviest_first([{SMALL: 7, DENSE: 3, LAYER: 1}], H100) == [SMALL, DENSE, LAYER]


def test_every_network_has_its_turn() -> None:
    """A layer's share of its own network counts: at batch 1 all are light, and would come last."""
    at_64, at_1 = {LAYER: 1, DENSE: 9}, {replace(LAYER, n=1): 1, replace(DENSE, n=1): 9}
    found = agenda.heaviest_first([at_64, at_1], H100)
    assert {problem.n for problem in found[:2]} == {64, 1}


def test_the_networks_layers_are_all_there_and_a_chain_follows_its_layers() -> None:
    found = agenda.heaviest_first([{FFN: 100, LAYER: 1}], H100)
    assert found == [*FFN.layers, FFN, LAYER]
    posed = fused_problems("replknet_31b", [64, 1], [224], ["float16"])
    found = agenda.heaviest_first(posed, H100)
    assert len(found) == len(set(found))
    assert set(found) == set(with_layers(problem for counts in posed for problem in counts))
    for problem in found:
        assert with_layers([problem])[-1] == problem
        assert all(found.index(layer) <= found.index(problem) for layer in with_layers([problem]))


def test_the_heaviest_of_31b_come_first() -> None:
    """The 1x1s of stage 3 are more than a third of batch 64: 36 layers."""
    (posed,) = fused_problems("replknet_31b", [64], [224], ["float16"])
    first = [p.inputs()["x"].shape for p in agenda.heaviest_first([posed], H100)[:2]]
    assert {(c, h) for _, c, h, _ in first} <= {(512, 14), (2048, 14)}


def test_an_empty_batch_is_planned_as_one_image() -> None:
    empty: Problem = replace(SMALL, n=0)
    assert agenda.estimate(empty, H100) == agenda.estimate(SMALL, H100)
    assert agenda.missing([empty], H100) == [empty]
