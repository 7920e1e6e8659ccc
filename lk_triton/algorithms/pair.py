"""``pair`` and ``triple``: a ConvFFN as its two convolutions, a stem as its three, in turn, each by its own plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .. import gpu as gpus
from ..gpu import Gpu
from ..ops.problem import Chain, Convolution, FfnProblem, Operands, StemProblem
from . import registry
from .base import Versioned, with_prepacked
from .cost.roofline import Estimate, in_turn


@dataclass(frozen=True)
class PairConfig:
    """No choices: each layer has a plan."""


class PairAlgorithm(Versioned):
    """Any ConvFFN. A measured figure of it is that of the plans that its layers had then: tune these first.

    Args:
        plan: (layer, device, packing=whether it may read a packed weight) -> its plan. Plans are made above this layer, which
            is why ``planning/plan.py`` registers this.
    """

    name = "pair"
    versions: ClassVar = {"pair": 1}  # raised when its launch changes
    config_type: type[Any] = PairConfig
    problems: tuple[type[Any], ...] = (FfnProblem,)
    meant_for = "ConvFFNs"

    def __init__(self, plan: Callable[..., Any]) -> None:
        self._plan = plan

    def plan(self, layer: Convolution, gpu: Gpu) -> Any:
        """The plan of a layer. On a GPU one that reads the weight as it is: a chain holds no packed weights, and must not pack
        in every replay of a graph."""
        return self._plan(layer, gpu, packing=gpu.backend == "cpu")

    def why_not(self, problem: Chain, gpu: Gpu) -> str | None:
        """Serves every problem of its kind."""
        return None if isinstance(problem, self.problems) else f"{self.name} is for {self.meant_for}"

    def configs(self, problem: Chain, gpu: Gpu) -> list[PairConfig]:
        """One."""
        return [PairConfig()]

    def estimate(self, problem: Chain, config: PairConfig, gpu: Gpu) -> Estimate:
        """The sum of the layers."""
        plans = [(layer, self.plan(layer, gpu)) for layer in problem.layers]
        return in_turn(registry.get(p.algorithm).estimate(layer, p.config, gpu) for layer, p in plans)

    def issued_macs(self, problem: Chain, config: PairConfig) -> int:
        """The nominal ones: what runs is the plans' affair."""
        return problem.nominal_macs

    def launch(self, problem: Chain, config: PairConfig, operands: Operands) -> Tensor:
        """Layer after layer."""
        gpu = gpus.of(operands["x"].device)

        def compute(layer: Convolution, own: Operands) -> Tensor:
            chosen = self.plan(layer, gpu)
            algorithm = registry.get(chosen.algorithm)
            return algorithm.launch(layer, chosen.config, with_prepacked(algorithm, layer, chosen.config, own))

        return problem.in_turn(operands, compute)


class TripleAlgorithm(PairAlgorithm):
    """Any stem, as ``PairAlgorithm`` any ConvFFN."""

    name = "triple"
    versions: ClassVar = {"triple": 1}
    problems: tuple[type[Any], ...] = (StemProblem,)
    meant_for = "stems"
