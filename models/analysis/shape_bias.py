"""Shape bias: of the decisions for either cue of a cue-conflict image, the share that goes by shape.

Geirhos et al., ImageNet-trained CNNs are biased towards texture, ICLR 2019. A stimulus has the shape of one class and the
texture of another; its name tells both, ``cat7-elephant1.png`` for a cat's shape under an elephant's skin.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .erf import tensors

CLASSES_IN = 1000
"""Of ImageNet-1K."""

DRAWS, LEVEL = 10_000, 0.95
"""Bootstrap samples, and the confidence of the interval."""

NAME = re.compile(r"(?:.*_)?([a-z]+)\d*-([a-z]+)\d*")


@lru_cache
def categories() -> dict[str, tuple[int, ...]]:
    """The 16 classes, sorted, and the ImageNet-1K indices of their members; ``imagenet16.json`` names the source."""
    text = (resources.files(__package__ or "") / "imagenet16.json").read_text(encoding="utf-8")
    return {name: tuple(indices) for name, indices in sorted(json.loads(text)["classes"].items())}


def cues(stem: str) -> tuple[str, str]:
    """(shape, texture) that the name of a stimulus, without its suffix, tells.

    Raises:
        ValueError: it is not of the form shapeN-textureM, or names a class that is none of the 16.
    """
    match = NAME.fullmatch(stem)
    if match is None:
        raise ValueError(f"the name {stem!r} is not of the form shapeN-textureM, such as cat7-elephant1")
    for name in match.groups():
        if name not in categories():
            raise ValueError(f"unknown class {name!r}, expected one of {', '.join(categories())}")
    return match[1], match[2]


def probabilities(output: Any) -> Tensor:
    """What a classifier returns -> probabilities (N, 1000): the softmax of its first (N, 1000), also in a tuple.

    Raises:
        ValueError: there is no such tensor, or it is not finite, so that it decides for nothing.
    """
    found = tensors(output)
    for logits in found:
        if logits.dim() == 2 and logits.shape[1] == CLASSES_IN:
            if not logits.isfinite().all():
                raise ValueError("the model's logits are not finite")
            return logits.float().softmax(1)
    shapes = ", ".join(str(tuple(t.shape)) for t in found) or "no tensor"
    raise ValueError(f"the model returns {shapes}, expected the logits of ImageNet-1K (N, {CLASSES_IN})")


def decide(probabilities: Tensor) -> list[str]:
    """probabilities (N, 1000) -> of each image the class whose members have the largest mean probability."""
    means = torch.stack([probabilities[:, list(indices)].mean(1) for indices in categories().values()], 1)
    names = list(categories())
    return [names[i] for i in means.argmax(1).tolist()]


@dataclass(frozen=True)
class Trial:
    """One stimulus, and what a model took it for."""

    image: str
    shape: str
    texture: str
    decision: str


@dataclass(frozen=True)
class Tally:
    """Decisions counted: for the shape, for the texture, and trials in all."""

    shape: int
    texture: int
    trials: int

    @property
    def bias(self) -> float | None:
        """Shape decisions over decisions for either cue; None where there are none."""
        return self.shape / (self.shape + self.texture) if self.shape + self.texture else None

    @property
    def accuracy(self) -> tuple[float, float]:
        """Shares of the trials that were decided for the shape and for the texture."""
        return self.shape / self.trials, self.texture / self.trials

    def interval(self, seed: int = 0) -> tuple[float, float] | None:
        """95 % bootstrap interval of the bias, over the stimuli; None where there is no bias.

        Stimuli drawn with replacement have multinomially distributed counts, so that these are drawn. Samples without a
        decision for either cue have no bias and are left out.
        """
        if self.bias is None:
            return None
        other = self.trials - self.shape - self.texture
        shares = np.array([self.shape, self.texture, other]) / self.trials
        counts = np.random.default_rng(seed).multinomial(self.trials, shares, size=DRAWS)
        either = counts[:, 0] + counts[:, 1]
        biases = counts[either > 0, 0] / either[either > 0]
        low, high = np.quantile(biases, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        return float(low), float(high)


def tally(trials: Iterable[Trial]) -> Tally:
    """Count trials with a conflict; where shape and texture are of the same class there is none, and nothing to tell."""
    conflicts = [trial for trial in trials if trial.shape != trial.texture]
    by_shape = sum(trial.decision == trial.shape for trial in conflicts)
    by_texture = sum(trial.decision == trial.texture for trial in conflicts)
    return Tally(by_shape, by_texture, len(conflicts))


def by_class(trials: Sequence[Trial]) -> dict[str, Tally]:
    """The tally of the stimuli with each class's shape, for the classes that have any with a conflict."""
    found = {name: tally(t for t in trials if t.shape == name) for name in categories()}
    return {name: counted for name, counted in found.items() if counted.trials}
