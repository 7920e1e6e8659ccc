"""Networks by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import Any, TypeVar

from .checkpoints import load_checkpoint
from .replknet import RepLKNet

Factory = TypeVar("Factory", bound=Callable[..., RepLKNet])
_factories: dict[str, Callable[..., RepLKNet]] = {}


def register(factory: Factory) -> Factory:
    """Decorator: make ``factory`` known to ``create_model`` under its own name."""
    _factories[factory.__name__] = factory
    return factory


def list_models(filter: str = "") -> list[str]:
    """Names of the networks whose name contains ``filter``, which may hold the wildcards ``*`` and ``?``."""
    return sorted(name for name in _factories if fnmatch(name, f"*{filter}*"))


def create_model(name: str, checkpoint: str | os.PathLike[str] | None = None, **kwargs: Any) -> RepLKNet:
    """The network called ``name``, with random weights or those of a checkpoint file.

    Args:
        checkpoint: see ``load_checkpoint``.
        kwargs: the factory's arguments: num_classes, out_indices, fused, device, dtype, ...; see ``RepLKNet``.

    Raises:
        ValueError: no network of that name (the nearest names are suggested); or what ``load_checkpoint`` raises.
    """
    if name not in _factories:
        near = get_close_matches(name.lower(), _factories, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"unknown model {name!r}: {hint}list_models() gives {', '.join(list_models())}")
    model = _factories[name](**kwargs)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model
