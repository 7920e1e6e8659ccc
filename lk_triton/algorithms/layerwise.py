"""``layerwise``: a chain as its convolutions in turn, each by its own plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .. import gpu as gpus
from ..gpu import Gpu
from ..ops.problem import Chain, Convolution, Operands
from .base import WithoutChoices
from .cost.roofline import Estimate, in_turn


@dataclass(frozen=True)
class LayerwiseConfig:
    """No choices: each layer has a plan."""


class LayerwiseAlgorithm(WithoutChoices):
    """Any chain. A measured figure of it is that of the plans that its layers had then: tune these first."""

    name = "layerwise"
    versions: ClassVar = {"layerwise": 1}  # raised when its launch changes
    config_type: type[Any] = LayerwiseConfig
    problems: tuple[type[Any], ...] = (Chain,)

    planner: Callable[..., Any]
    """``planning.plan.plan``, which is made above this layer and sets itself here."""

    def plan(self, layer: Convolution, gpu: Gpu) -> Any:
        """The plan of a layer. On a GPU one that reads the weight as it is: a chain holds no packed weights, and must not pack
        in every replay of a graph."""
        return self.planner(layer, gpu, packing=gpu.backend == "cpu")

    def why_not(self, problem: Chain, gpu: Gpu) -> str | None:
        """Serves every chain."""
        return None if isinstance(problem, Chain) else f"{self.name} is for chains of layers, not for one of {problem.plural}"

    def estimate(self, problem: Chain, config: LayerwiseConfig, gpu: Gpu) -> Estimate:
        """The sum of the layers."""
        return in_turn(self.plan(layer, gpu).estimate(layer, gpu) for layer in problem.layers)

    def launch(self, problem: Chain, config: LayerwiseConfig, operands: Operands) -> Tensor:
        """Layer after layer."""
        gpu = gpus.of(operands["x"].device)
        return problem.in_turn(operands, lambda layer, own: self.plan(layer, gpu).launch(layer, own))
