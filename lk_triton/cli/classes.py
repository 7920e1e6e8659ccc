"""The most likely classes, by name where the names are known."""

from __future__ import annotations

from functools import lru_cache
from typing import TypedDict

from torch import Tensor

IMAGENET_1K = 1000


class Class(TypedDict):
    """One class of an image's top k; ``name`` is None where it is not known."""

    index: int
    name: str | None
    probability: float


def top(logits: Tensor, k: int) -> list[list[Class]]:
    """logits (N, classes) -> the ``k`` most likely classes of each image."""
    probabilities, indices = logits.float().softmax(-1).topk(min(k, logits.shape[1]))
    return [
        [Class(index=i, name=name(i, logits.shape[1]), probability=p) for p, i in zip(ps, js, strict=True)]
        for ps, js in zip(probabilities.tolist(), indices.tolist(), strict=True)
    ]


def name(index: int, classes: int) -> str | None:
    """Name of an ImageNet-1K class; None for another set of classes, and without timm, which ships the names."""
    return imagenet_1k()[index] if classes == IMAGENET_1K and imagenet_1k() else None


@lru_cache
def imagenet_1k() -> list[str]:
    """The names of the classes in their usual order, from timm; empty where timm is not installed."""
    try:
        from timm.data.imagenet_info import ImageNetInfo
    except ImportError:
        return []
    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(i) for i in range(IMAGENET_1K)]
