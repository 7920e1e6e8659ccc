"""``pair``: a ConvFFN as its two 1x1 convolutions, one after the other, each by its own plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import device as devices
from ..device import Device
from ..problem import DenseProblem, FfnProblem
from . import registry
from .base import Estimate, Weights, in_turn


@dataclass(frozen=True)
class PairConfig:
    """No choices: each layer has a plan."""


class PairAlgorithm:
    """Any ConvFFN. A measured figure of it is that of the plans that its layers had then: tune these first.

    Args:
        plan: (layer, device) -> its plan. Plans are made above this layer, which is why ``tuning/plan.py`` registers this.
    """

    name = "pair"
    config_type: type[Any] = PairConfig
    problems: tuple[type[Any], ...] = (FfnProblem,)

    def __init__(self, plan: Callable[[DenseProblem, Device], Any]) -> None:
        self.plan = plan

    def supports(self, problem: FfnProblem, device: Device) -> str | None:
        """Serves every ConvFFN."""
        return None if isinstance(problem, FfnProblem) else "pair is for ConvFFNs"

    def configs(self, problem: FfnProblem, device: Device) -> list[PairConfig]:
        """One."""
        return [PairConfig()]

    def estimate(self, problem: FfnProblem, config: PairConfig, device: Device) -> Estimate:
        """The sum of both."""
        plans = [(layer, self.plan(layer, device)) for layer in problem.layers]
        return in_turn(registry.get(p.algorithm).estimate(layer, p.config, device) for layer, p in plans)

    def issued_macs(self, problem: FfnProblem, config: PairConfig) -> int:
        """The nominal ones: what runs is the plans' affair."""
        return problem.nominal_macs

    def bank_bytes(self, problem: FfnProblem, config: PairConfig) -> int:
        """There is no bank."""
        return 0

    def bank_format(self, config: PairConfig) -> str | None:
        """Reads the weights as they are."""
        return None

    def pack(self, weight: Weights, problem: FfnProblem, config: PairConfig) -> Weights:
        """The weights themselves."""
        return weight

    def launch(
        self, problem: FfnProblem, config: PairConfig, x: Tensor, bank: Weights, bias: Weights | None, residual: Tensor | None
    ) -> Tensor:
        """The first layer, then the second, which adds the residual."""
        device, y = devices.of(x.device), x
        for layer, weight, b, added in zip(problem.layers, bank, bias or (None, None), (None, residual), strict=True):
            chosen = self.plan(layer, device)
            algorithm = registry.get(chosen.algorithm)
            y = algorithm.launch(layer, chosen.config, y, algorithm.pack(weight, layer, chosen.config), b, added)
        return y
